"""A Parquet object copied with columns added, one row group at a time, or a part of a large one."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connectors._batch_rows import choose_batch_rows, leaves_below
from connectors._new_columns import (
    DEFAULT_CODEC,
    ColumnSource,
    bloom_filter_options,
    check_names,
    check_not_itself,
    check_row_counts,
    checked_tables,
    merged_metadata,
    row_counts,
    with_field_ids,
)
from connectors._parquet_file import ParquetFile, check_unchanged, open_parquet, reading_errors
from connectors.errors import UnsupportedError
from connectors.store import ObjectInfo, Store, staged_file, stat_object

_DICTIONARY_ENCODINGS = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
_MOST_BYTES = 400_000_000
"""Of a row group that stays one: Arrow writes a row group from one table, so a larger one has to become several."""
_MOST_BLOOM_FILTER_VALUES = 2**31 - 1  # that Arrow takes
_KEPT_ENCODINGS = {"BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"}


def rewrite_with_columns(
    source_store: Store,
    file: ParquetFile,
    target_store: Store,
    target_path: str,
    columns: ColumnSource,
    *,
    footer_metadata: Mapping[str, str] | None = None,
    replace: Set[str] = frozenset(),
    bloom_filters: Set[str] = frozenset(),
) -> ObjectInfo:
    """Atomic: the target appears whole, or not at all. The source is never changed.

    Kept: values, row order, row groups (empty ones too; one of more than 400 MB as it is read becomes several), column
    order, types, nullability, field ids, field and key-value metadata, and per column the compression codec, dictionary
    or delta encoding. Bloom filters are made anew, where Arrow can. Hugging Face `features` are extended so that
    `datasets` loads the new columns. Not kept: compression level, page layout, `created_by`. Memory: the new columns of
    one row group, up to 400 MB of the old ones, or one row, what Arrow takes to write them, and the bloom filters.

    Args:
        source_store: where `file` is.
        file: as listed; its version is checked before and after.
        target_store: where the copy goes.
        target_path: must not be the source.
        columns: called once per row group, in order; once with (0, 0, 0) for a file without any.
        footer_metadata: added to the key-value metadata.
        replace: names that may already exist; they are replaced at their position.
        bloom_filters: the new columns that get one.

    Returns:
        The new object as the target lists it.

    Raises:
        SchemaError: a new column exists already and is not in `replace`.
        ConflictError: the source is not the listed object any more; nothing was written.
        CorruptFileError: the source cannot be decoded; nothing was written.
        ReadOnlyError: the target cannot be written.
    """
    check_not_itself(source_store, file, target_store, target_path)
    check_unchanged(source_store, file)
    with open_parquet(source_store, file) as (source, opened):
        place = source_store.describe(file.path)
        check_row_counts(source.metadata, place)
        counts = row_counts(source.metadata)
        tables = checked_tables(counts, columns, place)
        first = next(tables)
        plan = _plan(source, first.schema, replace, footer_metadata or {}, bloom_filters, place)
        batch_rows = [choose_batch_rows(source, opened, group, plan.leaves, n) for group, n in enumerate(counts)]
        options = plan.writer_options | {"write_batch_size": _page_check_rows(batch_rows, counts)}
        with staged_file(target_store, target_path) as sink:
            with pq.ParquetWriter(sink, plan.schema, **options) as writer:
                for group, rows in enumerate(batch_rows):
                    added = first if group == 0 else next(tables)
                    batches = _read(source_store, file, source, group, rows, plan.kept)
                    _write_group(writer, batches, added)
            check_unchanged(source_store, file)
    return stat_object(target_store, target_path)


@dataclass(frozen=True)
class _Plan:
    schema: pa.Schema
    kept: list[str] | None  # columns to read from the source; None reads all
    leaves: list[int]  # numbers of the leaf columns of these
    writer_options: dict[str, Any]


def _plan(
    source: pq.ParquetFile,
    added: pa.Schema,
    replace: Set[str],
    footer: Mapping[str, str],
    bloom_filters: Set[str],
    place: str,
) -> _Plan:
    old = source.schema_arrow
    if len(set(old.names)) != len(old.names):
        raise UnsupportedError(f"{place} has two columns of the same name", hint="rename one of them")
    check_names(old, added, replace, place)
    added = with_field_ids(added, old)
    fields = [added.field(f.name) if f.name in added.names else f for f in old]
    fields += [f for f in added if f.name not in old.names]
    metadata = merged_metadata(source.metadata.metadata or {}, added, footer)
    schema = pa.schema(fields, metadata=metadata)
    kept = [name for name in old.names if name not in added.names]
    return _Plan(
        schema,
        None if len(kept) == len(old.names) else kept,
        leaves_below(source, kept),
        _writer_options(source, schema, set(added.names), bloom_filters),
    )


def _page_check_rows(batch_rows: Sequence[int], counts: Sequence[int]) -> int:
    """After how many rows Arrow looks whether a page is full: 1024, or a twelfth of a batch where rows are long."""
    divided = [rows // 12 for rows, count in zip(batch_rows, counts, strict=True) if rows < count]
    return max(1, min([1024, *divided]))


def _read(
    store: Store, file: ParquetFile, source: pq.ParquetFile, group: int, rows: int, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
    with reading_errors(store, file.path):
        yield from source.iter_batches(rows, row_groups=[group], columns=columns)


def _write_group(writer: pq.ParquetWriter, batches: Iterable[pa.RecordBatch], added: pa.Table) -> None:
    """The rows of one row group with the new columns: as one again, or as several of up to 400 MB or one batch."""
    held: list[pa.RecordBatch] = []
    first_row, num_bytes = 0, 0
    for batch in batches:
        if held and num_bytes + batch.nbytes > _MOST_BYTES:
            num_rows = sum(each.num_rows for each in held)
            _write_rows(writer, held, added.slice(first_row, num_rows))
            held, num_bytes, first_row = [], 0, first_row + num_rows
        held.append(batch)
        num_bytes += batch.nbytes
    num_read = first_row + sum(each.num_rows for each in held)
    if num_read != added.num_rows:
        raise pa.ArrowInvalid(f"a row group has {num_read} rows, and {added.num_rows} by its footer")
    _write_rows(writer, held, added.slice(first_row))


def _write_rows(writer: pq.ParquetWriter, batches: list[pa.RecordBatch], added: pa.Table) -> None:
    table = writer.schema.empty_table()
    if batches:
        old = pa.Table.from_batches(batches)
        arrays = [added[name] if name in added.column_names else old[name] for name in writer.schema.names]
        table = pa.Table.from_arrays(arrays, schema=writer.schema)
    writer.write_table(table, row_group_size=max(1, table.num_rows))


def _writer_options(
    source: pq.ParquetFile, schema: pa.Schema, added: set[str], bloom_filters: Set[str]
) -> dict[str, Any]:
    """Codec, encoding and bloom filter of each old leaf column under its new path; the commonest codec for new ones."""
    written = source.metadata.schema
    old_paths = [written.column(leaf).path for leaf in range(len(written))]
    compliant = _leaf_paths(source.schema_arrow, compliant=False) != old_paths
    old_leaves = _leaves_by_field(source.schema_arrow, range(len(old_paths)))
    new_leaves = _leaves_by_field(schema, _leaf_paths(schema, compliant=compliant))
    codecs: dict[str, str] = {}
    dictionary: list[str] = []
    encodings: dict[str, str] = {}
    old_bloom_filters: dict[str, int] = {}
    for name, paths in new_leaves.items():
        if name in added:
            dictionary += paths
            continue
        for path, leaf in zip(paths, old_leaves[name], strict=True):
            codec, used = _codec_and_encodings(source.metadata, leaf)
            codecs[path] = codec
            if used & _DICTIONARY_ENCODINGS or not used:
                dictionary.append(path)
            elif used & _KEPT_ENCODINGS:
                encodings[path] = min(used & _KEPT_ENCODINGS)
            num_values = _bloom_filter_values(source.metadata, leaf)
            if num_values:
                old_bloom_filters[path] = num_values
    usual = Counter(codecs.values()).most_common(1)[0][0] if codecs else DEFAULT_CODEC
    codecs |= {path: usual for name in added for path in new_leaves[name]}
    return {
        "compression": codecs,
        "use_dictionary": dictionary,
        "column_encoding": encodings or None,
        "use_compliant_nested_type": compliant,
        "store_decimal_as_integer": any(_is_integer_decimal(written.column(leaf)) for leaf in range(len(written))),
        **bloom_filter_options(bloom_filters, source.metadata, old_bloom_filters),
    }


def _codec_and_encodings(metadata: pq.FileMetaData, leaf: int) -> tuple[str, set[str]]:
    """As in the first row group that holds values; ("zstd", empty set) if none does."""
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(leaf)
        if chunk.num_values:
            codec = str(chunk.compression).lower().split("_")[0]  # lz4_hadoop, lz4_raw → lz4
            # Arrow has no name for the first of the two lz4, as fastparquet writes it.
            named = {"uncompressed": "none", "lzo": DEFAULT_CODEC, "unknown": "lz4"}
            return named.get(codec, codec), set(chunk.encodings)
    return DEFAULT_CODEC, set()


def _is_integer_decimal(column: pq.ColumnSchema) -> bool:
    return column.logical_type.type == "DECIMAL" and column.physical_type in ("INT32", "INT64")


def _bloom_filter_values(metadata: pq.FileMetaData, leaf: int) -> int:
    """How many values a bloom filter of the column has to take, before Arrow makes it smaller; 0 if it has none."""
    groups = (metadata.row_group(group).column(leaf) for group in range(metadata.num_row_groups))
    num_values: list[int] = [chunk.num_values for chunk in groups if getattr(chunk, "bloom_filter_offset", None)]
    return min(max([0, *num_values]), _MOST_BLOOM_FILTER_VALUES)


def _leaves_by_field(schema: pa.Schema, leaves: Any) -> dict[str, list[Any]]:
    remaining = iter(leaves)
    return {field.name: [next(remaining) for _ in range(_num_leaves(field.type))] for field in schema}


def _num_leaves(type_: pa.DataType) -> int:
    if isinstance(type_, pa.BaseExtensionType):
        return _num_leaves(type_.storage_type)
    if pa.types.is_dictionary(type_) or type_.num_fields == 0:
        return 1
    return sum(_num_leaves(type_.field(i).type) for i in range(type_.num_fields))


def _leaf_paths(schema: pa.Schema, *, compliant: bool) -> list[str]:
    """The paths Arrow will write: compliant, every list's child is `element`, else it is named as in `schema`."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema, use_compliant_nested_type=compliant).close()
    written = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [written.column(i).path for i in range(len(written))]
