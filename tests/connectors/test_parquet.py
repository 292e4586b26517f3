"""Footers, partitions, schemas compared across files, and columns streamed."""

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.errors import ConflictError, CorruptFileError, NotFoundError, SchemaError, UnsupportedError
from connectors.parquet import check_schemas, iter_batches, parse_partition, read_parquet_info, union_schema
from connectors.store import delete, open_store, read_bytes, stat_object, write_object

ROWS = pa.table({"text": ["a", "b", "c", "d", "e"], "source": ["x", "x", "y", "y", "y"], "n": [1, 2, 3, 4, 5]})


def put(store, path, table, **options):
    """Writes a table as Parquet and reads its footer back."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    write_object(store, path, sink.getvalue().to_pybytes())
    return read_parquet_info(store, stat_object(store, path))


@pytest.fixture
def memory():
    return open_store(f"memory://{uuid.uuid4().hex}")


# footers --------------------------------------------------------------------------------------------------------


def test_info_tells_what_the_footer_says(store):
    file = put(store, "lang=en/a.parquet", ROWS, row_group_size=2)
    assert (file.num_rows, file.num_row_groups, file.partition) == (5, 3, {"lang": "en"})
    assert file.schema.equals(ROWS.schema)
    assert file.size_bytes == len(read_bytes(store, "lang=en/a.parquet"))


def test_a_footer_longer_than_one_read_is_read_too(store):
    wide = pa.table({f"column_{i:04}": [i] for i in range(1500)})
    file = put(store, "wide.parquet", wide)
    assert file.schema.equals(wide.schema)


def test_dictionary_types_survive(memory):
    table = pa.table({"source": pa.array(["x", "y"]).dictionary_encode()})
    assert put(memory, "a.parquet", table).schema.equals(table.schema)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not a Parquet file"),
        (lambda data: b"hello", "not a Parquet file"),
        (lambda data: b"text,source\n" * 100, "not a Parquet file"),
        (lambda data: data[: len(data) // 2], "not a Parquet file"),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", "footer is longer than the file"),
        (lambda data: data[:-100] + bytes(92) + data[-8:], "damaged"),
    ],
)
def test_what_is_not_parquet_is_named(store, damage, message):
    file = put(store, "a.parquet", ROWS)
    write_object(store, "a.parquet", damage(read_bytes(store, file.path)))
    with pytest.raises(CorruptFileError, match=f"a.parquet.*{message}"):
        read_parquet_info(store, stat_object(store, "a.parquet"))


def test_an_encrypted_footer_is_unsupported(memory):
    write_object(memory, "a.parquet", b"PARE" + bytes(20) + b"PARE")
    with pytest.raises(UnsupportedError, match="encrypted"):
        read_parquet_info(memory, stat_object(memory, "a.parquet"))


def test_a_file_gone_since_it_was_listed_is_not_found(store):
    put(store, "a.parquet", ROWS)
    listed = stat_object(store, "a.parquet")
    delete(store, "a.parquet")
    with pytest.raises(NotFoundError, match=r"a\.parquet"):
        read_parquet_info(store, listed)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.parquet", {}),
        ("lang=en/a.parquet", {"lang": "en"}),
        ("lang=en/day=2024-01-02/a.parquet", {"lang": "en", "day": "2024-01-02"}),
        ("site=a%2Fb%20c/a.parquet", {"site": "a/b c"}),
        ("x=1=2/a.parquet", {"x": "1=2"}),
        ("lang=__HIVE_DEFAULT_PARTITION__/a.parquet", {"lang": None}),
        ("lang=/a=b.parquet", {"lang": ""}),
        ("=x/a.parquet", {}),
    ],
)
def test_partitions_are_read_from_the_folders(path, expected):
    assert parse_partition(path) == expected


# columns --------------------------------------------------------------------------------------------------------


def test_batches_give_all_rows_in_order_and_the_columns_as_asked(store):
    file = put(store, "a.parquet", ROWS, row_group_size=2)
    batches = list(iter_batches(store, file, ["n", "text"], batch_rows=2))
    assert pa.Table.from_batches(batches).equals(ROWS.select(["n", "text"]))
    assert max(batch.num_rows for batch in batches) <= 2


@pytest.mark.parametrize("column", ["number", "uuid", "text"])
def test_batches_are_as_large_as_asked_where_rows_are_short(tmp_path, column):
    """Though each column has a dictionary of 1.2 MB or more: long values are what makes a batch large, not many."""
    row = np.arange(400_000)
    words = pa.array([f"{n:07} " * 5 for n in range(30_000)])
    table = pa.table(
        {
            "number": row % 150_000 * 0.5,
            "uuid": pa.array([n.to_bytes(16, "big") for n in (row % 75_000).tolist()], pa.binary(16)),
            "text": words.take(pa.array(row % 30_000)),
        }
    )
    options = {"row_group_size": len(row), "dictionary_pagesize_limit": 4_000_000}
    file = put(open_store(str(tmp_path)), "a.parquet", table, **options)
    chunk = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(table.column_names.index(column))
    assert chunk.total_uncompressed_size > 1_200_000
    assert chunk.has_dictionary_page
    batches = list(iter_batches(open_store(str(tmp_path)), file, [column]))
    assert {batch.num_rows for batch in batches[:-1]} == {4096}


def test_runs_of_one_value_are_read_in_batches_of_bounded_size(memory):
    """They take a few bytes of the file, however many rows have the value."""
    table = pa.table(
        {"n": pa.array(np.zeros(4_000_000, "i8")), "word": pa.array(["x"]).take(np.zeros(4_000_000, "i8"))}
    )
    file = put(memory, "a.parquet", table, row_group_size=len(table))
    assert file.size_bytes < 100_000
    batches = list(iter_batches(memory, file, ["n", "word"], batch_rows=len(table)))
    assert sum(batch.num_rows for batch in batches) == len(table)
    assert max(batch.nbytes for batch in batches) < 14_000_000


def test_a_column_is_not_taken_for_its_namesake_with_a_dot(memory):
    table = pa.table({"text": ["a"], "text.raw": ["b"], "meta": [{"text": "c"}]})
    file = put(memory, "a.parquet", table)
    (batch,) = iter_batches(memory, file, ["text"])
    assert batch.to_pydict() == {"text": ["a"]}


def test_no_rows_give_no_batches(memory):
    assert list(iter_batches(memory, put(memory, "a.parquet", ROWS.slice(0, 0)), ["text"])) == []


def test_a_missing_column_is_named_with_its_nearest(memory):
    file = put(memory, "a.parquet", ROWS)
    with pytest.raises(SchemaError, match=r"a\.parquet has no column 'txet'; did you mean 'text'\?"):
        list(iter_batches(memory, file, ["txet"]))


def test_a_replaced_file_is_a_conflict(store):
    file = put(store, "a.parquet", ROWS)
    put(store, "a.parquet", ROWS.slice(0, 4))
    with pytest.raises(ConflictError, match=r"a\.parquet has changed since it was listed"):
        list(iter_batches(store, file, ["text"]))


def test_a_file_replaced_while_it_is_read_is_a_conflict(store, monkeypatch):
    monkeypatch.setattr("connectors._parquet_file._SMALL_BYTES", 0)
    file = put(store, "a.parquet", ROWS)
    batches = iter_batches(store, file, ["text"], batch_rows=2)
    next(batches)
    put(store, "a.parquet", ROWS.slice(0, 4))
    with pytest.raises(ConflictError, match=r"a\.parquet"):
        list(batches)


def test_a_small_remote_file_is_read_as_it_was_listed_or_not_at_all(s3_place):
    store = s3_place.store()
    file = put(store, "a.parquet", ROWS)
    batches = iter_batches(store, file, ["text"], batch_rows=2)
    first = next(batches)
    put(store, "a.parquet", ROWS.slice(0, 4))
    assert pa.Table.from_batches([first, *batches]) == ROWS.select(["text"])
    with pytest.raises(ConflictError, match=r"a\.parquet has changed since it was listed"):
        next(iter_batches(store, file, ["text"]))


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_a_removed_file_is_a_conflict(store, small, monkeypatch):
    monkeypatch.setattr("connectors._parquet_file._SMALL_BYTES", small)
    file = put(store, "a.parquet", ROWS)
    delete(store, "a.parquet")
    with pytest.raises(ConflictError, match="gone since it was listed"):
        list(iter_batches(store, file, ["text"]))


def test_damaged_pages_are_named(store):
    table = pa.table({"text": [str(i) * 50 for i in range(1000)]})
    put(store, "a.parquet", table, compression="zstd")
    data = read_bytes(store, "a.parquet")
    write_object(store, "a.parquet", data[:40] + bytes(400) + data[440:])
    file = read_parquet_info(store, stat_object(store, "a.parquet"))
    with pytest.raises(CorruptFileError, match=r"a\.parquet is damaged"):
        list(iter_batches(store, file, ["text"]))


# schemas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_text_and_domain_may_be_stored_as_any_kind_of_string(memory, type_):
    table = pa.table({"text": pa.array(["a"]).cast(type_), "source": pa.array(["x"]).cast(type_)})
    files = [put(memory, "a.parquet", table), put(memory, "b.parquet", ROWS)]
    check_schemas(files, text="text", domain="source", key="text")


@pytest.mark.parametrize("domain", [[1], [True]])
def test_domain_may_be_an_integer_or_a_boolean(memory, domain):
    check_schemas([put(memory, "a.parquet", pa.table({"text": ["a"], "d": domain}))], text="text", domain="d")


def test_domain_may_come_from_the_path(memory):
    check_schemas([put(memory, "lang=en/a.parquet", ROWS)], text="text", domain="lang")


def test_a_domain_missing_from_one_path_is_named(memory):
    files = [put(memory, "lang=en/a.parquet", ROWS), put(memory, "b.parquet", ROWS)]
    with pytest.raises(SchemaError, match=r"b\.parquet has no column 'lang'"):
        check_schemas(files, text="text", domain="lang")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "content", "domain": "source"}, "a.parquet has no column 'content', which is to be the text column"),
        ({"text": "Text", "domain": "source"}, r"no column 'Text'.*did you mean 'text'\?"),
        ({"text": "text", "domain": "sauce"}, r"no column 'sauce'.*did you mean 'source'\?"),
        ({"text": "n", "domain": "source"}, "'n' of a.parquet is int64, which cannot be the text column"),
        ({"text": "text", "domain": "f"}, "'f' of a.parquet is double, which cannot be the domain column"),
        (
            {"text": "text", "domain": "source", "key": "f"},
            "'f' of .* is double, which cannot be the key column",
        ),
        ({"text": "text", "domain": "source", "key": "id"}, "no column 'id', which is to be the key column"),
    ],
)
def test_unusable_columns_are_named(memory, columns, message):
    file = put(memory, "a.parquet", ROWS.append_column("f", pa.array([0.5] * 5)))
    with pytest.raises(SchemaError, match=message):
        check_schemas([file], **columns)


def test_a_column_of_another_type_elsewhere_names_both_files(memory):
    files = [put(memory, "a.parquet", ROWS), put(memory, "b.parquet", ROWS.set_column(2, "n", pa.array(["1"] * 5)))]
    with pytest.raises(SchemaError, match=r"'n' is int64 in a\.parquet but string in b\.parquet"):
        check_schemas(files, text="text", domain="source")


def test_nested_types_are_compared_inside(memory):
    one = pa.table({"m": pa.array([[{"x": 1}]])})
    same = pa.table({"m": pa.array([[{"x": 1}]], pa.large_list(pa.struct([("x", pa.int64())])))})
    other = pa.table({"m": pa.array([[{"x": "1"}]])})
    files = [put(memory, f"{i}.parquet", table) for i, table in enumerate([one, same, other])]
    union_schema(files[:2])
    with pytest.raises(SchemaError, match=r"'m' is .* in 0\.parquet but .* in 2\.parquet"):
        union_schema(files)


def test_a_column_may_be_absent_or_all_null_in_some_files(memory):
    tables = [pa.table({"a": pa.nulls(1)}), pa.table({"a": [1], "b": ["x"]}), pa.table({"b": pa.nulls(1), "c": [1]})]
    schema = union_schema([put(memory, f"{i}.parquet", table) for i, table in enumerate(tables)])
    assert schema.equals(pa.schema({"a": pa.int64(), "b": pa.string(), "c": pa.int64()}))


def test_names_that_differ_only_in_case_are_refused(memory):
    files = [put(memory, "a.parquet", pa.table({"text": ["a"]})), put(memory, "b.parquet", pa.table({"Text": ["a"]}))]
    with pytest.raises(SchemaError, match=r"'text' and 'Text' \(in b\.parquet\) differ only in case"):
        union_schema(files)


def test_a_name_used_twice_is_refused(memory):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"])
    with pytest.raises(SchemaError, match=r"a\.parquet has column 'n' twice"):
        union_schema([put(memory, "a.parquet", table)])
