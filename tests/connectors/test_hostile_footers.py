"""Footers that claim more than they have, or have more than anybody reads: one sentence, in little time and memory."""

import random
import signal
import time
import tracemalloc
from functools import partial
from importlib.util import find_spec

import pytest
from parquet_engines import write_by_datasets, write_by_duckdb, write_by_fastparquet, write_by_polars
from splice_cases import TABLE, arrow, footer_start, new_columns
from steps import num_steps
from storage_faults import in_child

from connectors._footer import NEW_SHAPE
from connectors._parquet_file import read_parquet_info
from connectors._rewrite import rewrite_with_columns
from connectors._thrift import ThriftError, dumps, list_length, loads
from connectors.errors import ConnectorError, CorruptFileError, InputError, UnsupportedError
from connectors.parquet import add_columns, iter_batches
from connectors.store import open_store, stat_object, write_object

STRUCT = 12


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def integer(number):
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def list_head(length, kind=STRUCT):
    return bytes([0xF0 | kind]) + varint(length)


def leaf(name=b"c"):
    """A SchemaElement: type double, optional, name."""
    return b"\x15" + integer(5) + b"\x25" + integer(1) + b"\x18" + varint(len(name)) + name + b"\x00"


def group(num_children):
    """A SchemaElement with children: optional, name, num_children."""
    return b"\x35" + integer(1) + b"\x18\x01g" + b"\x15" + integer(num_children) + b"\x00"


def footer(elements, length, groups=b"\xfc\x00"):
    """FileMetaData: version, the schema's elements (claimed to be so many), no rows, row groups."""
    return b"\x15\x02\x19" + list_head(length) + elements + b"\x16\x00\x19" + groups + b"\x00"


EMPTY_GROUP = b"\x19" + b"\xfc\x00" + b"\x16\x00\x16\x00\x00"
HOSTILE = {
    "nests 1000 deep": footer(group(1) * 1000 + leaf(), 1001),
    "nests 90 000 deep": footer(group(1) * 90_000 + leaf(), 90_001),
    "claims children": footer(group(2**31 - 1) + leaf(), 2),
    "claims fewer than no children": footer(group(-5) + leaf(), 2),
    "claims columns": footer(group(1) + leaf(), 90_000),
    "claims a name": footer(group(1) + b"\x18" + varint(2**31 - 1) + b"c\x00", 2),
    "claims row groups": footer(group(1) + leaf(), 2, list_head(2**31 - 1)),
    "has a million row groups of nothing": footer(group(1) + leaf(), 2, list_head(1_000_001) + EMPTY_GROUP * 1_000_001),
    "two columns of one name that is empty": footer(group(2) + leaf(b"") * 2, 3),
}


def put(store, data, before=b""):
    write_object(store, "a.parquet", b"PAR1" + before + data + len(data).to_bytes(4, "little") + b"PAR1")
    return stat_object(store, "a.parquet")


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_a_footer_claims_costs_nothing(url, data):
    """Either it is refused, or what is read of it is no more than it has."""
    store = open_store(url)
    listed = put(store, data)
    said, columns = "", []
    try:
        num_steps(lambda: columns.extend(read_parquet_info(store, listed).schema), limit=10 * len(data) + 20_000)
    except InputError as error:
        said = str(error)
    assert len(columns) <= 2
    assert columns or ("a.parquet" in said and "\n" not in said)


@pytest.mark.parametrize("num_columns", [100_000, 1_000_000])
def test_a_footer_of_very_many_columns_is_refused_before_it_is_taken_apart(url, num_columns):
    store = open_store(url)
    data = footer(group(num_columns) + leaf() * num_columns, num_columns + 1)
    listed = put(store, data)
    tracemalloc.start()
    with pytest.raises(UnsupportedError, match=rf"a\.parquet has {num_columns + 1:,} columns .* at most 100,000 are"):
        num_steps(partial(read_parquet_info, store, listed), limit=20_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(data) + 1_000_000


def test_a_footer_of_many_megabytes_is_not_fetched(tmp_path):
    """The file has nothing but its length, and its last bytes."""
    num_bytes = 200_000_000
    with (tmp_path / "a.parquet").open("wb") as sink:
        sink.write(b"PAR1")
        sink.truncate(num_bytes + 4)
        sink.seek(num_bytes + 4)
        sink.write(num_bytes.to_bytes(4, "little") + b"PAR1")
    store = open_store(str(tmp_path))
    tracemalloc.start()
    with pytest.raises(UnsupportedError, match=r"a\.parquet has a footer of 200 MB, and at most 134 are read"):
        read_parquet_info(store, stat_object(store, "a.parquet"))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_most_columns_that_are_read_are_read(url):
    store = open_store(url)
    elements = b"".join(leaf(b"c%d" % number) for number in range(99_999))
    file = read_parquet_info(store, put(store, footer(group(99_999) + elements, 100_000)))
    assert len(file.schema) == 99_999


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x15\x02\x00", b"\x15\x02\x15\x02\x00", b"\x02", b"\x15\x02\x19"])
def test_the_length_of_a_list_that_is_not_there(data):
    with pytest.raises(ThriftError):
        list_length(data, 2)


def test_a_sentence_of_arrows_is_one_line(url):
    store = open_store(url)
    with pytest.raises(CorruptFileError, match=r"a\.parquet is damaged: .*; write it again$"):
        read_parquet_info(store, put(store, footer(group(1) + leaf(), 90_000)))


LEVELS = b"\x39\x56" + bytes(6)  # SizeStatistics: a definition_level_histogram of five levels
BYTES = b"\x16\x02\x00"  # SizeStatistics: unencoded_byte_array_data_bytes
CHUNKS = {
    "levels that the column does not have": lambda about: about.fields.update({16: (STRUCT, LEVELS)}),
    "lengths of numbers": lambda about: about.fields.update({16: (STRUCT, BYTES)}),
    "a codec that is none": lambda about: about.set_integer(4, 99),
}


@pytest.mark.parametrize("change", CHUNKS.values(), ids=CHUNKS)
def test_chunks_at_which_arrow_would_end_the_interpreter_are_damage(change):
    data = arrow(TABLE.select(["id", "text"]))
    read = loads(data[footer_start(data) : -8], NEW_SHAPE)
    change(read.structs(4)[0].structs(1)[0].struct(3))
    footer = dumps(read)

    def work():
        store = open_store("memory://damaged-chunks")
        listed = put(store, footer, before=data[4 : footer_start(data)])
        file = read_parquet_info(store, listed)
        with pytest.raises(CorruptFileError, match=r"a\.parquet is damaged"):
            list(iter_batches(store, file, ["id"]))
        with pytest.raises(CorruptFileError, match=r"a\.parquet is damaged"):
            rewrite_with_columns(store, file, store, "b.parquet", new_columns)

    assert in_child(work) == 0


def test_rows_that_do_not_add_up_are_damage_in_a_rewrite_too(url):
    data = arrow(TABLE)
    read = loads(data[footer_start(data) : -8], NEW_SHAPE)
    read.set_integer(3, len(TABLE) + 1)
    store = open_store(url)
    file = read_parquet_info(store, put(store, dumps(read), before=data[4 : footer_start(data)]))
    with pytest.raises(CorruptFileError, match=r"a\.parquet is damaged: its row groups do not add up"):
        rewrite_with_columns(store, file, store, "b.parquet", new_columns)


FLAT = TABLE.drop_columns(["tags"])
WRITERS = {
    "polars": lambda path: write_by_polars(TABLE, path, 17),
    "duckdb": lambda path: write_by_duckdb(TABLE, path, 2048, "v2"),
    "datasets": lambda path: write_by_datasets(FLAT, path, 17),
    "fastparquet": lambda path: write_by_fastparquet(FLAT, path, 17),
}
FILES_A_PROCESS, SECONDS_A_PROCESS = 200, 60


def add_to_damaged(files, numbers):
    """Each number is a file with up to four bytes of its footer changed: it is refused, or gets the new columns."""
    signal.alarm(SECONDS_A_PROCESS)
    values = new_columns(0, 0, len(TABLE))
    store = open_store("memory://damaged-footers")
    for number in numbers:
        source = random.Random(number)
        data = bytearray(source.choice(files))
        start = footer_start(data)
        for _ in range(source.randint(1, 4)):
            data[source.randrange(start, len(data) - 8)] = source.randrange(256)
        write_object(store, "a.parquet", bytes(data))
        try:
            file = read_parquet_info(store, stat_object(store, "a.parquet"))
            replaced = {"rank"} if source.random() < 0.5 else set()
            columns = values.append_column("id", values["rank"]) if replaced else values
            added = add_columns(
                store, file, store, "b.parquet", lambda _, at, n, c=columns: c.slice(at, n), replace={"id", *replaced}
            )
        except ConnectorError:
            continue
        except BaseException as error:
            raise AssertionError(f"file {number}") from error
        assert read_parquet_info(store, added.written).num_rows == file.num_rows, number


@pytest.mark.slow
def test_damaged_footers_of_every_writer_are_spliced_rewritten_or_refused(tmp_path):
    """Fuzz: a minute, in processes of their own, since Arrow ends the one that asks it about some damaged footers."""
    files = [arrow(TABLE, row_group_size=17, bloom_filter_options={"id": {"ndv": 60}}, write_page_index=True)]
    for name, write in WRITERS.items():
        if find_spec(name):
            write(tmp_path / name)
            files.append((tmp_path / name).read_bytes())
    deadline, number = time.monotonic() + 60, 0
    while time.monotonic() < deadline:
        numbers = range(number, number + FILES_A_PROCESS)
        assert in_child(partial(add_to_damaged, files, numbers)) == 0, numbers
        number += FILES_A_PROCESS
    assert number > FILES_A_PROCESS
