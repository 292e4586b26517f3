"""What a footer says of its chunks, checked before Arrow is asked: it ends the interpreter at some damaged ones."""

import pyarrow as pa
import pyarrow.parquet as pq

from connectors._thrift import Shape, Struct, ThriftError, list_length, loads_head

# Field numbers of parquet.thrift
_ROW_GROUPS, _CHUNKS, _METADATA, _CODEC, _SIZES = 4, 1, 3, 4, 16
_UNENCODED_BYTES, _REPETITIONS, _DEFINITIONS = 1, 2, 3
_NUM_CODECS = 8
_SHAPE: Shape = {_ROW_GROUPS: {_CHUNKS: {_METADATA: {}}}}


def check_chunks(data: bytes, metadata: pq.FileMetaData) -> None:
    """Time in proportion to the footer.

    Args:
        data: the footer's Thrift bytes.
        metadata: the same as Arrow reads it.

    Raises:
        pa.ArrowInvalid: Arrow would end the interpreter when asked about a chunk.
    """
    try:
        footer = loads_head(data, _ROW_GROUPS, _SHAPE)
        for number, group in enumerate(footer.structs(_ROW_GROUPS)):
            chunks = group.structs(_CHUNKS)
            if len(chunks) != metadata.num_columns or any(_METADATA not in chunk for chunk in chunks):
                raise pa.ArrowInvalid(f"row group {number} lacks a column")
            for leaf, chunk in enumerate(chunks):
                about = chunk.struct(_METADATA)
                if not 0 <= about.integer(_CODEC) < _NUM_CODECS:
                    raise pa.ArrowInvalid(f"row group {number} has a codec {about.integer(_CODEC)}, which is none")
                _check_sizes(about, metadata.schema.column(leaf))
    except ThriftError as error:
        raise pa.ArrowInvalid(f"the footer {error}") from error


def _check_sizes(about: Struct, column: pq.ColumnSchema) -> None:
    if _SIZES not in about:
        return
    sizes = about.encoded(_SIZES)
    levels = {_REPETITIONS: column.max_repetition_level, _DEFINITIONS: column.max_definition_level}
    known = loads_head(sizes, _DEFINITIONS)
    if any(number in known and list_length(sizes, number) not in (0, most + 1) for number, most in levels.items()):
        raise pa.ArrowInvalid(f"the statistics of column {column.path!r} count levels that it does not have")
    if _UNENCODED_BYTES in known and column.physical_type != "BYTE_ARRAY":
        raise pa.ArrowInvalid(f"the statistics of column {column.path!r} count bytes, which only strings have")
