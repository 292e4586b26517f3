"""Columns spliced into files of several writers with all kinds of columns and layouts, as several engines see them."""

import datetime as dt
import decimal
import io
from importlib.util import find_spec

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from parquet_engines import (
    READERS,
    engine,
    write_by_datasets,
    write_by_duckdb,
    write_by_fastparquet,
    write_by_polars,
)
from splice_cases import ADDED, NUM_ROWS, TABLE, arrow, check_contents, new_columns, put, spliced

from connectors.parquet import add_columns
from connectors.store import open_store

# fastparquet fails on many small files whoever wrote them: it reads those of fixed columns alone, below.
INSTALLED = [name for name in READERS if find_spec(name) and name != "fastparquet"]
# Shrinking a failure would take minutes, each try being two files and ten reads.
QUICK = [Phase.explicit, Phase.reuse, Phase.generate]
DRAWN = {"deadline": None, "phases": QUICK, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

# any columns ------------------------------------------------------------------------------------------------------

STRUCT = pa.struct({"x": pa.list_(pa.int32()), "y": pa.string()})
FLAT = {
    pa.string(): st.text(max_size=8).filter(lambda s: "\0" not in s),
    pa.large_string(): st.sampled_from(["", "ü", "x" * 300]),
    pa.binary(): st.binary(max_size=5),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.decimal128(12, 2): st.integers(-(10**9), 10**9).map(lambda i: decimal.Decimal(i).scaleb(-2)),
    pa.timestamp("us", tz="Europe/Berlin"): st.integers(0, 2**50),
    pa.timestamp("ns"): st.integers(0, 2**50).map(lambda us: us * 1000),  # version 2.4 has no nanoseconds
    pa.date32(): st.dates(dt.date(1800, 1, 1), dt.date(2200, 1, 1)),  # fastparquet: in nanoseconds
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["web", "code", ""]),
}
NESTED = {
    pa.list_(pa.string()): st.lists(st.none() | st.text("ab", max_size=3), max_size=3),
    pa.list_(STRUCT): st.lists(
        st.fixed_dictionaries({"x": st.lists(st.integers(0, 9), max_size=2), "y": st.none() | st.just("z")}), max_size=2
    ),
    pa.map_(pa.string(), pa.int64()): st.lists(st.tuples(st.just("k"), st.integers(0, 9)), max_size=2),
    pa.null(): st.none(),
}
# Without the Arrow schema, which not all files have, other types would come back as one of these.
NEW = {kind: FLAT[kind] for kind in FLAT if kind.id not in (pa.large_string().id, pa.timestamp("us").id)}
del NEW[pa.dictionary(pa.int8(), pa.string())]
# DataFusion tells -0 from 0.
NEW |= {kind: NEW[kind].map(lambda value: value + 0.0) for kind in (pa.float32(), pa.float64())}
NEW |= {pa.uint32(): st.integers(0, 2**32 - 1), pa.timestamp("us", tz="UTC"): st.integers(0, 2**50)}


def column(draw, kind, values, num_rows):
    drawn = draw(st.lists(values, min_size=num_rows, max_size=num_rows))
    return pa.array(drawn, pa.string()).cast(kind) if pa.types.is_dictionary(kind) else pa.array(drawn, kind)


@st.composite
def tables(draw, kinds):
    chosen = draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=4))
    num_rows = draw(st.integers(1, 12))
    arrays = [column(draw, kind, st.none() | kinds[kind], num_rows) for kind in chosen]
    fields = [
        pa.field(f"{'ü.' * (n % 2)}column {n}", kind, metadata={"note": "x", "PARQUET:field_id": str(n + 7)})
        for n, kind in enumerate(chosen)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={"own": "metadata"}))


@st.composite
def additions(draw, num_rows):
    """The new columns of a file, and those of them that get a bloom filter."""
    fields, arrays = [], []
    for kind in draw(st.lists(st.sampled_from(list(NEW)), min_size=1, max_size=4)):
        nullable = draw(st.booleans())
        fields.append(pa.field(f"new {len(fields)}", kind, nullable=nullable))
        arrays.append(column(draw, kind, st.none() | NEW[kind] if nullable else NEW[kind], num_rows))
    can_have_bloom = [field.name for field in fields if not pa.types.is_boolean(field.type)]
    bloom = draw(st.sets(st.sampled_from(can_have_bloom))) if can_have_bloom else set()
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields)), bloom


OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "gzip", "brotli", "lz4", "zstd"]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "version": st.sampled_from(["2.4", "2.6"]),
        "write_statistics": st.booleans(),
        "write_page_index": st.booleans(),
        "write_page_checksum": st.booleans(),
        "store_schema": st.booleans(),
        "use_compliant_nested_type": st.booleans(),
        "store_decimal_as_integer": st.booleans(),
        "row_group_size": st.integers(1, 13),
        "data_page_size": st.sampled_from([64, 1024 * 1024]),
    }
)
ENCODINGS = {
    "BOOLEAN": ["PLAIN", "RLE"],
    "INT32": ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    "INT64": ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    "FLOAT": ["PLAIN", "BYTE_STREAM_SPLIT"],
    "DOUBLE": ["PLAIN", "BYTE_STREAM_SPLIT"],
    "BYTE_ARRAY": ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"],
    "FIXED_LEN_BYTE_ARRAY": ["PLAIN", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"],
}


@st.composite
def layouts(draw, table):
    """Options of Arrow's writer; each leaf has an encoding of its own or a dictionary."""
    options = draw(OPTIONS)
    schema = pq.read_metadata(io.BytesIO(arrow(table.slice(0, 0), **options))).schema
    leaves = [schema.column(number) for number in range(len(schema))]
    encodings = {leaf.path: draw(st.sampled_from(encodings_of(leaf, table.schema))) for leaf in leaves}
    can_have_bloom = [leaf.path for leaf in leaves if leaf.physical_type != "BOOLEAN"]
    bloom = draw(st.sets(st.sampled_from(can_have_bloom))) if can_have_bloom else set()
    return options | {
        "use_dictionary": [path for path, encoding in encodings.items() if encoding == "DICTIONARY"],
        "column_encoding": {path: encoding for path, encoding in encodings.items() if encoding != "DICTIONARY"},
        "bloom_filter_options": {path: {"ndv": 10, "fpp": 0.01} for path in bloom},
    }


def encodings_of(leaf, schema):
    """Those that Arrow reads again: no DELTA_BYTE_ARRAY in some lists, none of bytes where it reads a dictionary."""
    named = ENCODINGS[leaf.physical_type]
    if leaf.path not in schema.names:
        named = [name for name in named if name != "DELTA_BYTE_ARRAY"]
    elif pa.types.is_dictionary(schema.field(leaf.path).type):
        named = ["PLAIN"]
    return ["DICTIONARY", *named]


@settings(max_examples=60, **DRAWN)
@given(st.data())
def test_any_arrow_file_keeps_all_it_had(tmp_path, data):
    table = data.draw(tables(FLAT | NESTED))
    options = data.draw(layouts(table))
    before = arrow(table, **options)
    after = check_splice(tmp_path, before, *data.draw(additions(len(table))))
    assert own_metadata(after) == own_metadata(before) == ({b"own": b"metadata"} if options["store_schema"] else {})


def check_splice(folder, before, new, bloom):
    """Splice `new` into a file and let every engine read both; returns the spliced one."""

    def columns(_, first_row, num_rows):
        return new.slice(first_row, num_rows)

    after = spliced(open_store("memory://splice"), before, columns, bloom_filters=bloom)
    check_contents(before, after, columns)
    (folder / "a.parquet").write_bytes(before)
    (folder / "b.parquet").write_bytes(after)
    for name in INSTALLED:
        check_new_columns(name, folder / "b.parquet", new)
        check_old_columns(name, folder / "a.parquet", folder / "b.parquet")
    return after


def check_new_columns(name, path, new):
    """All of them are read, and rows found by the values of each."""
    seen = READERS[name](path, new.column_names)
    for column in new.column_names:
        expected = new[column]
        assert seen[column].cast(expected.type).equals(expected)
        if expected.null_count < len(expected):
            value = expected.drop_null()[-1]
            found = READERS[name](path, [column], where=(column, "==", value))
            assert len(found) == pc.sum(pc.equal(expected, value)).as_py()


def check_old_columns(name, before, after):
    """They are read as they were."""
    metadata = pq.read_metadata(before)
    unread = set()
    for chunk in map(metadata.row_group(0).column, range(metadata.num_columns)):
        if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" and "BYTE_STREAM_SPLIT" in chunk.encodings:
            unread |= {chunk.path_in_schema} if name in ("duckdb", "polars") else set()
        if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" and "DELTA_BYTE_ARRAY" in chunk.encodings:
            unread |= {chunk.path_in_schema} if name == "polars" else set()
    names = [column for column in pq.read_schema(before).names if column not in unread]
    if names:
        assert READERS[name](after, names).equals(READERS[name](before, names))


def own_metadata(data):
    metadata = pq.read_metadata(io.BytesIO(data)).metadata or {}
    return {name: value for name, value in metadata.items() if name != b"ARROW:schema"}


# any columns of other writers ---------------------------------------------------------------------------------------


def drawn_by_polars(draw, table, path, group_rows):
    options = {"compression": draw(st.sampled_from(["uncompressed", "snappy", "gzip", "zstd", "lz4", "brotli"]))}
    statistics = draw(st.sampled_from([True, False, "full"]))
    write_by_polars(table, path, group_rows, statistics=statistics, **options)


def drawn_by_duckdb(draw, table, path, group_rows):
    compression = draw(st.sampled_from(["uncompressed", "snappy", "gzip", "zstd", "lz4", "brotli"]))
    write_by_duckdb(table, path, group_rows, draw(st.sampled_from(["v1", "v2"])), compression)


def drawn_by_datasets(draw, table, path, group_rows):
    write_by_datasets(table, path, group_rows)


def drawn_by_fastparquet(draw, table, path, group_rows):
    compression = draw(st.sampled_from([None, "SNAPPY", "GZIP", "ZSTD", "LZ4", "BROTLI"]))
    write_by_fastparquet(table, path, group_rows, compression=compression)


MAP = pa.map_(pa.string(), pa.int64())
UNWRITTEN = {
    drawn_by_polars: set(),
    drawn_by_duckdb: {MAP},  # a key twice
    drawn_by_datasets: {MAP},
    drawn_by_fastparquet: {*NESTED, pa.date32(), pa.timestamp("us", tz="Europe/Berlin")},  # pandas warns of the latter
}


@pytest.mark.parametrize("write", UNWRITTEN)
@settings(max_examples=20, **DRAWN)
@given(data=st.data())
def test_any_file_of_another_writer_keeps_all_it_had(tmp_path, write, data):
    kinds = {kind: values for kind, values in (FLAT | NESTED).items() if kind not in UNWRITTEN[write]}
    table = data.draw(tables(kinds))
    write(data.draw, table, tmp_path / "w.parquet", data.draw(st.integers(1, 13)))
    check_splice(tmp_path, (tmp_path / "w.parquet").read_bytes(), *data.draw(additions(len(table))))


# one table of every writer ------------------------------------------------------------------------------------------


def by_pyarrow(path):
    pq.write_table(
        TABLE,
        path,
        row_group_size=17,
        use_dictionary=["source"],
        column_encoding={
            "id": "DELTA_BINARY_PACKED",
            "text": "DELTA_LENGTH_BYTE_ARRAY",
            "score": "BYTE_STREAM_SPLIT",
            "tags.list.element": "DELTA_BYTE_ARRAY",
        },
        sorting_columns=[pq.SortingColumn(0)],
        bloom_filter_options={"id": {"ndv": NUM_ROWS, "fpp": 0.01}},
        write_page_index=True,
        write_page_checksum=True,
    )


def by_polars(path):
    write_by_polars(TABLE, path, 17)


def by_duckdb(path, version="v1"):
    write_by_duckdb(pa.concat_tables([TABLE] * 100), path, 2048, version)


def by_duckdb_v2(path):
    by_duckdb(path, "v2")


def by_datasets(path):
    write_by_datasets(TABLE.set_column(4, "source", TABLE["source"].cast(pa.string())), path, 17)


def by_fastparquet(path):
    write_by_fastparquet(TABLE.drop_columns(["tags"]), path, 17)


WRITERS = {f.__name__: f for f in (by_pyarrow, by_polars, by_duckdb, by_duckdb_v2, by_datasets, by_fastparquet)}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """A file of some writer with columns spliced in, and its table as Arrow reads it."""
    path = tmp_path / "a.parquet"
    WRITERS[request.param](path)
    data = path.read_bytes()
    (tmp_path / "b.parquet").write_bytes(spliced(open_store(str(tmp_path)), data))
    check_contents(data, (tmp_path / "b.parquet").read_bytes())
    return tmp_path / "b.parquet", pq.read_table(path)


NAMES = ["id", *ADDED]


def check_rows(seen, table, num_rows):
    """`seen` are the first rows, of the old column and all new ones."""
    assert len(seen) == num_rows
    expected = new_columns(0, 0, num_rows).add_column(0, "id", table["id"].slice(0, num_rows))
    for name in NAMES:
        assert seen[name].cast(expected[name].type).to_pylist() == expected[name].to_pylist()


@pytest.mark.parametrize("name", READERS)
def test_every_engine_reads_and_filters_files_of_every_writer(written, name):
    path, table = written
    check_rows(READERS[name](path, NAMES), table, len(table))
    check_rows(READERS[name](path, NAMES, where=("sample_weight", "<", pa.scalar(8, pa.float32()))), table, 16)


@pytest.mark.parametrize("name", READERS)
def test_every_engine_skips_row_groups_by_the_new_column(written, name):
    """All row groups but the first are damaged: who asks for small weights does not notice, who asks for all does."""
    path, table = written
    metadata = pq.read_metadata(path)
    if name == "polars" and "fastparquet" in (metadata.created_by or ""):
        pytest.xfail("polars reads all row groups of such a file; why is not known")
    assert metadata.num_row_groups > 1
    data = bytearray(path.read_bytes())
    for group in map(metadata.row_group, range(1, metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
            data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    check_rows(READERS[name](path, NAMES, where=("sample_weight", "<", pa.scalar(8, pa.float32()))), table, 16)
    with pytest.raises(Exception) as failure:  # noqa: PT011  # each engine has its own, some no more than this
        READERS[name](path, NAMES)
    assert not isinstance(failure.value, AssertionError)


def test_datasets_reads_what_it_wrote_with_the_new_columns(tmp_path):
    by_datasets(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(spliced(open_store("memory://x"), (tmp_path / "a.parquet").read_bytes()))
    rows = engine("datasets").Dataset.from_parquet(str(tmp_path / "b.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == [*TABLE.column_names, *ADDED]
    assert rows["rank"][:] == new_columns(0, 0, NUM_ROWS)["rank"].to_pylist()


def bloom_filters(path, column, there, absent):
    """Whether DuckDB finds one in all row groups, that excludes `absent` from all of them and not `there`."""
    asked = "SELECT bool_and(bloom_filter_excludes), count(*) > 0 FROM parquet_bloom_probe(?, ?, {})"
    found = [duckdb.execute(asked.format(value), [str(path), column]).fetchall() for value in (absent, there)]
    return found == [[(True, True)], [(False, True)]]


def test_old_and_new_bloom_filters_are_where_the_footer_says(tmp_path):
    by_pyarrow(tmp_path / "a.parquet")
    store = open_store(str(tmp_path))
    spliced(store, (tmp_path / "a.parquet").read_bytes(), bloom_filters={"rank", "run"})
    for column, there, absent in [("id", "5", "99999"), ("rank", "5", "99999"), ("run", "'run 1'", "'run 9'")]:
        assert bloom_filters(tmp_path / "b.parquet", column, there, absent)


def test_a_rewrite_makes_the_bloom_filters_of_old_columns_again(tmp_path):
    table = TABLE.append_column("rank", pa.array(range(NUM_ROWS)))
    options = {path: {"ndv": NUM_ROWS, "fpp": 0.01} for path in ("id", "tags.list.element", "rank")}
    store = open_store(str(tmp_path))
    file = put(store, "a.parquet", arrow(table, row_group_size=40, bloom_filter_options=options))
    added = add_columns(store, file, store, "b.parquet", new_columns, replace={"rank"}, bloom_filters={"run"})
    assert added.rewritten_because == "column 'rank' is replaced"
    for column, there, absent in [("id", "5", "99999"), ("run", "'run 1'", "'run 9'")]:
        assert bloom_filters(tmp_path / "b.parquet", column, there, absent)
    assert bloom_filter_bytes(tmp_path / "b.parquet").keys() == {"id", "tags.list.element", "run"}
    for path, num_bytes in bloom_filter_bytes(tmp_path / "a.parquet").items():
        assert path == "rank" or bloom_filter_bytes(tmp_path / "b.parquet")[path] == num_bytes


def bloom_filter_bytes(path):
    """Leaf column that has some → their lengths."""
    metadata = pq.read_metadata(path)
    found = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(metadata.num_columns)):
            if chunk.bloom_filter_offset:
                found.setdefault(chunk.path_in_schema, []).append(chunk.bloom_filter_length)
    return found
