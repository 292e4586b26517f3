"""Delta tables: the files of the newest snapshot, and versions with added columns as commits of the table itself.

    <table>/curator/<run and snapshot>/…      copies with the columns; no reader sees them before the commit
    <destination>/manifests/<commit id>-….json  what each copy was made from; the commit's metadata has its hash

A version is made from the files that other writers wrote, as long as they are there. Once VACUUM has taken the source
of a copy, the copy is the source, and its columns are replaced.
"""

import json
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
import xxhash

from connectors import _delta_log as delta_log
from connectors._delta_log import OURS, FileAction, Table
from connectors._parquet_file import read_metadata
from connectors._schemas import union_schema
from connectors.commit import MANIFEST_FOLDER, Version, read_manifest
from connectors.errors import (
    ConflictError,
    ConnectorError,
    CorruptFileError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from connectors.manifest import Manifest, PublishedFile, build, manifest_to_json
from connectors.parquet import ParquetFile, add_columns, parse_partition, read_parquet_info
from connectors.plain import Corpus
from connectors.store import ObjectInfo, Store, check_put_if_absent, exists, list_objects, stat_object, write_object

_FOLDER = "curator"
_COPY = re.compile(rf"^(?:{_FOLDER}/[^/]+/(?:from-[0-9a-f]{{16}}/)?)+")
_MAX_ATTEMPTS = 10
_REMOTE_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class TableDiff:
    """Paths of files that a table has gained and lost since a version; copies of ours count as their sources."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


class DeltaConnector:
    """One Delta table. See `connectors.connector.Connector`."""

    owns_log = False

    def __init__(self, root: Store, destination: Store, columns: Sequence[str]) -> None:
        self.data = root
        self.replaceable = frozenset(columns)
        self._destination = destination
        self._options = delta_log.delta_options(root)

    def read_corpus(self) -> Corpus:
        """The sources of the newest snapshot's files, their footers read; columns that we added are not shown.

        Raises:
            NotFoundError: no table, or an empty one.
            UnsupportedError: column mapping, deletion vectors, or partitions that the files' paths do not tell.
            CorruptFileError: a file of the snapshot is not there.
        """
        table = self._open()
        sources = self._sources(table)
        if not sources:
            raise NotFoundError(f"the Delta table {self.data.url} has no rows yet; write some first")
        own = delta_log.own_columns(table)
        with ThreadPoolExecutor(max_workers=_REMOTE_THREADS if self.data.is_remote else 1) as pool:
            read = list(pool.map(lambda pair: read_parquet_info(self.data, pair[1]), sources))
        for file, (action, _) in zip(read, sources, strict=True):
            _check_partition(self.data, file, action)
        files = tuple(sorted((_without(file, own) for file in read), key=lambda file: file.path))
        return Corpus(store=self.data, files=files, schema=union_schema(files))

    def folder(self, name: str) -> str:
        """A folder of the table; what no snapshot names there, VACUUM removes."""
        return f"{_FOLDER}/{name}"

    def published_path(self, folder: str, file: ParquetFile) -> str:
        """The path of the first source, below the folder."""
        first = _COPY.sub("", file.path)
        if first != file.path:  # made from a copy: another file may have had that path meanwhile
            folder = f"{folder}/from-{xxhash.xxh3_64_hexdigest(file.path.encode())}"
        return f"{folder}/{first}"

    def check_writable(self) -> None:
        """Live test that the table's storage honours conditional writes and that its rows may be replaced."""
        if delta_log.is_append_only(self._open()):
            raise UnsupportedError(
                f"the Delta table {self.data.url} is append-only (delta.appendOnly), and publishing replaces its "
                "files; copy the table, or let go of the property"
            )
        check_put_if_absent(self._destination)
        check_put_if_absent(self.data, _FOLDER)

    def read_log(self) -> list[Version]:
        """The commits of ours that the table's log still has, oldest first; numbers are those of the table."""
        return self._versions(self._open())

    def read_manifest(self, version: Version) -> Manifest:
        """What a commit of ours consists of, checked against the hash in the table's log.

        Raises:
            CorruptFileError: the manifest is missing or is not the one that was committed.
        """
        try:
            return read_manifest(self._destination, version)
        except CorruptFileError as error:
            raise CorruptFileError(
                f"{self._destination.describe(version.manifest_path)} is not what version {version.number} of the Delta"
                f" table {self.data.url} was committed with; restore it from a backup (the table itself can be read)"
            ) from error

    def current(self, corpus: Corpus) -> Manifest | None:
        """The snapshot's files that have the columns, also those that another writer made of ours (OPTIMIZE)."""
        table = self._open()
        own = delta_log.own_columns(table)
        versions = self._versions(table)
        if not own or not versions:
            return None
        known = {file.path: file for file in corpus.files}
        held = []
        for action, info in self._sources(table):
            file = known.get(info.path)
            is_copy = action.path != info.path
            if file and (is_copy or own <= set(read_parquet_info(self.data, info).schema.names)):
                held.append(_published(file, action.path, action.size_bytes))
        if not held:
            return None
        return Manifest(
            run_id=versions[-1].run_id,
            snapshot_id=versions[-1].snapshot_id,
            columns=tuple(sorted(own)),
            files=tuple(held),
            extra={"folder": ""},
        )

    def diff(self, since: int) -> TableDiff:
        """What the table has gained and lost since its version `since`.

        Raises:
            NotFoundError: the log no longer has that version.
        """
        then = {info.path for _, info in self._sources(self._open(since))}
        now = {info.path for _, info in self._sources(self._open())}
        return TableDiff(added=tuple(sorted(now - then)), removed=tuple(sorted(then - now)))

    def commit(self, manifest: Manifest, *, idempotency_key: str) -> Version:
        """Atomic and exactly once: one Delta commit, after which every reader of the table sees the columns.

        Rows that were appended since `manifest` was made stay, with nulls in the columns.

        Raises:
            ConflictError: another writer removed or replaced a file that the manifest was made from, or kept winning.
            UnavailableError: the storage did not answer; calling again with the same key is safe.
        """
        commit_id = uuid4().hex
        failure: ConnectorError = ConflictError(f"no attempt was made to commit to {self.data.url}")
        for attempt in range(_MAX_ATTEMPTS + 1):
            table = self._open()
            for version in self._versions(table):
                if version.idempotency_key == idempotency_key:
                    return replace(version, created=version.commit_id == commit_id)
            if attempt == _MAX_ATTEMPTS:
                break
            complete = self._with_appended_files(table, manifest)
            try:
                self._commit_after(table, complete, commit_id, idempotency_key)
            except (ConflictError, UnavailableError) as error:
                failure = error  # another writer was first, or the answer was lost: the log says which
                time.sleep(random.random() * 0.05 * attempt)  # noqa: S311
        raise failure

    def restore(self, number: int) -> Version:
        """See `restore_snapshot`; of a version of ours."""
        made = self.restore_snapshot(number)
        return next(version for version in self.read_log() if version.number == made)

    def restore_snapshot(self, number: int) -> int:
        """Atomic: one more commit, whose snapshot and schema are those of version `number` of the table; its number.

        Raises:
            NotFoundError: the log no longer has that version, or VACUUM took its files.
            ConflictError: another writer was first; look at what it did, then try again.
        """
        log = self.read_log()
        target = next((version for version in log if version.number == number), None)
        self._open(number)
        commit_id = uuid4().hex
        metadata: dict[str, str] = {}
        if target:
            metadata = _metadata(replace(target, commit_id=commit_id, idempotency_key=f"restore {commit_id}"))
        delta_log.restore_table(self.data, self._open(), number, metadata)
        return int(self._open().version())

    def _with_appended_files(self, table: Table, manifest: Manifest) -> Manifest:
        """The manifest with copies of the files that others appended since it was made, their columns null.

        Raises:
            ConflictError: others removed or replaced a file that it was made from.
        """
        sources = {info.path: info for _, info in self._sources(table)}
        for file in manifest.files:
            info = sources.pop(file.source_path, None)
            if info is None or (info.size_bytes, info.version) != _source_state(file):
                raise ConflictError(
                    f"{self.data.describe(file.source_path)} was removed from the Delta table or replaced since it was "
                    "read; publish again, which reads the table anew"
                )
        columns = self._columns_of(manifest)
        appended = [read_parquet_info(self.data, info) for info in sources.values()]
        copies = [self._copy_with_nulls(manifest, file, columns) for file in appended]
        return replace(manifest, files=(*manifest.files, *copies))

    def _copy_with_nulls(self, manifest: Manifest, file: ParquetFile, columns: pa.Schema) -> PublishedFile:
        path = self.published_path(str(manifest.extra["folder"]), file)
        if not exists(self.data, path):

            def nulls(_group: int, _first_row: int, num_rows: int) -> pa.Table:
                return pa.table([pa.nulls(num_rows, column.type) for column in columns], schema=columns)

            add_columns(self.data, file, self.data, path, nulls, replace=self.replaceable)
        return _published(file, path, stat_object(self.data, path).size_bytes)

    def _commit_after(self, table: Table, manifest: Manifest, commit_id: str, key: str) -> None:
        number = int(table.version()) + 1
        body = manifest_to_json(manifest)
        version = Version(
            number=number,
            commit_id=commit_id,
            idempotency_key=key,
            run_id=manifest.run_id,
            snapshot_id=manifest.snapshot_id,
            committed_at="",
            manifest_path=f"{MANIFEST_FOLDER}/{commit_id}-{number}.json",
            manifest_hash=xxhash.xxh3_128_hexdigest(body),
        )
        write_object(self._destination, version.manifest_path, body)
        replaced = {info.path: action for action, info in self._sources(table)}
        columns = self._columns_of(manifest)
        files = [self._action(file, replaced[file.source_path], columns) for file in manifest.files]
        delta_log.replace_files(self.data, table, files, columns, _metadata(version))

    def _columns_of(self, manifest: Manifest) -> pa.Schema:
        """Names and types of the published columns, as the first copy has them."""
        first = manifest.files[0]
        schema = read_parquet_info(self.data, ObjectInfo(first.published_path, first.size_bytes, "")).schema
        return pa.schema([pa.field(name, schema.field(name).type) for name in manifest.columns])

    def _action(self, file: PublishedFile, replaced: FileAction, columns: pa.Schema) -> FileAction:
        """What the log says of a copy: as of the file it replaces, and of the columns from the copy's footer."""
        footer = read_metadata(self.data, ObjectInfo(file.published_path, file.size_bytes, ""))
        partition = parse_partition(file.source_path) if replaced.partition else {}
        stats = {**replaced.stats, "numRecords": file.num_rows}
        for key, found in _column_stats(footer, columns).items():
            stats[key] = {**{c: v for c, v in stats.get(key, {}).items() if c not in columns.names}, **found}
        return FileAction(file.published_path, file.size_bytes, {k: partition[k] for k in replaced.partition}, stats)

    def _open(self, version: int | None = None) -> Table:
        newest = delta_log.open_table(self.data, self._options)
        if version is None:
            return newest
        try:
            return delta_log.open_table(self.data, self._options, version)
        except CorruptFileError as error:
            raise NotFoundError(
                f"the log of the Delta table {self.data.url} has no version {version}; the newest is {newest.version()}"
            ) from error

    def _versions(self, table: Table) -> list[Version]:
        found = []
        for entry in reversed(delta_log.read_history(self.data, table)):
            if OURS in entry:
                place = f"commit {entry['version']} of {self.data.url}"
                at = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC).isoformat(timespec="microseconds")
                about = {"number": entry["version"], "committed_at": at, "created": True}
                found.append(build(Version, json.loads(entry[OURS]) | about, place))
        return found

    def _sources(self, table: Table) -> list[tuple[FileAction, ObjectInfo]]:
        """Every file of the snapshot, and what it was made from if that is there as it was, else the file itself."""
        actions = delta_log.read_actions(self.data, table)
        listed = {info.path: info for info in list_objects(self.data)}
        made_from = self._made_from(table, {action.path for action in actions if _COPY.match(action.path)})
        sources = []
        for action in actions:
            if action.path not in listed:
                raise CorruptFileError(
                    f"{self.data.describe(action.path)}, which the Delta table names, is not there; restore the file, "
                    "or repair the table (FSCK REPAIR TABLE)"
                )
            origin = made_from.get(action.path)
            source = listed.get(origin.source_path) if origin else None
            if origin is None or source is None or (source.size_bytes, source.version) != _source_state(origin):
                source = listed[action.path]
            sources.append((action, source))
        return sources

    def _made_from(self, table: Table, copies: set[str]) -> dict[str, PublishedFile]:
        """What is known of the snapshot's copies; of one whose manifest is gone, nothing."""
        found: dict[str, PublishedFile] = {}
        for version in reversed(self._versions(table)):
            if found.keys() >= copies:
                break
            with suppress(CorruptFileError):
                for file in self.read_manifest(version).files:
                    if file.published_path in copies:
                        found.setdefault(file.published_path, file)
        return found


def _without(file: ParquetFile, columns: frozenset[str]) -> ParquetFile:
    kept = [field for field in file.schema if field.name not in columns]
    return replace(file, schema=pa.schema(kept, metadata=file.schema.metadata))


def _check_partition(store: Store, file: ParquetFile, action: FileAction) -> None:
    told = file.partition
    texts = {name: value for name, value in action.partition.items() if isinstance(value, str)}
    wrong = sorted(
        {*(action.partition.keys() - told.keys()), *(name for name in texts if told.get(name) != texts[name])}
    )
    if wrong:
        raise UnsupportedError(
            f"the path {store.describe(file.path)} does not tell its value of the partition column {wrong[0]!r}; "
            "write the table with Hive-style paths (delta.randomizeFilePrefixes off)"
        )


def _published(file: ParquetFile, path: str, size_bytes: int) -> PublishedFile:
    return PublishedFile(
        source_path=file.path,
        source_size_bytes=file.size_bytes,
        source_version=file.version,
        published_path=path,
        size_bytes=size_bytes,
        num_rows=file.num_rows,
    )


def _source_state(file: PublishedFile) -> tuple[int, str]:
    return file.source_size_bytes, file.source_version


def _metadata(version: Version) -> dict[str, str]:
    """What our commit says of itself; number and time are the table's own."""
    told = {k: v for k, v in asdict(version).items() if k not in ("number", "committed_at", "created")}
    return {OURS: json.dumps(told), "run_id": version.run_id}


def _column_stats(footer: Any, columns: pa.Schema) -> dict[str, dict[str, Any]]:
    """minValues, maxValues and nullCount of the columns over all row groups; without those that a group lacks."""
    stats: dict[str, dict[str, Any]] = {"minValues": {}, "maxValues": {}, "nullCount": {}}
    paths = {footer.schema.column(i).path: i for i in range(len(footer.schema))}
    for name in columns.names:
        groups = [footer.row_group(g).column(paths[name]) for g in range(footer.num_row_groups)]
        if not all(chunk.is_stats_set and chunk.statistics.has_null_count for chunk in groups):
            continue
        found = [chunk.statistics for chunk in groups]
        stats["nullCount"][name] = sum(each.null_count for each in found)
        bounded = [each for each in found if each.has_min_max]
        if bounded and all(each.has_min_max or not each.num_values for each in found):
            stats["minValues"][name] = min(each.min for each in bounded)
            stats["maxValues"][name] = max(each.max for each in bounded)
    return stats
