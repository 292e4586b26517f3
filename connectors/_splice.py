"""Columns spliced into a Parquet file: every old byte stays at its offset, new chunks follow, one footer ends both.

Nothing old is decoded, so it costs what copying the file costs, and loses nothing: bloom filters, page indexes, page
layout and whatever a writer did that Arrow does not do. The old footer is left out, its bytes come again merged; where
the storage joins whole objects alone (GCS) it stays in the middle, and nothing points to it.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from connectors._extend import extended_file, num_kept_bytes
from connectors._footer import (
    CHUNK_COLUMN_INDEX,
    CHUNK_CRYPTO,
    CHUNK_ENCRYPTED_METADATA,
    CHUNK_METADATA,
    CHUNK_OFFSET_INDEX,
    CHUNK_OFFSET_INDEX_BYTES,
    CHUNK_PATH,
    CODECS,
    FILE_ENCRYPTION,
    FILE_ROW_GROUPS,
    GROUP_CHUNKS,
    GROUP_ROWS,
    METADATA_BLOOM,
    METADATA_CODEC,
    METADATA_COMPRESSED_BYTES,
    METADATA_DICTIONARY,
    METADATA_PAGES,
    NEW_SHAPE,
    OLD_SHAPE,
    load_footer,
    merge_footers,
    move_chunks,
    moved_offset_index,
)
from connectors._new_columns import (
    DEFAULT_CODEC,
    ColumnSource,
    bloom_filter_options,
    check_names,
    check_not_itself,
    check_row_counts,
    checked_tables,
    row_counts,
    with_field_ids,
)
from connectors._parquet_file import (
    ParquetFile,
    check_unchanged,
    decoding_errors,
    framed_footer,
    parse_footer,
    read_footer,
)
from connectors._thrift import I32, Struct, ThriftError, dumps, loads, loads_head
from connectors.errors import CorruptFileError, InputError, UnsupportedError
from connectors.store import ObjectInfo, Store, stat_object

_MAGIC_BYTES = 4
_SIGNATURE_BYTES = 28


class NotSpliceableError(Exception):
    """The file can be rewritten but not spliced; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class _Source:
    """The old file: what is spliced on, and where."""

    place: str
    schema: pa.Schema
    footer: Struct
    num_kept: int
    metadata: pq.FileMetaData
    codec: str

    @property
    def distance(self) -> int:
        """From a position in a file of its own to that in the spliced file, whose magic is the old one."""
        return self.num_kept - _MAGIC_BYTES


def splice_columns(
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

    Kept: every byte before the footer, at its offset, and all that the footer says. The new columns have the row
    groups of the others, the codec of most of them, statistics and page indexes. Arguments and errors as
    `rewrite_with_columns`. Memory: the new columns of one row group, the footer, and what `extended_file` takes.

    Raises:
        NotSpliceableError: the file needs a rewrite; nothing was written.
        UnsupportedError: encrypted columns, or columns kept in other files.
        CorruptFileError: the footer places columns outside of the file; nothing was written.
    """
    check_not_itself(source_store, file, target_store, target_path)
    check_unchanged(source_store, file)
    source = _read_source(source_store, file, target_store)
    tables = checked_tables(row_counts(source.metadata), columns, source.place)
    first = next(tables)
    check_names(source.schema, first.schema, replace, source.place)
    added = _spliceable(source.schema, first.schema)
    options = bloom_filter_options(bloom_filters, source.metadata) | {"compression": source.codec}
    listed = ObjectInfo(file.path, file.size_bytes, file.version)
    with extended_file(source_store, listed, source.num_kept, target_store, target_path) as sink:
        held = _write_chunks(sink, first, tables, added, options)
        sink.write(_ending(source, held, added, footer_metadata or {}))
        check_unchanged(source_store, file)
    return stat_object(target_store, target_path)


def _read_source(store: Store, file: ParquetFile, target_store: Store) -> _Source:
    place = store.describe(file.path)
    listed = ObjectInfo(file.path, file.size_bytes, file.version)
    data = read_footer(store, listed)
    with decoding_errors(store, file.path):
        metadata = parse_footer(data)
    footer = _load_footer(data, metadata.num_columns, place)
    footer_start = file.size_bytes - len(data) - 8
    with _refusals("its footer"):
        _check_positions(footer, footer_start, place)
        codec = _usual_codec(footer)
    check_row_counts(metadata, place)
    counts = row_counts(metadata)
    if not counts or min(counts) < 1:
        raise NotSpliceableError("it has an empty row group" if counts else "it has no row group")
    num_kept = num_kept_bytes(store, listed, footer_start, target_store)
    return _Source(place, file.schema, footer, num_kept, metadata, codec)


def _load_footer(data: bytes, num_columns: int, place: str) -> Struct:
    with _refusals("its footer"):
        try:
            footer = load_footer(data)
        except ThriftError:
            if not _is_signed(data):
                raise
            raise UnsupportedError(f"{place} has encrypted columns", hint="write it without encryption") from None
        groups = [group.structs(GROUP_CHUNKS) for group in footer.structs(FILE_ROW_GROUPS)]
    chunks = [chunk for group in groups for chunk in group]
    if FILE_ENCRYPTION in footer or any(CHUNK_CRYPTO in chunk or CHUNK_ENCRYPTED_METADATA in chunk for chunk in chunks):
        raise UnsupportedError(f"{place} has encrypted columns", hint="write it without encryption")
    if any(CHUNK_PATH in chunk for chunk in chunks):
        raise UnsupportedError(f"{place} keeps columns in other files", hint="write it as one file")
    # Arrow would end the interpreter when asked about a column that a row group does not have.
    if any(len(group) != num_columns for group in groups) or any(CHUNK_METADATA not in chunk for chunk in chunks):
        raise CorruptFileError(f"{place} is damaged: a row group in its footer lacks a column", hint="write it again")
    return footer


def _is_signed(data: bytes) -> bool:
    """Whether it is the footer of an encrypted file that is not itself encrypted: a signature follows it."""
    try:
        return FILE_ENCRYPTION in loads(data[:-_SIGNATURE_BYTES], OLD_SHAPE)
    except ThriftError:
        return False


def _check_positions(footer: Struct, footer_start: int, place: str) -> None:
    for number, group in enumerate(footer.structs(FILE_ROW_GROUPS)):
        if not group.integer(GROUP_ROWS):  # what has no pages is nowhere
            continue
        for leaf, chunk in enumerate(group.structs(GROUP_CHUNKS)):
            about = loads_head(chunk.encoded(CHUNK_METADATA), METADATA_DICTIONARY)
            pages = about.integer(METADATA_PAGES)
            dictionary = about.integer(METADATA_DICTIONARY) if METADATA_DICTIONARY in about else 0
            start = min(dictionary or pages, pages)  # some writers give a dictionary where there is none
            if not _MAGIC_BYTES <= start <= start + about.integer(METADATA_COMPRESSED_BYTES) <= footer_start:
                raise CorruptFileError(
                    f"{place} is damaged: its footer places column {leaf + 1} of row group {number} outside of the "
                    "file",
                    hint="write it again",
                )


def _usual_codec(footer: Struct) -> str:
    """The codec of most columns."""
    chunks = [chunk for group in footer.structs(FILE_ROW_GROUPS)[:1] for chunk in group.structs(GROUP_CHUNKS)]
    heads = [loads_head(chunk.encoded(CHUNK_METADATA), METADATA_CODEC) for chunk in chunks]
    codecs = Counter(CODECS.get(head.integer(METADATA_CODEC)) for head in heads)
    return (codecs.most_common(1)[0][0] if codecs else None) or DEFAULT_CODEC


def _spliceable(old: pa.Schema, added: pa.Schema) -> pa.Schema:
    """The new columns as they are written."""
    replaced = [name for name in added.names if name in old.names]
    if replaced:
        raise NotSpliceableError(f"column {replaced[0]!r} is replaced")
    if not len(added) or len(set(added.names)) != len(added):
        raise InputError("columns to add need names that differ, and at least one of them")
    for field in added:
        if field.type.num_fields:
            raise NotSpliceableError(f"new column {field.name!r} is nested")
    return with_field_ids(added, old)


def _write_chunks(
    sink: BinaryIO, first: pa.Table, others: Iterator[pa.Table], schema: pa.Schema, options: Mapping[str, Any]
) -> "_Chunks":
    """Writes the pages of the new columns to `sink`; returns what belongs behind them."""
    chunks = _Chunks(sink)
    with pq.ParquetWriter(chunks, schema, write_page_index=True, store_schema=False, **options) as writer:
        for table in _and_then(first, others):
            columns = pa.Table.from_arrays(table.columns, schema=schema)
            writer.write_table(columns, row_group_size=table.num_rows)
        chunks.hold()
    return chunks


def _and_then(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from others


class _Chunks(io.RawIOBase):
    """A file of the new columns alone, as Arrow writes it: passed on up to `hold` without its magic, then kept."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._holds = False
        self.num_passed_on = 0
        self.held = bytearray()

    def hold(self) -> None:
        """From here on keep the bytes; `held` begins at position `num_passed_on`."""
        self._holds = True

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._holds:
            self.held += data
        else:
            self._sink.write(data[max(0, _MAGIC_BYTES - self.num_passed_on) :])
            self.num_passed_on += len(data)
        return len(data)

    def at(self, start: int, end: int) -> bytes:
        """The bytes [start, end) of the file, none of which were passed on."""
        if start < self.num_passed_on:
            raise NotSpliceableError("this Arrow orders the parts of a file in a way that is not known here")
        return bytes(self.held[start - self.num_passed_on : end - self.num_passed_on])


def _ending(source: _Source, new: _Chunks, added: pa.Schema, metadata: Mapping[str, str]) -> bytes:
    """What follows the pages: bloom filters and column indexes as they are, offset indexes, the merged footer."""
    data = bytes(new.held)
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    with _refusals("the footer of its new columns"):
        footer = loads(data[-8 - footer_bytes : -8], NEW_SHAPE)
        groups = footer.structs(FILE_ROW_GROUPS)
        if len(groups) != source.metadata.num_row_groups:
            raise NotSpliceableError("it has row groups of more rows than Arrow writes into one")
        chunks = [chunk for group in groups for chunk in group.structs(GROUP_CHUNKS)]
        indexed = [chunk for chunk in chunks if CHUNK_OFFSET_INDEX in chunk]
        end_of_file = new.num_passed_on + len(data) - 8 - footer_bytes
        start = min([chunk.integer(CHUNK_OFFSET_INDEX) for chunk in indexed], default=end_of_file)
        if any(position >= start for chunk in chunks for position in _other_positions(chunk)):
            raise NotSpliceableError("this Arrow orders the parts of a file in a way that is not known here")
        out = bytearray(new.at(new.num_passed_on, start))
        move_chunks(groups, source.distance)
        for chunk in indexed:
            moved_from = chunk.integer(CHUNK_OFFSET_INDEX) - source.distance
            index = new.at(moved_from, moved_from + chunk.integer(CHUNK_OFFSET_INDEX_BYTES))
            chunk.set_integer(CHUNK_OFFSET_INDEX, source.distance + new.num_passed_on + len(out))
            index = moved_offset_index(index, source.distance)
            chunk.set_integer(CHUNK_OFFSET_INDEX_BYTES, len(index), I32)
            out += index
    with _refusals("its footer"):
        merge_footers(source.footer, footer, added, metadata)
        merged = dumps(source.footer)
        _check_merged(source, merged, added)
    return bytes(out) + framed_footer(merged)


def _other_positions(chunk: Struct) -> Iterator[int]:
    if CHUNK_COLUMN_INDEX in chunk:
        yield chunk.integer(CHUNK_COLUMN_INDEX)
    if METADATA_BLOOM in chunk.struct(CHUNK_METADATA):
        yield chunk.struct(CHUNK_METADATA).integer(METADATA_BLOOM)


def _check_merged(source: _Source, merged: bytes, added: pa.Schema) -> None:
    """Arrow must see the old columns in the new footer as it did before, and the new ones behind them."""
    metadata = parse_footer(merged)
    schema = metadata.schema.to_arrow_schema()
    num_old = len(source.schema)
    same = all(schema.field(i).equals(field, check_metadata=True) for i, field in enumerate(source.schema))
    if not same or schema.names[num_old:] != added.names or row_counts(metadata) != row_counts(source.metadata):
        raise NotSpliceableError("its columns would not be read as before behind a merged footer")


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Within it, what cannot be read or merged leaves as NotSpliceableError."""
    try:
        yield
    except ThriftError as error:
        raise NotSpliceableError(f"{what} {error}") from error
    except (pa.ArrowException, ValueError, OSError) as error:
        raise NotSpliceableError(f"Arrow does not read {what} with the new columns ({error})") from error
