"""Iceberg tables: versions with added columns are snapshots of the table itself. See `connectors._table`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from connectors import _iceberg_catalog as catalog
from connectors import _iceberg_table as iceberg
from connectors._iceberg_table import IcebergCopy, IcebergFile
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
from connectors.errors import ConflictError, NotFoundError, UnsupportedError
from connectors.manifest import Manifest
from connectors.parquet import ParquetFile
from connectors.store import ObjectInfo, Store, check_put_if_absent, list_objects

_IDS = "-fields-"


def table_root(url: str, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at the location of the table at `url`; the catalog is asked for it.

    Raises:
        InputError: `url` does not name a table.
        NotFoundError: no such catalog, or no such table in it.
        UnsupportedError: storage on which Iceberg tables are not read.
    """
    address = catalog.parse_address(url)
    return catalog.table_root(
        catalog.open_table(address, catalog.catalog_properties(address, storage_options)), storage_options
    )


class IcebergConnector(TableConnector[IcebergFile]):
    """One Iceberg table.

    A reader takes a column by its field id, so the copies have to be written with the ids that the table gives our
    columns in the commit. They are told by the name of the folder, which holds for every file in it.
    """

    kind = "Iceberg table"
    repair = "take it out of the table (pyiceberg: delete)"

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None, destination: Store, columns: Sequence[str]
    ) -> None:
        super().__init__(table_root(url, storage_options), destination, columns)
        self._columns = tuple(columns)
        self._address = catalog.parse_address(url)
        self._properties = catalog.catalog_properties(self._address, storage_options)

    def folder(self, name: str) -> str:
        """A folder of the table; what no snapshot names there, removing orphan files removes."""
        ids = iceberg.column_ids(self._open(), self._columns)
        return f"{COPIES}/{name}{_IDS}{'-'.join(map(str, ids))}"

    def staged_schema(self, folder: str, file: ParquetFile, columns: pa.Schema) -> pa.Schema:
        """The columns with their field ids, if the file has some; else the table's name mapping tells them."""
        if not iceberg.is_numbered(file.schema):
            return columns
        ids = dict(zip(self._columns, _told_ids(folder), strict=True))
        return pa.schema([field.with_metadata({iceberg.FIELD_ID: str(ids[field.name])}) for field in columns])

    def check_writable(self, *, single_writer: bool = False) -> None:
        """Live test that both places can be written, and that the table's files can be replaced."""
        iceberg.check_publishable(self.data, self._open())
        check_put_if_absent(self._destination, single_writer=single_writer)
        check_put_if_absent(self.data, COPIES, single_writer=single_writer)

    def diff(self, since: int) -> TableDiff:
        """What the table has gained and lost since its snapshot of sequence number `since`.

        Raises:
            NotFoundError: the history no longer has that snapshot.
            CorruptFileError: a file that it names is not there any more.
        """
        table = self._open()
        snapshot = next((each for each in iceberg.read_history(table) if each.sequence_number == since), None)
        if snapshot is None:
            raise NotFoundError(f"the history of the Iceberg table {self.data.url} has no snapshot {since}")
        files = iceberg.read_files(self.data, table, snapshot.snapshot_id)
        then = {info.path for _, info in self._sources(table, files)}
        now = {info.path for _, info in self._sources(table)}
        return TableDiff(added=tuple(sorted(now - then)), removed=tuple(sorted(then - now)))

    def restore(self, number: int) -> Version:
        """Atomic: one more snapshot, whose files and schema are those of version `number`.

        Raises:
            NotFoundError: the history no longer has that version, or its files are gone.
            ConflictError: another writer was first; look at what it did, then try again.
        """
        table = self._open()
        snapshot = next((each for each in iceberg.read_history(table) if each.sequence_number == number), None)
        target = next((version for version in self._versions(table) if version.number == number), None)
        if target is None or snapshot is None:
            raise NotFoundError(f"the history of the Iceberg table {self.data.url} has no version {number} of ours")
        listed = {info.path for info in list_objects(self.data)}
        for file in iceberg.read_files(self.data, table, snapshot.snapshot_id):
            if file.path not in listed:
                raise NotFoundError(f"{self.data.describe(file.path)}, which version {number} names, is gone")
        commit_id = uuid4().hex
        made = replace(target, commit_id=commit_id, idempotency_key=f"restore {commit_id}")
        iceberg.restore_snapshot(self.data, table, snapshot.snapshot_id, version_metadata(made))
        return next(version for version in self.read_log() if version.commit_id == commit_id)

    def _open(self) -> Table:
        return catalog.open_table(self._address, self._properties)

    def _revision(self, table: Table) -> str:
        return str(table.metadata_location)

    def _next_number(self, table: Table) -> int:
        return int(table.metadata.last_sequence_number) + 1

    def _files(self, table: Table) -> list[IcebergFile]:
        return iceberg.read_files(self.data, table)

    def named_manifests(self) -> frozenset[str]:
        """Of all snapshots of ours, also those that the owner rolled back behind and may bring back."""
        versions = self._of_snapshots(self._open().snapshots())
        return frozenset(version.manifest_path for version in versions)

    def _versions(self, table: Table) -> list[Version]:
        return self._of_snapshots(iceberg.read_history(table))

    def _of_snapshots(self, snapshots: Sequence[Any]) -> list[Version]:
        return [
            parse_version(
                snapshot.summary[OURS],
                snapshot.sequence_number,
                snapshot.timestamp_ms,
                f"snapshot {snapshot.snapshot_id} of {self.data.url}",
            )
            for snapshot in snapshots
            if snapshot.summary and OURS in snapshot.summary.additional_properties
        ]

    def _own_columns(self, table: Table) -> frozenset[str]:
        return iceberg.own_columns(table)

    def _shown(self, table: Table, file: ParquetFile, named: IcebergFile) -> ParquetFile:
        _check_partition(self.data, file, named)
        live = iceberg.live_columns(self.data, table, file) - iceberg.own_columns(table)
        return without_columns(file, frozenset(file.schema.names) - live)

    def _has_columns(self, table: Table, file: ParquetFile) -> bool:
        return iceberg.has_columns(self.data, table, file)

    def _with_appended_files(self, table: Table, manifest: Manifest) -> Manifest:
        if _told_ids(str(manifest.extra["folder"])) != iceberg.column_ids(table, self._columns):
            raise ConflictError(
                f"columns were added to the Iceberg table {self.data.url} or dropped since the copies were staged, so "
                "that ours get other field ids",
                hint="publish again",
            )
        return super()._with_appended_files(table, manifest)

    def _replace_files(
        self, table: Table, manifest: Manifest, replaced: Mapping[str, IcebergFile], metadata: Mapping[str, str]
    ) -> None:
        copies = []
        for file in manifest.files:
            footer = read_metadata(self.data, ObjectInfo(file.published_path, file.size_bytes, ""))
            copies.append(IcebergCopy(file.published_path, file.size_bytes, footer, replaced[file.source_path]))
        iceberg.replace_files(self.data, table, copies, self._columns_of(manifest), metadata)


def _told_ids(folder: str) -> tuple[int, ...]:
    return tuple(map(int, folder.rpartition(_IDS)[2].split("-")))


def _check_partition(store: Store, file: ParquetFile, named: IcebergFile) -> None:
    """Iceberg's writers keep partition columns in the files; files of Hive tables have them in their paths alone."""
    missing = {name: value for name, value in named.partition.items() if name not in file.schema.names}
    wrong = sorted(
        name
        for name, value in missing.items()
        if name not in file.partition or (isinstance(value, str) and file.partition[name] != value)
    )
    if wrong:
        raise UnsupportedError(
            f"neither {store.describe(file.path)} nor its path tells its value of the partition column {wrong[0]!r}",
            hint="rewrite the data files",
        )
