"""The copy of the rows in the catalog: the same answers as from the files, kept up to date, all or nothing."""

import datetime as dt
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors import duck
from connectors._database import memory_limit
from connectors.errors import ConflictError, ConnectorError, CorruptFileError, UnsupportedError
from connectors.plain import list_parquet
from connectors.store import delete, open_store, read_bytes, write_object

COLUMNS = {"text": "text", "domain": "source"}


def ingest(connection, url, options=None, **over):
    return duck.ingest(connection, list_parquet(url, options), **COLUMNS | {"copy_rows": True} | over)


def rows_of(connection, corpus):
    """Every column but the id of the file, which depends on how the index came about."""
    duck.create_samples_view(connection, corpus, **COLUMNS)
    return connection.execute("SELECT * EXCLUDE (file_id) FROM lake_rows ORDER BY ALL").fetchall()


def anew(url, options=None, **over):
    """What a catalog says that was made now and reads the files."""
    with duck.connect() as connection:
        ingest(connection, url, options, copy_rows=False, **over)
        return rows_of(connection, list_parquet(url, options))


def test_a_copy_answers_as_the_files_did_and_without_them(place, connection, put):
    put(place.url, "lang=en/[a] 'b'?.parquet", place.options, text=["a", "b", "a"], source=["x", "y", "x"])
    put(place.url, "lang=de/ü.parquet", place.options, text=["c"], source=["x"], more=[1.5])
    put(place.url, "lang=de/empty.parquet", place.options, **dict.fromkeys(COLUMNS.values(), pa.array([], pa.string())))
    corpus, expected = list_parquet(place.url, place.options), anew(place.url, place.options)
    assert ingest(connection, place.url, place.options).rows_copied == 4
    for file in corpus.files:
        delete(open_store(place.url, place.options), file.path)
    assert rows_of(connection, corpus) == expected
    assert [row[-2:] for row in expected if "c" in row] == [(1.5, "de")]


def test_values_of_every_kind_are_kept(url, connection, put):
    values = {
        "nested": pa.array([{"a": [1, 2], "b": {"c": "x"}}, None]),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "money": pa.array([decimal.Decimal("1.25"), None], pa.decimal128(9, 2)),
        "at": pa.array([dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC), None], pa.timestamp("us", "UTC")),
        "kind": pa.array(["p", "q"]).dictionary_encode(),
        "raw": pa.array([b"\0\xff", b""]),
        "nothing": pa.nulls(2),
        "row": pa.array([7, 8]),
    }
    put(url, "a.parquet", text=["a", "b"], source=["x", "x"], **values)
    expected = anew(url)
    ingest(connection, url)
    assert rows_of(connection, list_parquet(url)) == expected


def test_only_files_that_are_new_or_changed_are_copied(url, connection, put):
    for name in "abc":
        put(url, f"{name}.parquet", text=[name, name * 2], source=["x", "y"])
    assert ingest(connection, url).rows_copied == 6
    assert ingest(connection, url).rows_copied == 0
    put(url, "a.parquet", text=["new", "newer", "newest"], source=["x"] * 3)
    put(url, "d.parquet", text=["d"], source=["y"])
    delete(open_store(url), "b.parquet")
    assert ingest(connection, url).rows_copied == 4
    assert rows_of(connection, list_parquet(url)) == anew(url)
    assert connection.execute("SELECT count(*) FROM lake_copy").fetchall() == [(6,)]


def test_a_column_that_comes_or_changes_brings_all_rows_anew(url, connection, put):
    put(url, "a.parquet", text=["a", "b"], source=["x", "x"], n=[1, 2])
    put(url, "b.parquet", text=["c"], source=["x"])
    assert ingest(connection, url).rows_copied == 3
    put(url, "c.parquet", text=["d"], source=["x"], more=[0.5])
    assert ingest(connection, url).rows_copied == 4
    assert rows_of(connection, list_parquet(url)) == anew(url)
    put(url, "a.parquet", text=["a", "b"], source=["x", "x"], n=["one", "two"])
    assert ingest(connection, url).rows_copied == 4
    assert rows_of(connection, list_parquet(url)) == anew(url)


def test_other_settings_leave_no_row_of_before(url, connection, put):
    put(url, "a.parquet", text=["a", "b"], source=["x", "y"], other=["p", "q"])
    ingest(connection, url)
    assert ingest(connection, url, domain="other").reindexed_all
    duck.create_samples_view(connection, list_parquet(url), text="text", domain="other")
    assert connection.execute("SELECT text, domain FROM lake_rows ORDER BY 1").fetchall() == [("a", "p"), ("b", "q")]
    assert connection.execute("SELECT count(*) FROM lake_copy").fetchall() == [(2,)]


def test_a_copy_that_is_not_wanted_any_more_goes(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"])
    ingest(connection, url)
    report = ingest(connection, url, copy_rows=False)
    assert (report.rows_copied, report.rows_indexed, report.unchanged) == (None, 0, 1)
    corpus = list_parquet(url)
    assert rows_of(connection, corpus) == anew(url)
    delete(open_store(url), "a.parquet")
    with pytest.raises(ConnectorError, match=r"a\.parquet"):
        rows_of(connection, corpus)


def test_a_failure_while_copying_leaves_index_and_copy_as_they_were(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"])
    ingest(connection, url)
    before = rows_of(connection, list_parquet(url))
    corpus = list_parquet(url)
    put(url, "b.parquet", text=["b"], source=["x"])

    def change(done, total):  # between the pass that makes the ids and the one that copies
        put(url, "b.parquet", text=["of another hour"], source=["x"])

    with pytest.raises(ConflictError, match=r"b\.parquet has changed since it was listed"):
        ingest(connection, url, on_progress=change)
    assert rows_of(connection, corpus) == before

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(connection, url, on_copied=stop)
    assert rows_of(connection, corpus) == before
    assert ingest(connection, url).rows_copied == 1


@pytest.mark.parametrize("change", ["other columns", "gone"])
def test_a_file_that_changes_before_it_is_copied_is_a_conflict(url, connection, put, change):
    put(url, "a.parquet", text=["a"], source=["x"], n=[1])

    def spoil(done, total):
        if change == "gone":
            delete(open_store(url), "a.parquet")
        else:
            put(url, "a.parquet", text=["a"], source=["x"])

    with pytest.raises(ConflictError, match=r"a\.parquet has (gone|changed) since it was listed"):
        ingest(connection, url, on_progress=spoil)


def test_damage_in_a_column_that_the_index_does_not_read_is_named(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"], other=["fine"])
    put(url, "b.parquet", text=["b"] * 9, source=["x"] * 9, other=[f"{i} and more" for i in range(9)])
    store = open_store(url)
    data = read_bytes(store, "b.parquet")
    first = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(2)
    begin = first.dictionary_page_offset
    end = begin + first.total_compressed_size
    write_object(store, "b.parquet", data[:begin] + b"\xff" * (end - begin) + data[end:])
    with pytest.raises(CorruptFileError, match=r"b\.parquet is damaged"):
        ingest(connection, url)
    assert ingest(connection, url, copy_rows=False).rows_indexed == 10


def test_a_copy_that_lacks_a_file_of_the_index_is_not_asked(url, connection, put):
    """As after an index that somebody else brought up to date, who knew of no copy."""
    put(url, "a.parquet", text=["a"], source=["x"])
    put(url, "b.parquet", text=["b", "c"], source=["x", "y"])
    ingest(connection, url)
    connection.execute("DELETE FROM lake_copy WHERE text = 'a'")
    assert rows_of(connection, list_parquet(url)) == anew(url)
    assert ingest(connection, url).rows_copied == 1


def test_the_memory_limit_is_never_raised_and_comes_back(connection):
    def limit():
        return connection.execute("SELECT current_setting('memory_limit')").fetchall()[0][0]

    connection.execute("SET memory_limit = '4GiB'")
    with memory_limit(connection, 1.5):
        assert limit() == "1.5 GiB"
        with memory_limit(connection, 2):
            assert limit() == "1.5 GiB"
    assert limit() == "4.0 GiB"


def test_progress_and_chunks_of_many_small_files(url, connection, put, monkeypatch):
    monkeypatch.setattr("connectors._copy._FILES_AT_A_TIME", 3)
    monkeypatch.setattr("connectors._copy._MEMORY_GIBIBYTES", 1.5)
    for number in range(8):
        put(url, f"{number}.parquet", text=[f"{number} {row}" for row in range(2)], source=["x", "y"])
    told, limits = [], []

    def tell(done, total):
        told.append((done, total))
        limits.append(connection.execute("SELECT current_setting('memory_limit')").fetchall()[0][0])

    connection.execute("SET memory_limit = '4GiB'")
    ingest(connection, url, on_copied=tell)
    assert told == [(6, 16), (12, 16), (16, 16)]
    assert set(limits) == {"1.5 GiB"}
    assert rows_of(connection, list_parquet(url)) == anew(url)


@pytest.mark.parametrize("name", ["file_index", "FILE_ROW_NUMBER"])
def test_columns_with_names_that_duckdb_needs_are_refused(url, connection, put, name):
    put(url, "a.parquet", text=["a"], source=["x"], **{name: [1]})
    with pytest.raises(UnsupportedError, match="which DuckDB needs for itself; rename it"):
        ingest(connection, url)
    assert not connection.execute("SELECT * FROM duckdb_tables() WHERE table_name = 'sample_index'").fetchall()
