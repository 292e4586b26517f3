"""Delta tables: versions with added columns are commits of the table itself. See `connectors._table`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from connectors import _delta_log as delta_log
from connectors._delta_log import FileAction
from connectors._parquet_file import read_metadata
from connectors._table import (
    COPIES,
    OURS,
    Table,
    TableConnector,
    TableDiff,
    parse_version,
    version_metadata,
    without_columns,
)
from connectors.commit import Version
from connectors.errors import CorruptFileError, NotFoundError, UnsupportedError
from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import ParquetFile, parse_partition
from connectors.store import ObjectInfo, Store, check_put_if_absent


class DeltaConnector(TableConnector[FileAction]):
    """One Delta table."""

    kind = "Delta table"
    repair = "repair the table (FSCK REPAIR TABLE)"

    def __init__(self, root: Store, destination: Store, columns: Sequence[str]) -> None:
        super().__init__(root, destination, columns)
        self._options = delta_log.delta_options(root)

    def check_writable(self, *, single_writer: bool = False) -> None:
        """Live test that the table's storage honours conditional writes and that its rows may be replaced."""
        if delta_log.is_append_only(self._open()):
            raise UnsupportedError(
                f"the Delta table {self.data.url} is append-only (delta.appendOnly), and publishing replaces its files",
                hint="copy the table, or let go of the property",
            )
        check_put_if_absent(self._destination, single_writer=single_writer)
        check_put_if_absent(self.data, COPIES, single_writer=single_writer)

    def diff(self, since: int) -> TableDiff:
        """What the table has gained and lost since its version `since`.

        Raises:
            NotFoundError: the log no longer has that version.
        """
        then = {info.path for _, info in self._sources(self._open(since))}
        now = {info.path for _, info in self._sources(self._open())}
        return TableDiff(added=tuple(sorted(now - then)), removed=tuple(sorted(then - now)))

    def restore(self, number: int) -> Version:
        """See `restore_snapshot`; of a version of ours."""
        made = self._restore(number)
        return next(version for version in self.read_log() if version.commit_id == made)

    def restore_snapshot(self, number: int) -> int:
        """Atomic: one more commit, whose snapshot and schema are those of version `number` of the table.

        Returns the number of the newest version, which is that commit's unless another writer has followed.

        Raises:
            NotFoundError: the log no longer has that version, or VACUUM took its files.
            ConflictError: another writer was first; look at what it did, then try again.
        """
        self._restore(number)
        return int(self._open().version())

    def _restore(self, number: int) -> str:
        """Commit, and say the id by which the log knows the commit if it is a version of ours."""
        log = self.read_log()
        target = next((version for version in log if version.number == number), None)
        self._open(number)
        commit_id = uuid4().hex
        metadata: dict[str, str] = {}
        if target:
            metadata = version_metadata(replace(target, commit_id=commit_id, idempotency_key=f"restore {commit_id}"))
        delta_log.restore_table(self.data, self._open(), number, metadata)
        return commit_id

    def _open(self, version: int | None = None) -> Table:
        newest = delta_log.open_table(self.data, self._options)
        if version is None:
            return newest
        try:
            return delta_log.open_table(self.data, self._options, version)
        except CorruptFileError as error:
            raise NotFoundError(
                f"the log of the Delta table {self.data.url} has no version {version}",
                hint=f"the newest is {newest.version()}",
            ) from error

    def _revision(self, table: Table) -> str:
        return str(table.version())

    def _next_number(self, table: Table) -> int:
        return int(table.version()) + 1

    def _files(self, table: Table) -> list[FileAction]:
        return delta_log.read_actions(self.data, table)

    def _versions(self, table: Table) -> list[Version]:
        return [
            parse_version(
                entry[OURS], entry["version"], entry["timestamp"], f"commit {entry['version']} of {self.data.url}"
            )
            for entry in reversed(delta_log.read_history(self.data, table))
            if OURS in entry
        ]

    def _own_columns(self, table: Table) -> frozenset[str]:
        return delta_log.own_columns(table)

    def _shown(self, table: Table, file: ParquetFile, named: FileAction) -> ParquetFile:
        _check_partition(self.data, file, named)
        return without_columns(file, delta_log.own_columns(table))

    def _has_columns(self, table: Table, file: ParquetFile) -> bool:
        return delta_log.own_columns(table) <= set(file.schema.names)

    def _replace_files(
        self, table: Table, manifest: Manifest, replaced: Mapping[str, FileAction], metadata: Mapping[str, str]
    ) -> None:
        columns = self._columns_of(manifest)
        files = [self._action(file, replaced[file.source_path], columns) for file in manifest.files]
        delta_log.replace_files(self.data, table, files, columns, metadata)

    def _action(self, file: PublishedFile, replaced: FileAction, columns: pa.Schema) -> FileAction:
        """What the log says of a copy: as of the file it replaces, and of the columns from the copy's footer."""
        footer = read_metadata(self.data, ObjectInfo(file.published_path, file.size_bytes, ""))
        partition = parse_partition(file.source_path) if replaced.partition else {}
        stats = {**replaced.stats, "numRecords": file.num_rows}
        for key, found in _column_stats(footer, columns).items():
            stats[key] = {**{c: v for c, v in stats.get(key, {}).items() if c not in columns.names}, **found}
        return FileAction(file.published_path, file.size_bytes, {k: partition[k] for k in replaced.partition}, stats)


def _check_partition(store: Store, file: ParquetFile, action: FileAction) -> None:
    told = file.partition
    texts = {name: value for name, value in action.partition.items() if isinstance(value, str)}
    wrong = sorted(
        {*(action.partition.keys() - told.keys()), *(name for name in texts if told.get(name) != texts[name])}
    )
    if wrong:
        raise UnsupportedError(
            f"the path {store.describe(file.path)} does not tell its value of the partition column {wrong[0]!r}",
            hint="write the table with Hive-style paths (delta.randomizeFilePrefixes off)",
        )


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
