"""An Iceberg table as the package pyiceberg reads and writes it; only this and `_iceberg_catalog` import it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pyiceberg.io.pyarrow import (
    MetricModeTypes,
    MetricsMode,
    StatisticsCollector,
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    pyarrow_to_schema,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import sanitize_column_names
from pyiceberg.table import Table as PyicebergTable
from pyiceberg.table.snapshots import ancestors_of
from pyiceberg.table.update import AssertCurrentSchemaId, SetCurrentSchemaUpdate, UpdateTableMetadata
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import DoubleType, FloatType, LongType, StringType

from connectors._failures import redact_url
from connectors._iceberg_catalog import iceberg_errors, normal_location
from connectors._table import OURS, Table
from connectors.errors import ConflictError, UnsupportedError
from connectors.parquet import ParquetFile
from connectors.store import Store, leads_out
from connectors.threads import REMOTE_THREADS, in_threads

FIELD_ID = b"PARQUET:field_id"
_DOC = f"published by {OURS}"
"""The comment of a column that we added, by which it is told from those of the table's owner."""
_ICEBERG_TYPES = {
    pa.float32(): FloatType(),
    pa.float64(): DoubleType(),
    pa.int64(): LongType(),
    pa.string(): StringType(),
}
_COLUMN_STATS = (
    "column_sizes",
    "value_counts",
    "null_value_counts",
    "nan_value_counts",
    "lower_bounds",
    "upper_bounds",
)
_NOT_OURS = -1


@dataclass(frozen=True)
class IcebergFile:
    """A data file that a snapshot names.

    Attributes:
        path: relative to the table.
        size_bytes: as the manifest says.
        partition: column → value, of the identity partitions.
        entry: pyiceberg's own DataFile.
    """

    path: str
    size_bytes: int
    partition: Mapping[str, Any]
    entry: Any


@dataclass(frozen=True)
class IcebergCopy:
    """A file that takes the place of another.

    Attributes:
        path: relative to the table.
        size_bytes: of the object.
        footer: as Arrow decodes it.
        replaced: whose partition and statistics it has.
    """

    path: str
    size_bytes: int
    footer: Any
    replaced: IcebergFile


def read_files(store: Store, table: Table, snapshot_id: int | None = None) -> list[IcebergFile]:
    """The data files of a snapshot, by default the newest, sorted by path.

    Raises:
        UnsupportedError: delete files, other formats than Parquet, or a file outside the table's folder or named twice.
    """
    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return []
    with iceberg_errors(store.url, table.io.properties):
        manifests = snapshot.manifests(table.io)
        read = in_threads(lambda manifest: manifest.fetch_manifest_entry(table.io), manifests, REMOTE_THREADS)
        entries = [entry.data_file for manifest in read for entry in manifest]
    if num_deletes := sum(entry.content != DataFileContent.DATA for entry in entries):
        raise UnsupportedError(
            f"the Iceberg table {store.url} has {num_deletes} delete file(s), so that rows of its data files are not "
            "all there",
            hint="rewrite the data files without them (in Spark: rewrite_data_files with delete-file-threshold 1)",
        )
    files = sorted((_file(store, table, entry) for entry in entries), key=lambda file: file.path)
    for file, following in pairwise(files):
        if file.path == following.path:
            raise UnsupportedError(f"the Iceberg table {store.url} names {file.path} twice", hint="take it out once")
    return files


def own_columns(table: Table) -> frozenset[str]:
    """Names of the columns that we added."""
    return frozenset(field.name for field in table.schema().fields if field.doc == _DOC)


def column_ids(table: Table, names: Sequence[str]) -> tuple[int, ...]:
    """Field ids of our columns: as the table has them, else those that it would give next."""
    known = {field.name: field.field_id for field in table.schema().fields if field.doc == _DOC}
    following = table.metadata.last_column_id
    ids = []
    for name in names:
        following += name not in known
        ids.append(known.get(name, following))
    return tuple(ids)


def is_numbered(schema: pa.Schema) -> bool:
    """Whether the columns of a file have field ids; else the table's name mapping tells them."""
    return any(FIELD_ID in (field.metadata or {}) for field in schema)


def live_columns(store: Store, table: Table, file: ParquetFile) -> frozenset[str]:
    """Names of the file's columns that the table has.

    Raises:
        UnsupportedError: a column has another name in the table than in the file, or no field id.
    """
    place = store.describe(file.path)
    told, schema = _schema_of(store, table, file), table.schema()
    written = sanitize_column_names(schema)
    for field_id in told.field_ids:
        name, name_now = told.find_column_name(field_id), schema.find_column_name(field_id)
        if name_now is None and name in schema.column_names:
            raise UnsupportedError(
                f"column {name!r} of {place} is not the one of that name in the Iceberg table, which was dropped and "
                "added again",
                hint="rewrite the data files",
            )
        if name_now is not None and name not in (name_now, written.find_column_name(field_id)):
            raise UnsupportedError(
                f"column {name_now!r} of the Iceberg table is called {name!r} in {place}, as it was renamed",
                hint="rewrite the data files",
            )
    kept = {field.name for field in told.fields if schema.find_column_name(field.field_id) is not None}
    return frozenset(kept)


def has_columns(store: Store, table: Table, file: ParquetFile) -> bool:
    """Whether a file has all columns that we added, by their field ids."""
    own = {field.field_id for field in table.schema().fields if field.doc == _DOC}
    return own <= set(_schema_of(store, table, file).field_ids)


def read_history(table: Table) -> list[Any]:
    """The newest snapshot and those that led to it, oldest first, as far as they were not expired."""
    return list(reversed(list(ancestors_of(table.current_snapshot(), table.metadata))))


def check_publishable(store: Store, table: Table) -> None:
    """Whether its files can be replaced.

    Raises:
        UnsupportedError: format version 1, or files of an older partition spec.
    """
    if table.format_version < 2:
        raise UnsupportedError(
            f"the Iceberg table {store.url} has format version 1, whose snapshots have no numbers",
            hint="upgrade it (pyiceberg: transaction().upgrade_table_version(2))",
        )
    _check_spec(store, table, read_files(store, table))


def replace_files(
    store: Store, table: Table, copies: Sequence[IcebergCopy], columns: pa.Schema, metadata: Mapping[str, str]
) -> None:
    """Atomic: one commit right after the table's snapshot, with `columns` in its schema and the copies in place.

    Raises:
        ConflictError: another commit was first; nothing was written.
        AccessError: the catalog or the storage refused.
        UnavailableError: no answer; the commit may or may not be there.
    """
    known = own_columns(table)
    with _committing(store, table) as transaction:
        _pin_schema(transaction, table)
        with transaction.update_schema() as schema:
            for column in columns:
                if column.name not in known:
                    schema.add_column((column.name,), _ICEBERG_TYPES[column.type], doc=_DOC)
        with transaction.update_snapshot(snapshot_properties=dict(metadata)).overwrite() as snapshot:
            for copy in copies:
                snapshot.delete_data_file(copy.replaced.entry)
                snapshot.append_data_file(_data_file(transaction, table, copy, columns))


def restore_snapshot(store: Store, table: Table, snapshot_id: int, metadata: Mapping[str, str]) -> None:
    """Atomic: one more snapshot right after the table's, with the files and the schema of an older one.

    Raises:
        ConflictError: another commit was first.
        UnsupportedError: that snapshot's files are of an older partition spec.
    """
    now = {file.path: file.entry for file in read_files(store, table)}
    files = read_files(store, table, snapshot_id)
    then = {file.path: file.entry for file in files}
    _check_spec(store, table, files)
    with _committing(store, table) as transaction:
        _pin_schema(transaction, table)
        schema_id = table.snapshot_by_id(snapshot_id).schema_id
        if schema_id != table.schema().schema_id:
            _Change(transaction, (SetCurrentSchemaUpdate(schema_id=schema_id),)).commit()
        with transaction.update_snapshot(snapshot_properties=dict(metadata)).overwrite() as snapshot:
            for path in sorted(now.keys() - then.keys()):
                snapshot.delete_data_file(now[path])
            for path in sorted(then.keys() - now.keys()):
                snapshot.append_data_file(then[path])


class _Change(UpdateTableMetadata):  # type: ignore[misc]  # types of pyiceberg are not followed
    """A part of a transaction that pyiceberg has no method for."""

    def __init__(self, transaction: Any, updates: tuple[Any, ...] = (), requirements: tuple[Any, ...] = ()) -> None:
        super().__init__(transaction)
        self._changes = (updates, requirements)

    def _commit(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return self._changes


@contextmanager
def _committing(store: Store, table: Table) -> Iterator[Any]:
    """A transaction that is committed on clean exit, once and right after `table`.

    Without pyiceberg's own retries: by isolation level, they go on after commits that nobody has looked at.
    """
    once = table.metadata.properties | {"commit.retry.num-retries": "0"}
    metadata = table.metadata.model_copy(update={"properties": once})
    pinned = PyicebergTable(table.name(), metadata, table.metadata_location, table.io, table.catalog, table.config)
    with iceberg_errors(store.url, {**table.catalog.properties, **table.io.properties}), table.catalog:
        transaction = pinned.transaction()
        yield transaction
        try:
            transaction.commit_transaction()
        except ValueError as error:  # the catalog's newest metadata does not take it: there is a newer snapshot
            raise ConflictError(f"another writer committed to the Iceberg table {store.url} first ({error})") from error


def _pin_schema(transaction: Any, table: Table) -> None:
    _Change(transaction, (), (AssertCurrentSchemaId(current_schema_id=table.schema().schema_id),)).commit()


def _data_file(transaction: Any, table: Table, copy: IcebergCopy, columns: pa.Schema) -> Any:
    """What the manifest says of a copy: as of the file it replaces, and of our columns from the copy's footer."""
    schema = transaction.table_metadata.schema()
    ids = {name: schema.find_field(name).field_id for name in columns.names}
    plan = compute_statistics_plan(schema, table.metadata.properties)
    plan[_NOT_OURS] = StatisticsCollector(_NOT_OURS, StringType(), MetricsMode(MetricModeTypes.NONE), "")
    paths = [copy.footer.schema.column(index).path for index in range(len(copy.footer.schema))]
    found = data_file_statistics_from_parquet_metadata(
        parquet_metadata=copy.footer,
        stats_columns=plan,
        parquet_column_mapping={path: ids.get(path, _NOT_OURS) for path in paths},
    ).to_serialized_dict()
    replaced, own = copy.replaced.entry, set(ids.values())
    stats = {}
    for name in _COLUMN_STATS:
        kept = {field_id: value for field_id, value in (getattr(replaced, name) or {}).items() if field_id not in own}
        stats[name] = kept | {field_id: value for field_id, value in found[name].items() if field_id in own}
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"{table.location().rstrip('/')}/{copy.path}",
        file_format=FileFormat.PARQUET,
        partition=replaced.partition,
        record_count=copy.footer.num_rows,
        file_size_in_bytes=copy.size_bytes,
        split_offsets=found["split_offsets"],
        sort_order_id=replaced.sort_order_id,
        spec_id=replaced.spec_id,
        equality_ids=None,
        key_metadata=None,
        **stats,
    )


def _file(store: Store, table: Table, entry: Any) -> IcebergFile:
    if entry.file_format != FileFormat.PARQUET:
        raise UnsupportedError(
            f"{entry.file_path} is {entry.file_format.name}", hint="only Parquet is read, write it again"
        )
    folder, path = normal_location(table.location()).rstrip("/") + "/", normal_location(entry.file_path)
    if not path.startswith(folder) or leads_out(path.removeprefix(folder)):
        raise UnsupportedError(
            f"the Iceberg table {store.url} names a file outside its folder ({redact_url(path)})",
            hint="copy the data into it, or make the table with a location above its files",
        )
    schema, spec = table.schema(), table.specs()[entry.spec_id]
    partition = {}
    for position, field in enumerate(spec.fields):
        name = schema.find_column_name(field.source_id)
        if name is not None and isinstance(field.transform, IdentityTransform):
            partition[name] = entry.partition[position]
    return IcebergFile(path.removeprefix(folder), entry.file_size_in_bytes, partition, entry)


def _check_spec(store: Store, table: Table, files: Sequence[IcebergFile]) -> None:
    """pyiceberg writes the files of a commit as of the default spec."""
    old = [file.path for file in files if file.entry.spec_id != table.spec().spec_id]
    if old:
        raise UnsupportedError(
            f"the partition spec of the Iceberg table {store.url} has changed since {old[0]} was written",
            hint="rewrite the data files (in Spark: rewrite_data_files with rewrite-all)",
        )


def _schema_of(store: Store, table: Table, file: ParquetFile) -> Any:
    """The file's columns with their field ids, its own or by the table's name mapping."""
    place = store.describe(file.path)
    if is_numbered(file.schema) and not all(FIELD_ID in (field.metadata or {}) for field in file.schema):
        raise UnsupportedError(f"{place} has field ids for some of its columns only", hint="write it again")
    with iceberg_errors(place, {}):
        return pyarrow_to_schema(file.schema, name_mapping=table.name_mapping(), downcast_ns_timestamp_to_us=True)
