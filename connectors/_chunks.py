"""What a footer says of its chunks, checked before Arrow is asked: it ends the interpreter at some damaged ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from connectors._thrift import LIST, STRUCT, Located, Shape, ThriftError, integer_at, list_at, loads_head, locate

# Field numbers of parquet.thrift
_ROW_GROUPS, _CHUNKS, _METADATA, _CODEC, _SIZES = 4, 1, 3, 4, 16
_UNENCODED_BYTES, _REPETITIONS, _DEFINITIONS = 1, 2, 3
_NUM_CODECS = 8
_SHAPE: Shape = {_METADATA: {_CODEC: {}, _SIZES: {_UNENCODED_BYTES: {}, _REPETITIONS: {}, _DEFINITIONS: {}}}}


@dataclass(frozen=True)
class _Leaf:
    """What the schema says of a column: its levels by the field of the statistics that counts them."""

    path: str
    levels: tuple[tuple[int, int], ...]
    is_string: bool


def check_chunks(data: bytes, metadata: pq.FileMetaData) -> None:
    """Time in proportion to the footer.

    Args:
        data: the footer's Thrift bytes.
        metadata: the same as Arrow reads it.

    Raises:
        pa.ArrowInvalid: Arrow would end the interpreter when asked about a chunk.
    """
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    leaves = [
        _Leaf(
            path=column.path,
            levels=((_REPETITIONS, column.max_repetition_level), (_DEFINITIONS, column.max_definition_level)),
            is_string=column.physical_type == "BYTE_ARRAY",
        )
        for column in columns
    ]
    try:
        for number, group in enumerate(loads_head(data, _ROW_GROUPS, {_ROW_GROUPS: {}}).structs(_ROW_GROUPS)):
            _check_group(group.encoded(_CHUNKS), number, leaves)
    except ThriftError as error:
        raise pa.ArrowInvalid(f"the footer {error}") from error


def _check_group(data: bytes, number: int, leaves: Sequence[_Leaf]) -> None:
    num_chunks, kind, at = list_at(data, LIST, 0)
    if num_chunks != len(leaves) or kind != STRUCT:
        raise pa.ArrowInvalid(f"row group {number} lacks a column")
    for leaf in leaves:
        chunk, at = locate(data, at, _SHAPE)
        _, _, about = chunk.get(_METADATA, (0, 0, None))
        if about is None:
            raise pa.ArrowInvalid(f"row group {number} lacks a column")
        if _CODEC not in about:
            raise ThriftError(f"lacks field {_CODEC}")
        codec = integer_at(data, *about[_CODEC][:2])
        if not 0 <= codec < _NUM_CODECS:
            raise pa.ArrowInvalid(f"row group {number} has a codec {codec}, which is none")
        if _SIZES in about:
            _check_sizes(data, about[_SIZES][2], leaf)


def _check_sizes(data: bytes, sizes: Located | None, leaf: _Leaf) -> None:
    if sizes is None:
        raise ThriftError(f"has no struct in field {_SIZES}")
    for number, most in leaf.levels:
        if number in sizes and list_at(data, *sizes[number][:2])[0] not in (0, most + 1):
            raise pa.ArrowInvalid(f"the statistics of column {leaf.path!r} count levels that it does not have")
    if _UNENCODED_BYTES in sizes and not leaf.is_string:
        raise pa.ArrowInvalid(f"the statistics of column {leaf.path!r} count bytes, which only strings have")
