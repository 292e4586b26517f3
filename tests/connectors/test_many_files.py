"""Lakes of many small files: listed and indexed in few steps, and in memory that their number does not fill."""

import threading
import tracemalloc

import pyarrow as pa
import pytest

from connectors import duck, plain
from connectors._rows import index_batches
from connectors.errors import BadRowsError
from connectors.store import open_store, read_bytes, write_object

SETTINGS = {"text": "text", "domain": "part"}


def write_many(url, options, put, num_files):
    """Files of two rows in ten partitions; the same bytes under every name."""
    put(url, "one.parquet", options, text=["a", "b"], n=[1, 2])
    store = open_store(url, options)
    data = read_bytes(store, "one.parquet")
    for number in range(num_files):
        write_object(store, f"lake/part={number % 10}/{number:05}.parquet", data)
    return f"{url}/lake"


def test_listing_tells_how_far_it_is_and_keeps_a_schema_once(place, put):
    url = write_many(place.url, place.options, put, 30)
    put(f"{url}/part=0", "wide.parquet", place.options, text=["c"], more=[1.5])
    told = []
    corpus = plain.list_parquet(url, place.options, lambda done, total: told.append((done, total)))
    assert told == [(done, 31) for done in range(1, 32)]
    assert [file.path for file in corpus.files] == sorted(file.path for file in corpus.files)
    assert len({id(file.schema) for file in corpus.files}) == 2
    assert corpus.files[-1].schema.equals(pa.schema({"text": pa.string(), "n": pa.int64()}))
    assert [file.schema.names for file in corpus.files if "wide" in file.path] == [["text", "more"]]


def test_rows_of_many_files_are_indexed_with_their_own_file(place, connection, put, monkeypatch):
    """Also where small files are read ahead and inserted together, and a larger one between them is not."""
    monkeypatch.setattr("connectors._parquet_file._SMALL_BYTES", 100_000)
    sizes = (1, 2, 0, 120_000, 3, 1)
    for number, num_rows in enumerate(sizes):
        texts = pa.array([f"{number}-{row}" for row in range(num_rows)], pa.string())
        put(place.url, f"part=x/{number}.parquet", place.options, text=texts)
    told = []
    corpus = plain.list_parquet(place.url, place.options)
    report = duck.ingest(connection, corpus, **SETTINGS, on_progress=lambda done, total: told.append((done, total)))
    assert (report.added, report.num_rows, report.rows_indexed, report.num_duplicates) == (6, 120_007, 120_007, 0)
    assert told[-1] == (120_007, 120_007)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    duck.create_samples_view(connection, corpus, **SETTINGS)
    found = connection.execute(
        "SELECT path, count(*), bool_and(text = right(path, 9)[1] || '-' || row AND num_bytes = strlen(text)) "
        "FROM lake_rows JOIN sample_index USING (file_id, row) JOIN files USING (file_id) GROUP BY path ORDER BY path"
    ).fetchall()
    assert found == [(f"part=x/{number}.parquet", size, True) for number, size in enumerate(sizes) if size]


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_small_files_are_read_in_threads_where_they_are_remote(kind, request, url, connection, put, monkeypatch):
    place = request.getfixturevalue("s3_place") if kind == "s3" else None
    many = write_many(*((place.url, place.options) if place else (url, None)), put, 40)
    readers = set()

    def noting(*arguments):
        readers.add(threading.current_thread().name.split("_")[0])
        yield from index_batches(*arguments)

    monkeypatch.setattr("connectors._index.index_batches", noting)
    duck.ingest(connection, plain.list_parquet(many, place and place.options), **SETTINGS)
    assert readers == ({"index"} if place else {"MainThread"})


def test_the_first_bad_file_in_order_is_named_and_nothing_is_indexed(place, connection, put):
    url = write_many(place.url, place.options, put, 40)
    put(url, "part=3/00014.parquet", place.options, text=["a", ""])
    put(url, "part=5/bad.parquet", place.options, text=[None, "a"])
    with pytest.raises(BadRowsError, match=r"part=3/00014\.parquet has 1 row\(s\) with no text .* first row 1"):
        duck.ingest(connection, plain.list_parquet(url, place.options), **SETTINGS)
    assert connection.execute("SELECT * FROM duckdb_tables() WHERE table_name = 'sample_index'").fetchall() == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("index")] == []


@pytest.mark.parametrize("kind", ["local", "s3"])
@pytest.mark.slow
@pytest.mark.timeout(1800)  # of which most is S3, on the same cores
def test_ten_thousand_files(kind, request, tmp_path, put):
    """Time against a bare listing is measured in tests/bench/bench_ingest.py."""
    place = request.getfixturevalue("s3_place") if kind == "s3" else None
    root, options = (place.url, place.options) if place else (str(tmp_path), None)
    url = write_many(root, options, put, 10_000)
    tracemalloc.start()
    corpus = plain.list_parquet(url, options)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(corpus.files), corpus.num_rows) == (10_000, 20_000)
    assert peak < 30e6, (held, peak)
    with duck.connect(tmp_path / "catalog.duckdb") as connection:
        report = duck.ingest(connection, corpus, **SETTINGS)
        assert (report.added, report.num_duplicates) == (10_000, 20_000 - 20)
        assert duck.ingest(connection, corpus, **SETTINGS).rows_indexed == 0
        duck.create_samples_view(connection, corpus, **SETTINGS)
        assert connection.execute("SELECT count(DISTINCT file_id), count(text) FROM lake_rows").fetchall() == [
            (10_000, 20_000)
        ]
