"""Columns to add to a Parquet file, checked and described; shared by the ways of adding them."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connectors._parquet_file import ParquetFile
from connectors.errors import CorruptFileError, InputError, SchemaError, UnsupportedError
from connectors.store import Store

# (row group, first row of it in the file, number of rows in it) → the new columns of exactly those rows
ColumnSource = Callable[[int, int, int], pa.Table]

DEFAULT_CODEC = "zstd"
_FIELD_ID = b"PARQUET:field_id"
_FALSE_POSITIVES = 0.01
_HF_DTYPES = {
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.string(): "string",
    pa.large_string(): "large_string",
}


def check_not_itself(source_store: Store, file: ParquetFile, target_store: Store, target_path: str) -> None:
    """Raises InputError if the copy would be written over its source."""
    if (type(source_store.fs), source_store.full_path(file.path)) == (
        type(target_store.fs),
        target_store.full_path(target_path),
    ):
        raise InputError(f"{target_store.describe(target_path)} is the source itself", hint="write the copy elsewhere")


def check_names(old: pa.Schema, added: pa.Schema, replace: Set[str], place: str) -> None:
    """Raises SchemaError if a new column exists already and is not to be replaced."""
    clash = [name for name in added.names if name in old.names and name not in replace]
    if clash:
        raise SchemaError(
            f"{place} has a column {clash[0]!r} already", hint="choose another column prefix or replace it"
        )


def row_counts(metadata: pq.FileMetaData) -> list[int]:
    """Rows of each row group."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def check_row_counts(metadata: pq.FileMetaData, place: str) -> None:
    """Raises CorruptFileError unless the row groups have as many rows as the file."""
    if sum(row_counts(metadata)) != metadata.num_rows:
        raise CorruptFileError(f"{place} is damaged: its row groups do not add up to its rows", hint="write it again")


def checked_tables(row_counts: Sequence[int], columns: ColumnSource, place: str) -> Iterator[pa.Table]:
    """The new columns of each row group, in order; of no rows, once, if there is no row group.

    Raises:
        InputError: a wrong number of rows, or types that differ between row groups.
    """
    first_row, schema = 0, None
    for group, num_rows in enumerate(row_counts or [0]):
        table = columns(group, first_row, num_rows)
        if table.num_rows != num_rows:
            raise InputError(
                f"row group {group} of {place} has {num_rows} rows but {table.num_rows} new values were given"
            )
        if schema is not None and table.schema != schema:
            raise InputError(f"the new columns of row group {group} of {place} differ in type from those before it")
        first_row, schema = first_row + num_rows, table.schema
        yield table


def with_field_ids(added: pa.Schema, old: pa.Schema) -> pa.Schema:
    """`added`, numbered on from the largest field id of `old` if all columns of `old` have one.

    A new field that brings its own id keeps it.
    """
    if not len(old) or any(_FIELD_ID not in (field.metadata or {}) for field in old):
        return added
    following = max(_field_ids(old)) + 1
    fields = []
    for field in added:
        metadata = field.metadata or {}
        if _FIELD_ID not in metadata:
            metadata = {**metadata, _FIELD_ID: str(following).encode()}
            following += 1
        fields.append(field.with_metadata(metadata))
    return pa.schema(fields, metadata=added.metadata)


def _field_ids(fields: Any) -> Iterator[int]:
    for field in fields:
        yield int((field.metadata or {}).get(_FIELD_ID, -1))
        yield from _field_ids([field.type.field(i) for i in range(field.type.num_fields)])


def bloom_filter_options(
    names: Set[str], metadata: pq.FileMetaData, old: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """What makes Arrow write bloom filters.

    Args:
        names: of new columns that get one, sized for the largest row group.
        metadata: of the file that they are added to.
        old: of columns of that file, by path, for how many values; they go without where Arrow cannot.

    Raises:
        UnsupportedError: this Arrow cannot, and new columns were to get one.
    """
    is_possible = "bloom_filter_options" in inspect.signature(pq.ParquetWriter.__init__).parameters
    if names and not is_possible:
        raise UnsupportedError(f"pyarrow {pa.__version__} cannot write bloom filters", hint="install a newer one")
    num_values = {**old, **dict.fromkeys(names, max(1, *row_counts(metadata), 1))}
    if not num_values or not is_possible:
        return {}
    return {"bloom_filter_options": {name: {"ndv": n, "fpp": _FALSE_POSITIVES} for name, n in num_values.items()}}


def merged_metadata(old: Mapping[bytes, bytes], added: pa.Schema, footer: Mapping[str, str]) -> dict[bytes, bytes]:
    """Key-value metadata with the new columns told to Hugging Face and pandas; without the Arrow schema."""
    metadata = {name: value for name, value in old.items() if name != b"ARROW:schema"}
    if b"huggingface" in metadata:
        metadata[b"huggingface"] = _extend_features(metadata[b"huggingface"], added)
    if b"pandas" in metadata:
        metadata[b"pandas"] = _without_columns(metadata[b"pandas"], set(added.names))
    return metadata | {name.encode(): value.encode() for name, value in footer.items()}


def _extend_features(block: bytes, added: pa.Schema) -> bytes:
    """Hugging Face checks its declared features against the columns, so new columns must be declared too."""
    described = _json_object(block)
    features = described.get("info", {}).get("features") if isinstance(described.get("info"), dict) else None
    if not isinstance(features, dict):
        return block
    for column in added:
        dtype = _HF_DTYPES.get(column.type, str(column.type))
        features[column.name] = {"dtype": dtype, "_type": "Value"}
    return json.dumps(described).encode()


def _without_columns(block: bytes, names: set[str]) -> bytes:
    """pandas reads undeclared columns as they are; a stale declaration of a replaced column would mislead it."""
    described = _json_object(block)
    listed = described.get("columns")
    if not isinstance(listed, list) or not any(isinstance(c, dict) and c.get("name") in names for c in listed):
        return block
    described["columns"] = [c for c in listed if not (isinstance(c, dict) and c.get("name") in names)]
    return json.dumps(described).encode()


def _json_object(block: bytes) -> dict[str, Any]:
    try:
        value = json.loads(block)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
