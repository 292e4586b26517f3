"""Thrift structs read and written without loss, and without trust in what they claim."""

import io
import random
import struct
import time
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import num_steps

from connectors._thrift import (
    BINARY,
    BYTE,
    DOUBLE,
    FALSE,
    I16,
    I32,
    I64,
    LIST,
    MAP,
    SET,
    STRUCT,
    TRUE,
    ThriftError,
    dumps,
    integer_at,
    list_at,
    loads,
    loads_head,
    locate,
)

FOOTER_SHAPE = {2: {}, 4: {1: {3: {12: {}}}}, 5: {}, 7: {}}

# A second encoder, written from the specification. A struct is a list of (number, type, value).


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def zigzag(value):
    return varint(2 * value if value >= 0 else -2 * value - 1)


def encode(kind, value):
    match kind:
        case _ if kind in (I16, I32, I64):
            return zigzag(value)
        case _ if kind == BYTE:
            return bytes([value])
        case _ if kind == DOUBLE:
            return struct.pack("<d", value)
        case _ if kind == BINARY:
            return varint(len(value)) + value
        case _ if kind in (TRUE, FALSE):  # in a list
            return bytes([1 if value else 2])
        case _ if kind in (LIST, SET):
            inner, values = value
            head = (
                bytes([len(values) << 4 | inner]) if len(values) < 15 else bytes([0xF0 | inner]) + varint(len(values))
            )
            return head + b"".join(encode(inner, each) for each in values)
        case _ if kind == MAP:
            keys, values, entries = value
            body = b"".join(encode(keys, k) + encode(values, v) for k, v in entries)
            return varint(len(entries)) + (bytes([keys << 4 | values]) + body if entries else b"")
        case _:
            out, last = b"", 0
            for number, kind_, field in value:
                delta = number - last
                out += bytes([delta << 4 | kind_]) if 0 < delta < 16 else bytes([kind_]) + zigzag(number)
                out += b"" if kind_ in (TRUE, FALSE) else encode(kind_, field)
                last = number
            return out + b"\0"


INTEGERS = {I16: 15, I32: 31, I64: 63}
LEAVES = st.one_of(
    *[st.tuples(st.just(kind), st.integers(-(2**bits), 2**bits - 1)) for kind, bits in INTEGERS.items()],
    st.tuples(st.just(BYTE), st.integers(0, 255)),
    st.tuples(st.just(DOUBLE), st.floats(allow_nan=False)),
    st.tuples(st.just(BINARY), st.binary(max_size=300)),
    st.tuples(st.sampled_from([TRUE, FALSE]), st.booleans()),
)


def branches(inner):
    fields = st.dictionaries(st.integers(-40, 400), inner, max_size=6)
    structs = fields.map(lambda d: [(number, *typed) for number, typed in d.items()])

    def same_kind(typed):
        return st.lists(st.just(typed[1]), max_size=20).map(lambda values: (typed[0], values))

    lists = inner.flatmap(same_kind)
    maps = st.tuples(LEAVES, inner, st.integers(0, 3)).map(lambda m: (m[0][0], m[1][0], [(m[0][1], m[1][1])] * m[2]))
    return st.one_of(
        st.tuples(st.just(STRUCT), structs),
        st.tuples(st.sampled_from([LIST, SET]), lists),
        st.tuples(st.just(MAP), maps),
    )


FIELDS = st.dictionaries(st.integers(-40, 400), st.recursive(LEAVES, branches, max_leaves=12), max_size=8)


def as_struct(fields):
    return [(number, *typed) for number, typed in fields.items()]


def opening(fields):
    """The shape that opens everything that can be."""
    shape = {}
    for number, kind, value in fields:
        if kind == STRUCT:
            shape[number] = opening(value)
        elif kind == LIST and value[0] == STRUCT:
            shape[number] = {k: v for each in value[1] for k, v in opening(each).items()}
    return shape


@settings(max_examples=40)
@given(FIELDS.map(as_struct))
def test_any_struct_comes_back_byte_for_byte_opened_or_not(fields):
    data = encode(STRUCT, fields)
    assert dumps(loads(data, {})) == data
    assert dumps(loads(data, opening(fields))) == data


def naming(fields):
    """The shape that names every field of the struct and of structs in it."""
    return {number: naming(value) if kind == STRUCT else {} for number, kind, value in fields}


def check_located(data, fields, located):
    assert located.keys() == {number for number, _, _ in fields}
    for number, kind, value in fields:
        kind_read, at, inner = located[number]
        assert kind_read == kind
        if kind not in (TRUE, FALSE):
            assert data[at:].startswith(encode(kind, value))
        if kind == STRUCT and value:
            check_located(data, value, inner)


@settings(max_examples=40)
@given(FIELDS.map(as_struct))
def test_what_is_located_stands_where_it_was_written(fields):
    data = b"before" + encode(STRUCT, fields)
    located, end = locate(data + b"behind", len(b"before"), naming(fields))
    assert end == len(data)
    check_located(data, fields, located)
    for number, kind, value in fields:
        if kind in INTEGERS:
            assert integer_at(data, *located[number][:2]) == value
        if kind == LIST:
            assert list_at(data, *located[number][:2])[0] == len(value[1])


@pytest.mark.parametrize("data", [b"", b"\x15", b"\x18\x05abc", b"\x1c\x15"])
def test_what_is_cut_short_is_not_located(data):
    with pytest.raises(ThriftError, match="ends in the middle of a value"):
        locate(data, 0, {1: {1: {}}})


@settings(max_examples=40)
@given(FIELDS.map(as_struct))
def test_integers_and_bytes_are_what_was_written(fields):
    read = loads(encode(STRUCT, fields), {})
    for number, kind, value in fields:
        assert number in read
        if kind in INTEGERS:
            assert read.integer(number) == value
        if kind == BINARY:
            assert read.binary(number) == value


@settings(max_examples=40)
@given(FIELDS.map(as_struct), st.data())
def test_a_struct_cut_short_anywhere_is_an_error(fields, data):
    whole = encode(STRUCT, fields)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ThriftError, match="ends in the middle"):
        loads(whole[:cut], opening(fields))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_struct_or_a_thrift_error(data):
    try:
        read = loads(data, FOOTER_SHAPE)
    except ThriftError:
        return
    assert loads(dumps(read), FOOTER_SHAPE).fields.keys() == read.fields.keys()


HUGE = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends in the middle"),
        (b"\0\0", "has 1 bytes too many"),
        (b"\x18" + HUGE + b"abc\0", "ends in the middle"),  # a string of 2^63 bytes
        (b"\x19\xf8" + HUGE + b"\0" * 50, "ends in the middle"),  # a list of 2^63 strings
        (b"\x19\xfc" + HUGE + b"\0" * 50, "ends in the middle"),  # … of structs
        (b"\x19\xf1" + HUGE + b"\0", "ends in the middle"),  # … of booleans
        (b"\x19\xf7" + HUGE + b"\0", "ends in the middle"),  # … of doubles
        (b"\x19\xf0" + HUGE + b"\0", "unknown type 0"),  # … of values without bytes
        (b"\x1b" + HUGE + b"\x88" + b"\0" * 50, "ends in the middle"),  # a map of strings
        (b"\x1b" + HUGE + b"\x13" + b"\0" * 50, "ends in the middle"),  # … of booleans to bytes
        (b"\x1e\0", "unknown type 14"),
        (b"\x18" + b"\x80" * 5000 + b"\0", "more than 10 bytes"),  # a length without end
        (b"\x05" + b"\x80" * 5000 + b"\0", "more than 10 bytes"),  # a field number without end
        (b"\x1c" * 5000, "nests more than"),  # structs in structs
        (b"\x19" + b"\x19" * 5000, "nests more than"),  # lists in lists
        (b"\x1b" + b"\x01\x8b\0" * 5000, "nests more than"),  # maps in maps
        (b"\x15\x02\x05\x02\x04\0", "has field 1 twice"),
    ],
)
def test_what_lies_or_never_ends_is_an_error(data, message):
    for shape in ({}, {2: {}}):
        with pytest.raises(ThriftError, match=message):
            num_steps(partial(loads, data, shape), limit=20 * len(data) + 200)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x15\x02\0", "type 5 in field 1, where a struct"),
        (b"\x19\x15\x02\0", "list of type 5, where structs"),
    ],
)
def test_what_should_be_opened_and_is_something_else_is_an_error(data, message):
    with pytest.raises(ThriftError, match=message):
        loads(data, {1: {}})


def test_fields_of_another_type_and_absent_ones_are_errors():
    read = loads(encode(STRUCT, [(1, I32, 5), (2, BINARY, b"x")]), {})
    for get, number, message in [
        (read.integer, 2, "type 8 in field 2, where an integer"),
        (read.binary, 1, "type 5 in field 1, where bytes"),
        (read.struct, 1, "no struct in field 1"),
        (read.structs, 1, "no list of structs in field 1"),
        (read.integer, 9, "lacks field 9"),
    ]:
        with pytest.raises(ThriftError, match=message):
            get(number)


def test_the_head_of_a_struct_is_read_without_looking_at_the_rest():
    data = encode(STRUCT, [(1, I32, 5), (4, BINARY, b"x"), (7, I64, 9)])
    head = loads_head(data[:-2] + b"\xff", 4)
    assert (head.integer(1), head.binary(4), 7 in head) == (5, b"x", False)
    with pytest.raises(ThriftError, match="ends in the middle"):
        loads_head(data[:3], 4)


def test_fields_are_set_in_their_place():
    read = loads(encode(STRUCT, [(1, I32, 5), (4, BINARY, b"x"), (300, TRUE, True)]), {})
    read.set_integer(1, -7)
    read.set_binary(4, b"y" * 200)
    read.set_integer(3, 2**62)
    read.set_structs(7, [loads(encode(STRUCT, [(1, I64, number)]), {}) for number in range(20)])
    inner = [[(1, I64, number)] for number in range(20)]
    assert dumps(read) == encode(
        STRUCT, [(1, I32, -7), (3, I64, 2**62), (4, BINARY, b"y" * 200), (7, LIST, (STRUCT, inner)), (300, TRUE, True)]
    )


def footer_of(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    data = sink.getvalue()
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8], pq.read_metadata(sink)


def test_a_real_footer_says_what_arrow_reads_in_it():
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"], "c": [[1.5], [], None]})
    footer, metadata = footer_of(table, row_group_size=2)
    read = loads(footer, FOOTER_SHAPE)
    assert dumps(read) == footer
    assert read.integer(3) == 3
    assert read.binary(6).decode() == metadata.created_by
    for number, group in enumerate(read.structs(4)):
        assert group.integer(3) == metadata.row_group(number).num_rows
        for column, chunk in enumerate(group.structs(1)):
            seen = metadata.row_group(number).column(column)
            assert chunk.struct(3).integer(9) == seen.data_page_offset
            assert chunk.struct(3).integer(7) == seen.total_compressed_size


def test_a_footer_of_many_columns_is_read_and_written_in_steps_in_proportion():
    counts = {}
    for num_columns in (500, 2000):
        footer, _ = footer_of(pa.table({f"column {number}": [number] for number in range(num_columns)}))
        written = []
        counts[num_columns] = num_steps(lambda: written.append(dumps(loads(footer, FOOTER_SHAPE))))  # noqa: B023
        assert written == [footer]
    assert 10 * 2000 < counts[2000] < 5 * counts[500]


@pytest.mark.slow
def test_damaged_footers_are_read_or_refused():
    """Fuzz: a minute of real footers with bytes changed, removed, repeated and moved."""
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"], "c": [[1.5], [], None]})
    footers = [footer_of(table, row_group_size=size)[0] for size in (1, 3)]
    source = random.Random(0)
    deadline = time.monotonic() + 60
    num_read, num_refused = 0, 0
    while time.monotonic() < deadline:
        data = bytearray(source.choice(footers))
        for _ in range(source.randint(1, 4)):
            at, to = sorted(source.choices(range(len(data)), k=2))
            match source.randrange(5):
                case 0:
                    data[at] = source.randrange(256)
                case 1:
                    del data[at : at + source.randint(1, 8)]
                case 2:
                    data[at:at] = data[to : to + 40]
                case 3:
                    data[at:at] = bytes([source.choice([0x80, 0xFF, 0x1C, 0x19, 0x1B])]) * source.randint(1, 300)
                case 4:
                    data[at:] = data[to:]
            data = data or bytearray(b"\0")
        try:
            num_steps(partial(loads, bytes(data), FOOTER_SHAPE), limit=20 * len(data) + 200)
            num_read += 1
        except ThriftError:
            num_refused += 1
    assert num_read > 100
    assert num_refused > 100
