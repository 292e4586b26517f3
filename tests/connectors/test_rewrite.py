"""Columns added to Parquet of several writers; everything else stays as it was."""

import datetime as dt
import decimal
import json
import uuid

import duckdb
import fastparquet
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors import _batch_rows, _rewrite
from connectors._rewrite import rewrite_with_columns
from connectors.errors import ConflictError, CorruptFileError, InputError, SchemaError
from connectors.parquet import read_parquet_info
from connectors.store import list_objects, open_store, read_bytes, stat_object, write_object

NUM_ROWS = 7


def rich_table():
    """A column of every kind that lakes have."""
    moment = dt.datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
    metadata = {"who": "test", "pandas": json.dumps({"columns": [{"name": "text"}], "index_columns": []})}
    struct = pa.struct({"x": pa.list_(pa.int32()), "y": pa.string()})
    fields = {
        "text": (["a", None, "ünï", "", "e", "f", "g"], pa.string()),
        "big": (["x"] * NUM_ROWS, pa.large_string()),
        "source": (["x", "y"] * 3 + [None], pa.dictionary(pa.int8(), pa.string())),
        "price": ([decimal.Decimal("1.25")] * NUM_ROWS, pa.decimal128(12, 2)),
        "at": ([moment] * NUM_ROWS, pa.timestamp("us", tz="Europe/Berlin")),
        "day": ([moment.date()] * NUM_ROWS, pa.date32()),
        "tags": ([["a", None], [], None, ["b"], [], [], []], pa.list_(pa.string())),
        "deep": (
            [[{"x": [1], "y": None}], None] * 3 + [[]],
            pa.list_(struct),
        ),
        "map": ([[("k", 1)], [], None, [], [], [], []], pa.map_(pa.string(), pa.int64())),
        "raw": ([b"\x00\xff"] * NUM_ROWS, pa.binary()),
        "half.dotted": (list(range(NUM_ROWS)), pa.int16()),
    }
    arrays = [pa.array(values, type_) for values, type_ in fields.values()]
    schema = pa.schema(
        [
            pa.field(name, type_, metadata={"PARQUET:field_id": str(number), "note": name})
            for number, (name, (_, type_)) in enumerate(fields.items(), start=10)
        ],
        metadata=metadata,
    )
    return pa.Table.from_arrays(arrays, schema=schema)


def put(store, path, data):
    write_object(store, path, data)
    return read_parquet_info(store, stat_object(store, path))


def arrow(table, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def weights(_, first_row, num_rows):
    values = [float(row) for row in range(first_row, first_row + num_rows)]
    return pa.table({"sample_weight": pa.array(values, pa.float32()), "run": pa.array(["r1"] * num_rows, pa.string())})


def rewrite(source, file, target, columns=weights, **options):
    """Adds columns to `file`, and opens the result."""
    rewrite_with_columns(source, file, target, "out/b.parquet", columns, **options)
    return pq.ParquetFile(pa.BufferReader(read_bytes(target, "out/b.parquet")))


@pytest.fixture
def source():
    return open_store(f"memory://source-{uuid.uuid4().hex}")


@pytest.fixture
def target():
    return open_store(f"memory://target-{uuid.uuid4().hex}")


WRITERS = {
    "plain": {},
    "row groups": {"row_group_size": 3},
    "snappy": {"compression": "snappy"},
    "gzip": {"compression": "gzip"},
    "brotli": {"compression": "brotli"},
    "lz4": {"compression": "lz4"},
    "none": {"compression": "none"},
    "pages v2": {"data_page_version": "2.0"},
    "no dictionary": {"use_dictionary": False},
    "no arrow schema": {"store_schema": False},
    "old format": {"version": "1.0", "store_schema": False},
    "page index": {"write_page_index": True},
    "old list names": {"use_compliant_nested_type": False},
}


@pytest.mark.parametrize("options", WRITERS.values(), ids=WRITERS)
def test_pyarrow_files_keep_everything(source, target, options):
    table = rich_table() if options.get("version") != "1.0" else rich_table().drop_columns(["price"])
    file = put(source, "a.parquet", arrow(table, **options))
    before = pq.ParquetFile(pa.BufferReader(read_bytes(source, "a.parquet")))
    after = rewrite(source, file, target)
    assert after.read(before.schema_arrow.names).equals(before.read(), check_metadata=True)
    assert after.schema_arrow.names == [*before.schema_arrow.names, "sample_weight", "run"]
    assert after.read()["sample_weight"].to_pylist() == [float(i) for i in range(NUM_ROWS)]
    assert row_groups(after) == row_groups(before)
    for column in range(before.metadata.num_columns):
        old, new = (f.metadata.row_group(0).column(column) for f in (before, after))
        assert new.compression == old.compression
        assert uses_dictionary(new) == uses_dictionary(old)


def row_groups(file):
    return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]


def uses_dictionary(chunk):
    return bool({"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(chunk.encodings))


@pytest.mark.parametrize(
    ("most_bytes", "expected"), [(10**9, [5, 0, 2]), (200, [2, 2, 1, 0, 2]), (0, [1] * 5 + [0, 1, 1])]
)
def test_a_row_group_of_many_bytes_becomes_several(source, target, monkeypatch, most_bytes, expected):
    """It is read row by row here; a row has 75 to 112 bytes."""
    monkeypatch.setattr(_batch_rows, "_USUAL_BYTES", 1)
    monkeypatch.setattr(_rewrite, "_MOST_BYTES", most_bytes)
    table, sink = rich_table(), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        for start, num_rows in [(0, 5), (5, 0), (5, 2)]:
            writer.write_table(table.slice(start, num_rows))
    after = rewrite(source, put(source, "a.parquet", sink.getvalue().to_pybytes()), target)
    assert row_groups(after) == expected
    assert after.read(table.column_names).equals(pq.read_table(pa.BufferReader(sink.getvalue())), check_metadata=True)
    assert after.read()["sample_weight"].to_pylist() == [float(i) for i in range(NUM_ROWS)]


def test_codec_and_encoding_are_kept_per_column(source, target):
    table = pa.table({"a": ["x"] * 9, "b": list(range(9)), "c": [0.5] * 9, "l": [["q"]] * 9})
    data = arrow(
        table,
        compression={"a": "gzip", "b": "zstd", "c": "none", "l.list.element": "snappy"},
        use_dictionary=["a"],
        column_encoding={"b": "DELTA_BINARY_PACKED", "c": "BYTE_STREAM_SPLIT"},
    )
    after = rewrite(source, put(source, "a.parquet", data), target)
    chunks = [after.metadata.row_group(0).column(i) for i in range(4)]
    assert [chunk.compression for chunk in chunks] == ["GZIP", "ZSTD", "UNCOMPRESSED", "SNAPPY"]
    assert [uses_dictionary(chunk) for chunk in chunks] == [True, False, False, False]
    assert "DELTA_BINARY_PACKED" in chunks[1].encodings
    assert "BYTE_STREAM_SPLIT" in chunks[2].encodings


def test_field_ids_and_metadata_are_kept(source, target):
    after = rewrite(source, put(source, "a.parquet", arrow(rich_table())), target, footer_metadata={"run": "r1"})
    for number, field in enumerate(rich_table().schema, start=10):
        kept = after.schema_arrow.field(field.name)
        assert kept.metadata[b"PARQUET:field_id"] == str(number).encode()
        assert kept.metadata[b"note"] == field.name.encode()
    assert after.metadata.metadata[b"who"] == b"test"
    assert after.metadata.metadata[b"run"] == b"r1"


def test_nullability_is_kept(source, target):
    schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
    table = pa.Table.from_arrays([pa.array(["a"])], schema=schema)
    after = rewrite(source, put(source, "a.parquet", arrow(table)), target)
    assert not after.schema_arrow.field("text").nullable


@pytest.mark.parametrize("num_rows", [0, 5])
def test_polars_files_keep_their_values(source, target, tmp_path, num_rows):
    frame = pl.DataFrame(
        {
            "text": ["a", None, "ü", "d", "e"],
            "kind": pl.Series(["x", "y", "x", "y", "x"], dtype=pl.Categorical),
            "list": [["a"], [], None, ["b"], ["c"]],
            "struct": [{"x": 1, "y": "z"}] * 5,
            "when": pl.Series([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)] * 5, dtype=pl.Datetime("ns", "UTC")),
        }
    ).head(num_rows)
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=2)
    file = put(source, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    rewrite(source, file, target)
    (tmp_path / "b.parquet").write_bytes(read_bytes(target, "out/b.parquet"))
    after = pl.read_parquet(tmp_path / "b.parquet")
    assert after.drop("sample_weight", "run").equals(frame)
    assert after["sample_weight"].to_list() == [float(i) for i in range(num_rows)]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_duckdb_files_keep_their_values(source, target, tmp_path, version):
    path, copy = tmp_path / "a.parquet", tmp_path / "b.parquet"
    query = (
        "SELECT i AS id, 'text ' || i AS text, [i, NULL] AS list, {'a': i, 'b': [{'c': i}]} AS nested, "
        "MAP {'k': i} AS map, i::DECIMAL(20, 3) AS price, TIMESTAMP '2024-01-01' + INTERVAL (i) HOUR AS at, "
        "uuid() AS uuid FROM range(5000) t(i)"
    )
    duckdb.sql(f"COPY ({query}) TO '{path}' (ROW_GROUP_SIZE 2048, PARQUET_VERSION {version}, KV_METADATA {{own: 'x'}})")
    rewrite(source, put(source, "a.parquet", path.read_bytes()), target)
    copy.write_bytes(read_bytes(target, "out/b.parquet"))
    kept = duckdb.sql(f"SELECT * EXCLUDE (sample_weight, run) FROM '{copy}'").fetchall()
    assert kept == duckdb.sql(f"FROM '{path}'").fetchall()
    wrong = duckdb.sql(f"SELECT count(*) FROM '{copy}' WHERE sample_weight <> id").fetchall()
    assert wrong == [(0,)]
    assert pq.read_metadata(copy).metadata[b"own"] == b"x"


@pytest.mark.parametrize("groups", [[], [0], [0, 2, 0, 1, 0]])
def test_empty_row_groups_are_kept(source, target, groups):
    schema = pa.schema({"text": pa.string()})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as writer:
        for num_rows in groups:
            writer.write_table(pa.table({"text": pa.array(["x"] * num_rows, pa.string())}))
    after = rewrite(source, put(source, "a.parquet", sink.getvalue().to_pybytes()), target)
    assert row_groups(after) == groups
    assert after.schema_arrow.names == ["text", "sample_weight", "run"]
    assert after.read()["sample_weight"].to_pylist() == [float(i) for i in range(sum(groups))]


def test_the_callback_gets_each_row_group_once_in_order(source, target):
    calls = []

    def columns(group, first_row, num_rows):
        calls.append((group, first_row, num_rows))
        return weights(group, first_row, num_rows)

    rewrite(source, put(source, "a.parquet", arrow(rich_table(), row_group_size=3)), target, columns)
    assert calls == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]


def huggingface(features):
    return {"huggingface": json.dumps({"info": {"features": features}, "fingerprint": "f"})}


def test_hugging_face_features_are_extended(source, target):
    label = {"names": ["no", "yes"], "_type": "ClassLabel"}
    table = pa.table({"label": [0, 1]}).replace_schema_metadata(huggingface({"label": label}))
    after = rewrite(source, put(source, "a.parquet", arrow(table)), target)
    described = json.loads(after.metadata.metadata[b"huggingface"])
    assert described["fingerprint"] == "f"
    assert described["info"]["features"] == {
        "label": label,
        "sample_weight": {"dtype": "float32", "_type": "Value"},
        "run": {"dtype": "string", "_type": "Value"},
    }


@pytest.mark.parametrize("block", ["not json", "[]", '{"info": 3}', "{}"])
def test_an_unknown_hugging_face_block_is_left_alone(source, target, block):
    table = pa.table({"a": [1]}).replace_schema_metadata({"huggingface": block})
    after = rewrite(source, put(source, "a.parquet", arrow(table)), target)
    assert after.metadata.metadata[b"huggingface"] == block.encode()


def test_pandas_metadata_stays_true(source, target):
    described = {"columns": [{"name": "a"}, {"name": "run", "numpy_type": "int64"}], "index_columns": []}
    table = pa.table({"a": [1], "run": [5]}).replace_schema_metadata({"pandas": json.dumps(described)})
    after = rewrite(source, put(source, "a.parquet", arrow(table)), target, replace={"run"})
    assert json.loads(after.metadata.metadata[b"pandas"])["columns"] == [{"name": "a"}]


def test_an_existing_column_is_refused(source, target):
    file = put(source, "a.parquet", arrow(pa.table({"run": ["old"], "text": ["a"]})))
    with pytest.raises(SchemaError, match=r"a\.parquet has a column 'run' already"):
        rewrite(source, file, target)
    assert list_objects(target) == []


def test_an_existing_column_is_replaced_in_its_place_when_asked(source, target):
    table = pa.table({"run": ["old"], "text": ["a"], "sample_weight": [["nested"]], "n": [[1]]})
    after = rewrite(source, put(source, "a.parquet", arrow(table)), target, replace={"run", "sample_weight"})
    assert after.read().to_pydict() == {"run": ["r1"], "text": ["a"], "sample_weight": [0.0], "n": [[1]]}


@pytest.mark.parametrize("digits", [9, 18])
def test_decimals_that_are_stored_as_integers_stay_so(source, target, digits):
    """DuckDB stores them so, and those alone can be delta-encoded."""
    table = pa.table({"price": pa.array([decimal.Decimal("1.25"), None], pa.decimal128(digits, 2)), "run": ["a", "b"]})
    encoded = {"store_decimal_as_integer": True, "column_encoding": {"price": "DELTA_BINARY_PACKED"}}
    data = arrow(table, use_dictionary=False, **encoded)
    after = rewrite(source, put(source, "a.parquet", data), target, replace={"run"})
    assert after.metadata.schema.column(0).physical_type == ("INT32" if digits == 9 else "INT64")
    assert "DELTA_BINARY_PACKED" in after.metadata.row_group(0).column(0).encodings
    assert after.read()["price"].equals(table["price"])


def test_the_lz4_that_arrow_cannot_name_is_written_as_the_other(source, target, tmp_path):
    frame = pd.DataFrame({"text": ["a", "b"] * 50, "run": ["x", "y"] * 50})
    place = tmp_path / "lz4.parquet"
    fastparquet.write(str(place), frame, compression="LZ4")
    assert pq.read_metadata(place).row_group(0).column(0).compression == "UNKNOWN"
    after = rewrite(source, put(source, "lz4.parquet", place.read_bytes()), target, replace={"run"})
    assert after.read()["text"].to_pylist() == ["a", "b"] * 50
    assert after.metadata.row_group(0).column(0).compression == "LZ4"


def test_a_changed_source_is_a_conflict_and_nothing_appears(store):
    file = put(store, "a.parquet", arrow(rich_table()))
    put(store, "a.parquet", arrow(rich_table().slice(1)))
    with pytest.raises(ConflictError, match="changed since it was listed"):
        rewrite_with_columns(store, file, store, "b.parquet", weights)
    assert [info.path for info in list_objects(store)] == ["a.parquet"]


def test_a_source_changed_during_the_copy_is_a_conflict_and_nothing_appears(store):
    file = put(store, "a.parquet", arrow(rich_table()))

    def columns(group, first_row, num_rows):
        put(store, "a.parquet", arrow(rich_table().slice(1)))
        return weights(group, first_row, num_rows)

    with pytest.raises(ConflictError):
        rewrite_with_columns(store, file, store, "b.parquet", columns)
    assert [info.path for info in list_objects(store)] == ["a.parquet"]


def test_the_source_is_untouched_and_cannot_be_the_target(store):
    data = arrow(rich_table())
    file = put(store, "a.parquet", data)
    written = rewrite_with_columns(store, file, store, "b.parquet", weights)
    assert written == stat_object(store, "b.parquet")
    assert read_bytes(store, "a.parquet") == data
    with pytest.raises(InputError, match="is the source itself"):
        rewrite_with_columns(store, file, store, "a.parquet", weights)


def test_rows_that_are_not_there_are_damage_and_nothing_appears(source, target, monkeypatch):
    file = put(source, "a.parquet", arrow(rich_table()))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: iter([]))
    with pytest.raises(CorruptFileError, match=r"a row group has 0 rows, and 7 by its footer"):
        rewrite(source, file, target)
    assert list_objects(target) == []


def test_damaged_pages_are_named_and_nothing_appears(source, target):
    data = arrow(pa.table({"text": [str(i) * 50 for i in range(1000)]}), compression="zstd")
    file = put(source, "a.parquet", data[:40] + bytes(400) + data[440:])
    with pytest.raises(CorruptFileError, match=r"source.*a\.parquet is damaged"):
        rewrite(source, file, target)
    assert list_objects(target) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (lambda g, f, n: weights(g, f, n + 1), "row group 0 of .* has 3 rows but 4 new values"),
        (lambda g, f, n: pa.table({"w": [1.0] * n if g == 0 else [1] * n}), "row group 1 of .* differ in type"),
    ],
)
def test_wrong_new_columns_are_named_and_nothing_appears(source, target, columns, message):
    file = put(source, "a.parquet", arrow(rich_table(), row_group_size=3))
    with pytest.raises(InputError, match=message):
        rewrite(source, file, target, columns)
    assert list_objects(target) == []


def test_an_error_of_the_callback_passes_through_and_nothing_appears(source, target):
    def columns(group, first_row, num_rows):
        if group == 1:
            raise ZeroDivisionError
        return weights(group, first_row, num_rows)

    file = put(source, "a.parquet", arrow(rich_table(), row_group_size=3))
    with pytest.raises(ZeroDivisionError):
        rewrite(source, file, target, columns)
    assert list_objects(target) == []
