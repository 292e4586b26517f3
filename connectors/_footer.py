"""Parquet footers as structs: what the old file's says, with what a file of only the new columns says merged in."""

import base64
from collections.abc import Mapping

import pyarrow as pa

from connectors._new_columns import merged_metadata
from connectors._thrift import I32, Shape, Struct, ThriftError, dumps, loads

# Field numbers of parquet.thrift
FILE_SCHEMA, FILE_ROW_GROUPS, FILE_METADATA, FILE_ORDERS, FILE_ENCRYPTION = 2, 4, 5, 7, 8
GROUP_CHUNKS, GROUP_BYTES, GROUP_ROWS, GROUP_COMPRESSED_BYTES = 1, 2, 3, 6
CHUNK_PATH, CHUNK_OFFSET, CHUNK_METADATA, CHUNK_CRYPTO, CHUNK_ENCRYPTED_METADATA = 1, 2, 3, 8, 9
CHUNK_OFFSET_INDEX, CHUNK_OFFSET_INDEX_BYTES, CHUNK_COLUMN_INDEX = 4, 5, 6
METADATA_CODEC, METADATA_COMPRESSED_BYTES, METADATA_PAGES, METADATA_DICTIONARY, METADATA_BLOOM = 4, 7, 9, 11, 14
METADATA_OFFSETS = (METADATA_PAGES, 10, METADATA_DICTIONARY, METADATA_BLOOM)
ELEMENT_NUM_CHILDREN = 5
KEY, VALUE = 1, 2
# As Arrow is told them; Arrow does not write LZO (3)
CODECS = {0: "none", 1: "snappy", 2: "gzip", 4: "brotli", 5: "lz4", 6: "zstd", 7: "lz4"}
INDEX_LOCATIONS, LOCATION_OFFSET = 1, 1

# An old file's column metadata is most of its footer, and stays as it is.
OLD_SHAPE: Shape = {FILE_SCHEMA: {}, FILE_ROW_GROUPS: {GROUP_CHUNKS: {}}, FILE_METADATA: {}, FILE_ORDERS: {}}
NEW_SHAPE: Shape = {FILE_SCHEMA: {}, FILE_ROW_GROUPS: {GROUP_CHUNKS: {CHUNK_METADATA: {}}}, FILE_ORDERS: {}}
INDEX_SHAPE: Shape = {INDEX_LOCATIONS: {}}


def load_footer(data: bytes) -> Struct:
    """An old file's footer, which `dumps` gives back byte for byte.

    Raises:
        ThriftError: it would not come back as it is; the message goes on after "its footer".
    """
    footer = loads(data, OLD_SHAPE)
    if dumps(footer) != data:
        raise ThriftError("is written in a form that would not come back byte for byte")
    return footer


def move_chunks(groups: list[Struct], distance: int) -> None:
    """Adds `distance` to every position in the row groups of a file opened as `NEW_SHAPE`."""
    for group in groups:
        for chunk in group.structs(GROUP_CHUNKS):
            for number in (CHUNK_OFFSET_INDEX, CHUNK_COLUMN_INDEX):
                _move(chunk, number, distance)
            if chunk.integer(CHUNK_OFFSET):  # zero: deprecated, not set
                _move(chunk, CHUNK_OFFSET, distance)
            for number in METADATA_OFFSETS:
                _move(chunk.struct(CHUNK_METADATA), number, distance)


def moved_offset_index(data: bytes, distance: int) -> bytes:
    """An offset index with `distance` added to the position of every page."""
    index = loads(data, INDEX_SHAPE)
    for location in index.structs(INDEX_LOCATIONS):
        _move(location, LOCATION_OFFSET, distance)
    return dumps(index)


def merge_footers(footer: Struct, new: Struct, added: pa.Schema, metadata: Mapping[str, str]) -> None:
    """Changes `footer` to say what `new` says too, whose row groups have the same rows.

    Raises:
        ThriftError: a field that has to be there is not.
        ValueError, pa.ArrowException: the Arrow schema in it cannot be read.
    """
    schema, new_schema = footer.structs(FILE_SCHEMA), new.structs(FILE_SCHEMA)
    if not schema:
        raise ThriftError("has no schema")
    root = schema[0]
    root.set_integer(ELEMENT_NUM_CHILDREN, root.integer(ELEMENT_NUM_CHILDREN) + len(added), I32)
    schema += new_schema[1:]
    for group, new_group in zip(footer.structs(FILE_ROW_GROUPS), new.structs(FILE_ROW_GROUPS), strict=True):
        _merge_groups(group, new_group)
    if FILE_ORDERS in footer:
        footer.structs(FILE_ORDERS).extend(new.structs(FILE_ORDERS))
    pairs = footer.structs(FILE_METADATA) if FILE_METADATA in footer else []
    merged = _merged_pairs(pairs, added, metadata)
    if merged:
        footer.set_structs(FILE_METADATA, merged)


def _move(struct: Struct, number: int, distance: int) -> None:
    if number in struct:
        struct.set_integer(number, struct.integer(number) + distance)


def _merge_groups(group: Struct, new: Struct) -> None:
    chunks = new.structs(GROUP_CHUNKS)
    group.structs(GROUP_CHUNKS).extend(chunks)
    _move(group, GROUP_BYTES, new.integer(GROUP_BYTES))
    compressed = sum(chunk.struct(CHUNK_METADATA).integer(METADATA_COMPRESSED_BYTES) for chunk in chunks)
    _move(group, GROUP_COMPRESSED_BYTES, compressed)


def _merged_pairs(pairs: list[Struct], added: pa.Schema, metadata: Mapping[str, str]) -> list[Struct]:
    old = {pair.binary(KEY): pair.binary(VALUE) for pair in pairs if VALUE in pair}
    new = merged_metadata(old, added, metadata)
    if b"ARROW:schema" in old:
        new[b"ARROW:schema"] = _extended_arrow_schema(old[b"ARROW:schema"], added)
    for pair in pairs:
        name = pair.binary(KEY)
        if name in new and new[name] != old.get(name):
            pair.set_binary(VALUE, new[name])
    return pairs + [_pair(name, value) for name, value in new.items() if name not in old]


def _pair(name: bytes, value: bytes) -> Struct:
    pair = Struct({})
    pair.set_binary(KEY, name)
    pair.set_binary(VALUE, value)
    return pair


def _extended_arrow_schema(encoded: bytes, added: pa.Schema) -> bytes:
    old = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded)))
    metadata = merged_metadata(old.metadata, added, {}) if old.metadata else None
    schema = pa.schema([*old, *added], metadata=metadata)
    return base64.b64encode(schema.serialize().to_pybytes())
