"""Answers of SQL as files: what comes back of every type, what is refused, and what is left when writing fails."""

import csv
import decimal
import io
import json
import shlex
import subprocess
import sys

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import command, environment, refusal, tree, write_lake

import curator
from curator import answers, console
from curator.errors import ConfigError, UsageError

TYPES = """
SELECT 1 AS i, -0.5::FLOAT AS f, 1.50::DECIMAL(10, 2) AS d, sum(3::BIGINT) AS s, true AS b,
       E'a "b",\\n=1' AS t, '' AS e, 'x\\xFF\\x00'::BLOB AS y, [1, NULL] AS l, {'k': 'v', 'n': [1.5]} AS st,
       MAP {'a': 1} AS m, timestamp '2020-01-02 03:04:05.000006' AS ts, timestamptz '2020-01-02 03:04:05+00' AS tz,
       timestamp_ns '2020-01-02 03:04:05.123456789' AS ns, DATE '2020-02-29' AS day, time '01:02:03' AS tm,
       'q'::ENUM ('q', 'z') AS en, 18446744073709551615::UBIGINT AS ub
UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL
"""


@pytest.fixture
def lake(tmp_path):
    with curator.open_lake(write_lake(tmp_path / "lake"), text="text", domain="domain") as opened:
        opened.ingest()
        yield opened


def table_of(rows):
    return pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches())


def text_of(table, kind):
    sink = io.BytesIO()
    answers.write(table_of(table), kind, sink)
    return sink.getvalue().decode()


def test_parquet_keeps_every_type(lake, tmp_path):
    saved = lake.save(TYPES, tmp_path / "x.parquet", confined=True)
    assert (saved.num_rows, saved.format, saved.size_bytes) == (2, "parquet", (tmp_path / "x.parquet").stat().st_size)
    expected = lake.read(TYPES).read_all()
    assert pq.read_table(tmp_path / "x.parquet").cast(expected.schema).equals(expected)


def test_csv_is_read_back_by_duckdb_as_what_it_was(lake, tmp_path):
    lake.save(TYPES, tmp_path / "x.csv")
    first, second = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines(keepends=True)))
    assert first["t"] == 'a "b",\n=1'
    assert (first["d"], first["s"], first["b"], first["ns"]) == ("1.50", "3", "true", "2020-01-02 03:04:05.123456789")
    assert (json.loads(first["l"]), json.loads(first["st"])) == ([1, None], {"k": "v", "n": ["1.5"]})
    assert set(second.values()) == {""}
    casts = "d::DECIMAL(10, 2), s::HUGEINT, y::BLOB, ts::TIMESTAMP, day::DATE, tm::TIME, ub::UBIGINT, l::JSON::INT[]"
    back = f"SELECT {casts} FROM read_csv('{tmp_path / 'x.csv'}', all_varchar = true, header = true)"
    with duckdb.connect() as connection:
        found = connection.execute(back).fetchall()
    asked = lake.sql(f"SELECT {casts.replace('::JSON', '')} FROM ({TYPES})").fetchall()
    assert found == asked
    assert '"e"' in (tmp_path / "x.csv").read_text().splitlines()[0]
    assert text_of(pa.table({"a": ["", None]}), "csv") == '"a"\n""\n\n'


def test_json_is_an_array_of_objects_with_a_row_on_every_line(lake, tmp_path):
    lake.save(TYPES, tmp_path / "x.json")
    first, second = json.loads((tmp_path / "x.json").read_text())
    assert first | {"e": ""} == first
    assert (first["i"], first["f"], first["d"], first["s"], first["ub"]) == (1, -0.5, "1.50", 3, 2**64 - 1)
    assert (first["t"], first["y"], first["m"], first["en"]) == ('a "b",\n=1', r"x\xFF\x00", [["a", 1]], "q")
    assert (first["tz"][:19], first["ns"], first["day"]) == (
        "2020-01-02 03:04:05",
        "2020-01-02 03:04:05.123456789",
        "2020-02-29",
    )
    assert set(second.values()) == {None}
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT i FROM '{tmp_path / 'x.json'}'").fetchall() == [(1,), (None,)]
    assert text_of(pa.table({"a": [1, 2]}), "json") == '[\n{"a": 1},\n{"a": 2}\n]\n'


def test_numbers_that_json_has_not_are_null_and_whole_decimals_are_numbers():
    odd = pa.table({"x": [float("nan"), 1.0], "l": [[float("inf")], [2.0]], "d": [decimal.Decimal(10**30), None]})
    assert json.loads(text_of(odd, "json")) == [
        {"x": None, "l": [None], "d": 10**30},
        {"x": 1.0, "l": [2.0], "d": None},
    ]


@pytest.mark.parametrize("kind", answers.FORMATS)
def test_an_answer_without_rows_has_its_columns(lake, tmp_path, kind):
    saved = lake.save("SELECT text, 1.5 AS x FROM samples WHERE false", tmp_path / "none", format=kind)
    assert saved.num_rows == 0
    written = (tmp_path / "none").read_bytes()
    if kind == "parquet":
        assert pq.read_schema(tmp_path / "none").names == ["text", "x"]
    else:
        assert written == {"csv": b'"text","x"\n', "json": b"[\n]\n"}[kind]


def test_more_rows_than_a_batch_are_written_one_row_group_for_many_batches(lake, tmp_path):
    rows = 3 * answers.BATCH_ROWS + 1
    query = f"SELECT range AS i, range % 7 AS j FROM range({rows})"
    for kind in answers.FORMATS:
        assert lake.save(query, tmp_path / f"many.{kind}").num_rows == rows
    assert pq.ParquetFile(tmp_path / "many.parquet").num_row_groups == 1
    expected = pl.DataFrame({"i": range(rows)}).select(pl.col("i"), (pl.col("i") % 7).alias("j"))
    for found in (
        pl.read_parquet(tmp_path / "many.parquet"),
        pl.read_csv(tmp_path / "many.csv"),
        pl.read_json(tmp_path / "many.json"),
    ):
        assert found.equals(expected)


@pytest.mark.parametrize(
    ("query", "kind", "said"),
    [
        ("SELECT 1 AS a, 2 AS a", "json", r"two columns of the answer are named 'a'; tell them apart with AS"),
        ("SELECT interval 3 day AS v", "parquet", r"column 'v' of the answer is a month_day_nano_interval, .* cast it"),
        ("SELECT 5::BIGNUM AS v", "csv", r"column 'v' of the answer is a bignum, which csv has no place for"),
        ("SELECT error('boom')", "csv", r"the query failed: .*boom"),
        ("SELECT if(range = 90000, error('boom'), 'a') AS x FROM range(100000)", "json", r"the query failed: .*boom"),
        ("SELECT nothing FROM samples", "csv", r"the query cannot be run: .*nothing"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(lake, tmp_path, query, kind, said):
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=said):
        lake.save(query, tmp_path / "x", format=kind)
    assert tree(tmp_path) == before


def test_a_failing_query_leaves_the_file_that_was_there(lake, tmp_path):
    out = tmp_path / "x.csv"
    lake.save("SELECT 1 AS a", out)
    with pytest.raises(ConfigError, match=r"x\.csv is there already; name another file, .* \(--overwrite\)"):
        lake.save("SELECT 2 AS a", out)
    with pytest.raises(UsageError, match="boom"):
        lake.save("SELECT if(range = 90000, error('boom'), 'a') AS x FROM range(100000)", out, overwrite=True)
    assert out.read_text() == '"a"\n1\n'
    lake.save("SELECT 2 AS a", out, overwrite=True)
    assert out.read_text() == '"a"\n2\n'


def test_places_that_cannot_be_written_are_refused_before_the_query(lake, tmp_path):
    boom = "SELECT error('boom')"
    (tmp_path / "folder.csv").mkdir()
    for out, said in (
        (tmp_path / "none" / "x.csv", "its folder does not exist"),
        (tmp_path / "folder.csv", "is there already and no file"),
        (tmp_path / "lake" / "more.parquet", "lies inside the lake"),
        (tmp_path / "lake" / "north.parquet", "lies inside the lake"),
        (tmp_path / "x", "does not tell its format; pass --format csv, json or parquet"),
        ("nope://x/y.csv", "nope"),
    ):
        with pytest.raises(curator.CuratorError, match=said):
            lake.save(boom, out, overwrite=True)


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(lake, tmp_path):
    lake.release()
    out = tmp_path / "x.json"
    asked = shlex.join(command("sql", lake.url, "SELECT range AS i FROM range(300000)", "--out", out))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 64; {asked}"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = refusal(done, 1)
    assert "x.json" in said
    assert "File too large" in said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "x"))]


@pytest.mark.parametrize("url", ["lake/*.parquet", "lake/north.parquet"])
def test_a_lake_of_some_files_of_a_folder_is_not_written_into(tmp_path, url):
    write_lake(tmp_path / "lake")
    before = tree(tmp_path)
    with curator.open_lake(tmp_path / url, text="text", domain="domain", destination=str(tmp_path / "state")) as lake:
        lake.ingest()
        names = ["north.parquet"] if "*" not in url else ["north.parquet", "new.parquet"]
        for name in names:
            with pytest.raises(UsageError, match=r"is a file of the lake .* name a file elsewhere"):
                lake.save("SELECT 1 AS a", tmp_path / "lake" / name, overwrite=True)
        assert tree(tmp_path) == before
        assert lake.save("SELECT 1 AS a", tmp_path / "lake" / "answer.csv").num_rows == 1


def test_an_answer_goes_to_object_storage_too(lake):
    out = "memory://answers/x.parquet"
    assert lake.save("SELECT 1 AS a", out).location == out
    with pytest.raises(ConfigError, match="is there already"):
        lake.save("SELECT 1 AS a", out)


def test_other_libraries_take_an_answer_as_it_is(lake):
    query = "SELECT domain, count(*) AS n FROM samples GROUP BY ALL ORDER BY ALL"
    expected = {"domain": ["east", "north", "south"], "n": [24, 24, 24]}
    assert pl.DataFrame(lake.read(query)).to_dict(as_series=False) == expected
    relation = lake.sql(query)
    assert pa.table(relation).to_pydict() == expected
    assert pl.DataFrame(lake.sql(query)).to_dict(as_series=False) == expected
    assert relation.pl().to_dict(as_series=False) == expected
    assert relation.arrow().read_all().to_pydict() == expected
    assert relation.to_arrow_table().to_pydict() == expected


def test_a_relation_is_a_frame_of_pandas(lake):
    pytest.importorskip("pandas")
    frame = lake.sql("SELECT domain, count(*) AS n FROM samples GROUP BY ALL ORDER BY ALL").df()
    assert frame.to_dict("list") == {"domain": ["east", "north", "south"], "n": [24, 24, 24]}


def test_text_on_a_terminal_cannot_steer_it(monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", shown)
    answers.write(table_of(pa.table({"a\x1b]0;x\x07": ["\x1b[31mred\r"]})), "csv", console.raw_out())
    assert shown.getvalue() == '"a\\x1b]0;x\\x07"\n"\\x1b[31mred\\r"\n'
