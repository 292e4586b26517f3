"""Tables with a log of their own, Delta's and Iceberg's: what they have in common.

    <table>/curator/<run and snapshot>/…        copies with the columns; no reader sees them before the commit
    <destination>/manifests/<commit id>-….json  what each copy was made from; the commit's metadata has its hash

A version is made from the files that other writers wrote, as long as they are there. Once the source of a copy has been
cleaned away, the copy is the source, and its columns are replaced.
"""

import json
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar
from uuid import uuid4

import pyarrow as pa
import xxhash

from connectors._schemas import union_schema
from connectors.commit import MANIFEST_FOLDER, Version, entry_from_values, entry_values, read_manifest
from connectors.errors import ConflictError, ConnectorError, CorruptFileError, NotFoundError, UnavailableError
from connectors.manifest import Manifest, PublishedFile, manifest_to_json
from connectors.parquet import OnProgress, ParquetFile, add_columns, read_parquet_info, read_parquet_infos, untold
from connectors.plain import Corpus
from connectors.store import ObjectInfo, Store, exists, list_objects, stat_object, write_object

# What the format's package opens; types are not to depend on whether its extra is installed.
Table: TypeAlias = Any
OURS = "lake-curator"
"""Key of our entry in a commit's metadata; by it we also know the columns that we added."""
COPIES = "curator"
"""The folder of a table where copies are staged."""
_COPY = re.compile(rf"^(?:{COPIES}/[^/]+/(?:from-[0-9a-f]{{16}}/)?)+")
_MAX_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class TableDiff:
    """Paths of files that a table has gained and lost since a version; copies of ours count as their sources."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


class TableFile(Protocol):
    """A file that a snapshot of the table names.

    Attributes:
        path: relative to the table.
        size_bytes: as the table says.
    """

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


File = TypeVar("File", bound=TableFile)


class TableConnector(ABC, Generic[File]):
    """One table. See `connectors.connector.Connector`; a format says what its log has and how it commits.

    Attributes:
        kind: what messages call it.
        repair: what to do about a file that is missing, as the end of a sentence.
    """

    owns_log = False
    kind: ClassVar[str]
    repair: ClassVar[str]

    def __init__(self, root: Store, destination: Store, columns: Sequence[str]) -> None:
        self.data = root
        self.replaceable = frozenset(columns)
        self._destination = destination

    def read_corpus(self, on_progress: OnProgress = untold) -> Corpus:
        """The sources of the newest snapshot's files, their footers read; columns that we added are not shown.

        Raises:
            NotFoundError: no table, or an empty one.
            UnsupportedError: rows or columns of it are not what its files say.
            CorruptFileError: a file of the snapshot is not there.
        """
        table = self._open()
        sources = self._sources(table)
        if not sources:
            raise NotFoundError(f"the {self.kind} {self.data.url} has no rows yet", hint="write some first")
        read = read_parquet_infos(self.data, [info for _, info in sources], on_progress)
        shown = (self._shown(table, file, named) for file, (named, _) in zip(read, sources, strict=True))
        files = tuple(sorted(shown, key=lambda file: file.path))
        return Corpus(store=self.data, files=files, schema=union_schema(files))

    def list_files(self) -> list[ObjectInfo]:
        """The sources of the newest snapshot's files, by the table's log and one listing."""
        return [source for _, source in self._sources(self._open())]

    def revision(self) -> str:
        """Names the table's newest commit, whoever made it."""
        return self._revision(self._open())

    def folder(self, name: str) -> str:
        """A folder of the table; what no snapshot names there, the table's own cleaning removes."""
        return f"{COPIES}/{name}"

    def published_path(self, folder: str, file: ParquetFile) -> str:
        """The path of the first source, below the folder."""
        first = _COPY.sub("", file.path)
        if first != file.path:  # made from a copy: another file may have had that path meanwhile
            folder = f"{folder}/from-{xxhash.xxh3_64_hexdigest(file.path.encode())}"
        return f"{folder}/{first}"

    def staged_schema(self, folder: str, file: ParquetFile, columns: pa.Schema) -> pa.Schema:  # noqa: ARG002
        """The columns as they are."""
        return columns

    def read_log(self) -> list[Version]:
        """The commits of ours that the table's history still has, oldest first; numbers are those of the table."""
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
                f"{self._destination.describe(version.manifest_path)} is not what version {version.number} of the "
                f"{self.kind} {self.data.url} was committed with",
                hint="restore it from a backup (the table itself can be read)",
            ) from error

    def named_manifests(self) -> frozenset[str]:
        """Of our commits that the table's history still has."""
        return frozenset(version.manifest_path for version in self.read_log())

    def current(self, corpus: Corpus) -> Manifest | None:
        """The snapshot's files that have the columns, also those that another writer made of ours by compacting."""
        table = self._open()
        versions = self._versions(table)
        own = self._own_columns(table)
        if not own or not versions:
            return None
        known = {file.path: file for file in corpus.files}
        held = []
        for named, info in self._sources(table):
            file = known.get(info.path)
            is_copy = named.path != info.path
            if file and (is_copy or self._has_columns(table, read_parquet_info(self.data, info))):
                held.append(_published(file, named.path, named.size_bytes))
        if not held:
            return None
        return Manifest(
            run_id=versions[-1].run_id,
            snapshot_id=versions[-1].snapshot_id,
            columns=tuple(sorted(own)),
            files=tuple(held),
            extra={"folder": ""},
        )

    def commit(self, manifest: Manifest, *, idempotency_key: str) -> Version:
        """Atomic and exactly once: one commit of the table, after which every reader of it sees the columns.

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

    # what a format says -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _open(self) -> Table:
        """The table as of now."""

    @abstractmethod
    def _revision(self, table: Table) -> str:
        """Names the commit that the table was opened at."""

    @abstractmethod
    def _next_number(self, table: Table) -> int:
        """The number that the commit right after this one gets."""

    @abstractmethod
    def _files(self, table: Table) -> list[File]:
        """The files of the newest snapshot."""

    @abstractmethod
    def _versions(self, table: Table) -> list[Version]:
        """Our commits in the table's history, oldest first."""

    @abstractmethod
    def _own_columns(self, table: Table) -> frozenset[str]:
        """Names of the columns that we added."""

    @abstractmethod
    def _shown(self, table: Table, file: ParquetFile, named: File) -> ParquetFile:
        """A source as the lake shows it: with the columns that the table has by its own; `named` is its copy or itself.

        Raises:
            UnsupportedError: the file alone does not tell what the table says of it.
        """

    @abstractmethod
    def _has_columns(self, table: Table, file: ParquetFile) -> bool:
        """Whether a file has all the columns that we added."""

    @abstractmethod
    def _replace_files(
        self, table: Table, manifest: Manifest, replaced: Mapping[str, File], metadata: Mapping[str, str]
    ) -> None:
        """Atomic: one commit right after the table's newest, with the manifest's copies and columns in place.

        Args:
            table: as opened for this attempt.
            manifest: of every file of the table.
            replaced: path of a source → the file that the table names now.
            metadata: what the commit says of itself.

        Raises:
            ConflictError: another commit was first; nothing was written.
            UnavailableError: no answer; the commit may or may not be there.
        """

    # sources and commits ----------------------------------------------------------------------------------------------

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
                    f"{self.data.describe(file.source_path)} was removed from the {self.kind} or replaced since it was "
                    "read",
                    hint="publish again, which reads the table anew",
                )
        columns = self._columns_of(manifest)
        appended = [read_parquet_info(self.data, info) for info in sources.values()]
        copies = [self._copy_with_nulls(manifest, file, columns) for file in appended]
        return replace(manifest, files=(*manifest.files, *copies))

    def _copy_with_nulls(self, manifest: Manifest, file: ParquetFile, columns: pa.Schema) -> PublishedFile:
        folder = str(manifest.extra["folder"])
        path = self.published_path(folder, file)
        if not exists(self.data, path):
            schema = self.staged_schema(folder, file, columns)

            def nulls(_group: int, _first_row: int, num_rows: int) -> pa.Table:
                return pa.table([pa.nulls(num_rows, column.type) for column in schema], schema=schema)

            add_columns(self.data, file, self.data, path, nulls, replace=self.replaceable)
        return _published(file, path, stat_object(self.data, path).size_bytes)

    def _commit_after(self, table: Table, manifest: Manifest, commit_id: str, key: str) -> None:
        number = self._next_number(table)
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
        replaced = {info.path: named for named, info in self._sources(table)}
        self._replace_files(table, manifest, replaced, version_metadata(version))

    def _columns_of(self, manifest: Manifest) -> pa.Schema:
        """Names and types of the published columns, as the first copy has them."""
        first = manifest.files[0]
        schema = read_parquet_info(self.data, ObjectInfo(first.published_path, first.size_bytes, "")).schema
        return pa.schema([pa.field(name, schema.field(name).type) for name in manifest.columns])

    def _sources(self, table: Table, named: Sequence[File] | None = None) -> list[tuple[File, ObjectInfo]]:
        """Every file of the snapshot, and what it was made from if that is there as it was, else the file itself.

        With `named`, the files of an older snapshot of the same table.
        """
        files = self._files(table) if named is None else named
        listed = {info.path: info for info in list_objects(self.data)}
        made_from = self._made_from(table, {file.path for file in files if _COPY.match(file.path)})
        sources = []
        for file in files:
            if file.path not in listed:
                raise CorruptFileError(
                    f"{self.data.describe(file.path)}, which the {self.kind} names, is not there",
                    hint=f"restore the file, or {self.repair}",
                )
            origin = made_from.get(file.path)
            source = listed.get(origin.source_path) if origin else None
            if origin is None or source is None or (source.size_bytes, source.version) != _source_state(origin):
                source = listed[file.path]
            sources.append((file, source))
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


def version_metadata(version: Version) -> dict[str, str]:
    """What our commit says of itself; number and time are the table's own."""
    told = {k: v for k, v in entry_values(version).items() if k not in ("number", "committed_at")}
    return {OURS: json.dumps(told), "run_id": version.run_id}


def parse_version(told: str, number: int, timestamp_ms: int, place: str) -> Version:
    """The version of a commit: the inverse of `version_metadata`, with the table's own number and time.

    Raises:
        CorruptFileError: the entry is not one of ours.
    """
    at = datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="microseconds")
    return entry_from_values(json.loads(told) | {"number": number, "committed_at": at}, place)


def without_columns(file: ParquetFile, names: frozenset[str]) -> ParquetFile:
    """The file as if it did not have these columns."""
    kept = [field for field in file.schema if field.name not in names]
    return replace(file, schema=pa.schema(kept, metadata=file.schema.metadata))


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
