"""How many rows of a row group to decode at a time, so that a batch is of bounded size whatever the file holds."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors._thrift import ThriftError, loads_head

_USUAL_BYTES = 12_000_000
"""Of a batch: 480 rows of 24 kB at a time take 6 % less CPU than 4096, which no cache holds."""
_MOST_BYTES = 2**27
"""Of a batch of a column whose rows repeat one long value, unless a row alone is longer."""
_UNSEEN_BYTES = 2**28
"""What a batch may come to at worst before the values themselves are looked at."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
"""Bytes that a decoded value takes at least; runs of one value take no more than that of a file."""
_HEADER_BYTES = 64
_HEADER_UNCOMPRESSED, _HEADER_DICTIONARY, _NUM_VALUES = 2, 7, 1  # of parquet.thrift's PageHeader


def leaves_below(opened: pq.ParquetFile, columns: Sequence[str]) -> list[int]:
    """Numbers of the leaves of the top-level columns with these names, and perhaps of others that begin like them."""
    starts = tuple(f"{column}." for column in columns)
    return [n for n in range(len(opened.schema)) if f"{opened.schema.column(n).path}.".startswith(starts)]


def choose_batch_rows(
    opened: pq.ParquetFile, source: pa.NativeFile, group: int, leaves: Sequence[int], most: int
) -> int:
    """From 1 to `most`; of rows of the usual size as many as make about 12 MB.

    A footer says how long all values are that are stored, but a dictionary's value may stand in any number of rows: a
    file of a kilobyte can hold gigabytes of text. Where that is possible, and the dictionary's values are fewer than
    half of the rows, it is looked at. Not where there are more, as in what Arrow writes of long texts: looking would
    double the work, and only a file made for it has many values in its dictionary and one of them in all rows.

    Args:
        opened: the file.
        source: what it is read from.
        group: number of the row group.
        leaves: numbers of the leaf columns that are read.
        most: rows.
    """
    about = opened.metadata.row_group(group)
    chunks = [about.column(leaf) for leaf in leaves]
    least = sum(max(0, c.total_uncompressed_size, c.num_values * _WIDTHS.get(c.physical_type, 0)) for c in chunks)
    rows: int = max(1, min(most, about.num_rows, _USUAL_BYTES * about.num_rows // max(1, least)))
    for leaf, chunk in zip(leaves, chunks, strict=True):
        if not chunk.has_dictionary_page or rows * chunk.total_uncompressed_size <= _UNSEEN_BYTES:
            continue
        if chunk.physical_type == "BYTE_ARRAY":
            length, num_values = _dictionary_size(source, chunk)
            if rows * length > _UNSEEN_BYTES and 2 * num_values < chunk.num_values:
                length = _longest_value(opened, source, group, chunk.path_in_schema, length)
                rows = min(rows, max(1, _MOST_BYTES // max(1, length)))
        elif chunk.physical_type == "FIXED_LEN_BYTE_ARRAY":
            rows = min(rows, max(1, _MOST_BYTES // max(1, opened.schema.column(leaf).length)))
    return rows


def _dictionary_size(source: pa.NativeFile, chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """(bytes, values) of the chunk's dictionary; of the whole chunk, and 0, if its header cannot be read."""
    try:
        data = source.read_at(_HEADER_BYTES, chunk.dictionary_page_offset)
        header = loads_head(data, _HEADER_DICTIONARY, {_HEADER_DICTIONARY: {}})
        values = header.struct(_HEADER_DICTIONARY).integer(_NUM_VALUES)
        return max(0, header.integer(_HEADER_UNCOMPRESSED)), values
    except (ThriftError, pa.ArrowException, OSError, ValueError):
        return chunk.total_uncompressed_size, 0


def _longest_value(opened: pq.ParquetFile, source: pa.NativeFile, group: int, path: str, most: int) -> int:
    """Of the chunk's dictionary, in bytes; `most` for what is not read as one."""
    with pq.ParquetFile(source, metadata=opened.metadata, read_dictionary=[path]) as reader:
        batch = next(reader.iter_batches(1, row_groups=[group], columns=[path], use_threads=False), None)
    if batch is None or batch.num_columns != 1 or not pa.types.is_dictionary(batch.schema.types[0]):
        return most
    lengths = pc.binary_length(batch.column(0).dictionary.cast(pa.large_binary()))
    return int(pc.max(lengths).as_py() or 0)
