"""The row index: what it holds, that it is brought up to date in one step, and what it refuses."""

import hashlib
import itertools
import os
import subprocess
import sys
import uuid
from dataclasses import replace

import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors import duck
from connectors.errors import (
    BadRowsError,
    ConflictError,
    CorruptFileError,
    SchemaError,
)
from connectors.plain import list_parquet
from connectors.store import delete, open_store, read_bytes, write_object


def ingest(connection, url, options=None, **settings):
    return duck.ingest(connection, list_parquet(url, options), **{"text": "text", "domain": "source"} | settings)


def index(connection):
    """(path, row) → what the index says."""
    rows = connection.execute(
        "SELECT path, row, sample_id, domain, num_bytes, usable FROM sample_index JOIN files USING (file_id)"
    ).fetchall()
    return {(path, row): tuple(rest) for path, row, *rest in rows}


def content_id(domain, text):
    return xxhash.xxh3_128_hexdigest(f"{domain}\0{text}".encode())


# what it holds --------------------------------------------------------------------------------------------------


def test_every_row_is_indexed_on_every_store(place, connection, put):
    put(place.url, "a.parquet", place.options, text=["ä b", "c", "d"], source=["x", "y", "x"], row_group_size=2)
    put(place.url, "k=v/ü 'q'.parquet", place.options, text=["e"], source=["x"])
    report = ingest(connection, place.url, place.options)
    assert (report.num_files, report.num_rows, report.added, report.rows_indexed) == (2, 4, 2, 4)
    assert index(connection) == {
        ("a.parquet", 0): (content_id("x", "ä b"), "x", 4, True),
        ("a.parquet", 1): (content_id("y", "c"), "y", 1, True),
        ("a.parquet", 2): (content_id("x", "d"), "x", 1, True),
        ("k=v/ü 'q'.parquet", 0): (content_id("x", "e"), "x", 1, True),
    }


def test_the_files_table_holds_what_was_listed(url, connection, put):
    put(url, "a.parquet", text=["a", "b", "c"], source=["x"] * 3, row_group_size=2)
    ingest(connection, url)
    (file,) = list_parquet(url).files
    found = connection.execute("SELECT path, size_bytes, version, num_rows, num_row_groups FROM files").fetchall()
    assert found == [(file.path, file.size_bytes, file.version, 3, 2)]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (pa.array([1, 2]), ["1", "2"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
        (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
    ],
    ids=["int", "bool", "dictionary", "large", "view"],
)
def test_domains_of_any_type_are_strings(url, connection, domain, expected, put):
    put(url, "a.parquet", text=["a", "b"], source=domain)
    put(
        url,
        "a.parquet",
        text=pa.array(["a", "b"]).cast(domain.type if "str" in str(domain.type) else pa.string()),
        source=domain,
    )
    ingest(connection, url)
    assert [entry[:2] for entry in index(connection).values()] == [
        (content_id(name, text), name) for name, text in zip(expected, "ab", strict=True)
    ]


def test_the_domain_may_be_a_partition(url, connection, put):
    put(url, "lang=en/a.parquet", text=["a"])
    put(url, "lang=d%2Fe/a.parquet", text=["a"])
    ingest(connection, url, domain="lang")
    assert {(path, entry[1]) for (path, _), entry in index(connection).items()} == {
        ("lang=en/a.parquet", "en"),
        ("lang=d%2Fe/a.parquet", "d/e"),
    }


def test_identical_rows_get_numbers_and_other_domains_do_not(url, connection, put):
    put(url, "a.parquet", text=["a", "a", "b"], source=["x", "x", "x"])
    put(url, "b.parquet", text=["a", "a"], source=["x", "y"])
    ingest(connection, url)
    base = content_id("x", "a")
    assert {key: entry[0] for key, entry in index(connection).items()} == {
        ("a.parquet", 0): base,
        ("a.parquet", 1): f"{base}-2",
        ("a.parquet", 2): content_id("x", "b"),
        ("b.parquet", 0): f"{base}-3",
        ("b.parquet", 1): content_id("y", "a"),
    }


def test_ids_may_be_made_by_sha256_and_another_hash_indexes_everything_again(url, connection, put):
    put(url, "a.parquet", text=["a", "a", "ä"], source=["x", "x", "y"])
    ingest(connection, url)
    report = ingest(connection, url, id_hash="sha256")
    assert (report.reindexed_all, report.num_duplicates) == (True, 1)
    first, other = (hashlib.sha256(f"{domain}\0{text}".encode()).hexdigest() for domain, text in ("xa", "yä"))
    assert [entry[0] for _, entry in sorted(index(connection).items())] == [first, f"{first}-2", other]
    assert not ingest(connection, url, id_hash="sha256").reindexed_all


def test_duplicates_are_counted_exactly_and_sql_has_them(url, connection, put):
    put(url, "a.parquet", text=["a", "a", "b", "b", None, None], source=["x", "x", "x", "y", "x", "x"])
    put(url, "b.parquet", text=["a", "c", "b", "c"], source=["x", "y", "y", "y"])
    report = ingest(connection, url, bad_rows="skip")
    # three of x/a, two of y/b, two of y/c; the rows without text are none
    assert (report.num_duplicates, report.duplicate_share) == (4, 4 / 8)
    duck.create_duplicates_view(connection, key=None)
    found = connection.execute("SELECT sample_id, domain, num_rows, num_files FROM duplicates").fetchall()
    assert sorted(found, key=lambda row: row[1:]) == [
        (content_id("x", "a"), "x", 3, 2),
        (content_id("y", "c"), "y", 2, 1),
        (content_id("y", "b"), "y", 2, 2),
    ]
    delete(open_store(url), "b.parquet")
    assert ingest(connection, url, bad_rows="skip").num_duplicates == 1


def test_rows_with_a_key_are_not_compared(url, connection, put):
    put(url, "a.parquet", text=["a", "a"], source=["x", "x"], id=["7", "7-2"])
    report = ingest(connection, url, key="id")
    assert (report.num_duplicates, report.duplicate_share) == (None, None)
    duck.create_duplicates_view(connection, key="id")
    with pytest.raises(duck.Error, match="rows are identified by column 'id', so that their texts were not compared"):
        connection.execute("SELECT * FROM duplicates").fetchall()


def test_domain_and_text_do_not_run_together(url, connection, put):
    put(url, "a.parquet", text=["bc", "c"], source=["a", "ab"])
    ingest(connection, url)
    assert len({entry[0] for entry in index(connection).values()}) == 2
    assert not any("-" in entry[0] for entry in index(connection).values())


def test_a_key_column_is_the_sample_id(url, connection, put):
    put(url, "a.parquet", text=["a", "a"], source=["x", "x"], id=[7, 8])
    ingest(connection, url, key="id")
    assert [entry[0] for entry in index(connection).values()] == ["7", "8"]


def test_many_rows_in_many_batches(url, connection, put):
    num_rows = 9000
    texts = [f"text {i}" for i in range(num_rows)]
    put(url, "a.parquet", text=texts, source=[f"d{i % 7}" for i in range(num_rows)], row_group_size=2500)
    ingest(connection, url)
    found = index(connection)
    assert len(found) == num_rows
    assert all(found["a.parquet", i][0] == content_id(f"d{i % 7}", texts[i]) for i in range(0, num_rows, 97))


def test_progress_counts_rows_to_the_total(url, connection, put):
    put(url, "a.parquet", text=["a", "b"], source=["x", "x"])
    put(url, "b.parquet", text=["c"], source=["x"])
    seen = []
    ingest(connection, url, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]


def test_empty_files_are_indexed_as_files(url, connection, put):
    put(url, "a.parquet", text=pa.array([], pa.string()), source=pa.array([], pa.string()))
    report = ingest(connection, url)
    assert (report.num_files, report.num_rows) == (1, 0)
    assert connection.execute("SELECT count(*) FROM files").fetchone() == (1,)


# up to date in one step -----------------------------------------------------------------------------------------


def test_only_new_and_changed_files_are_read(url, connection, put):
    put(url, "same.parquet", text=["a"], source=["x"])
    put(url, "changed.parquet", text=["b"], source=["x"])
    put(url, "removed.parquet", text=["c"], source=["x"])
    ingest(connection, url)
    (before,) = connection.execute("SELECT file_id FROM files WHERE path = 'same.parquet'").fetchone()
    put(url, "changed.parquet", text=["b2", "b3"], source=["x", "x"])
    delete(open_store(url), "removed.parquet")
    put(url, "new.parquet", text=["d"], source=["x"])
    report = ingest(connection, url)
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 1, 1)
    assert (report.num_files, report.num_rows, report.rows_indexed) == (3, 4, 3)
    assert sorted(path for path, _ in index(connection)) == ["changed.parquet"] * 2 + ["new.parquet", "same.parquet"]
    assert connection.execute("SELECT file_id FROM files WHERE path = 'same.parquet'").fetchone() == (before,)


def test_of_files_that_have_not_changed_only_the_footer_is_read(place, connection, put):
    """The pages of the others are not there any more, which their listing does not tell."""
    put(place.url, "same.parquet", place.options, text=["a" * 100], source=["x"])
    put(place.url, "moved.parquet", place.options, text=["b"], source=["x"])
    ingest(connection, place.url, place.options)
    store = place.store()
    put(place.url, "elsewhere.parquet", place.options, text=["b"], source=["x"])
    delete(store, "moved.parquet")
    data = read_bytes(store, "same.parquet")
    (before,) = [file for file in list_parquet(place.url, place.options).files if file.path == "same.parquet"]
    write_object(store, "same.parquet", data[:4] + bytes(100) + data[104:])
    corpus = list_parquet(place.url, place.options)
    files = tuple(
        replace(file, version=before.version) if file.path == "same.parquet" else file for file in corpus.files
    )
    settings = {"text": "text", "domain": "source"}
    report = duck.ingest(connection, replace(corpus, files=files), **settings)
    assert (report.added, report.removed, report.unchanged, report.rows_indexed) == (1, 1, 1, 1)
    with pytest.raises(CorruptFileError, match=r"same\.parquet is damaged"):
        duck.ingest(connection, corpus, **settings)
    assert {path for path, _ in index(connection)} == {"same.parquet", "elsewhere.parquet"}


def test_the_catalog_of_an_older_version_is_kept(url, connection, put):
    put(url, "a.parquet", text=["ä", "b"], source=["x", "x"])
    ingest(connection, url)
    before = index(connection)
    connection.execute("ALTER TABLE sample_index ADD COLUMN num_chars INTEGER")
    connection.execute("ALTER TABLE files DROP COLUMN footer_hash")
    assert duck.changed_files(connection, list_parquet(url)) == []
    put(url, "b.parquet", text=["c"], source=["x"])
    report = ingest(connection, url)
    assert (report.unchanged, report.added, report.reindexed_all) == (1, 1, False)
    assert before.items() < index(connection).items()


def test_a_file_of_the_same_size_with_other_rows_is_read_again(place, connection, put):
    for text, other in (("one", "two"), ("six", "ten")):
        put(place.url, "a.parquet", place.options, text=[text, other], source=["x", "x"])
        ingest(connection, place.url, place.options)
        assert {entry[0] for entry in index(connection).values()} == {content_id("x", text), content_id("x", other)}
    assert connection.execute("SELECT count(*), min(size_bytes) FROM files").fetchone() == (
        1,
        list_parquet(place.url, place.options).size_bytes,
    )


def test_a_file_of_the_same_size_and_time_with_another_footer_is_read_again(tmp_path, connection, put):
    for text, other in (("one", "two"), ("six", "ten")):
        put(str(tmp_path), "a.parquet", text=[text, other], source=["x", "x"])
        os.utime(tmp_path / "a.parquet", ns=(1, 1))
        corpus = list_parquet(str(tmp_path))
        if text == "six":
            assert duck.changed_files(connection, corpus) == ["a.parquet"]
        ingest(connection, str(tmp_path))
        assert {entry[0] for entry in index(connection).values()} == {content_id("x", text), content_id("x", other)}
        assert duck.changed_files(connection, corpus) == []
    assert connection.execute("SELECT count(*), count(DISTINCT version) FROM files").fetchone() == (1, 1)


def test_nothing_new_reads_nothing(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"])
    ingest(connection, url)
    assert duck.changed_files(connection, list_parquet(url)) == []
    report = ingest(connection, url)
    assert (report.rows_indexed, report.unchanged, report.reindexed_all) == (0, 1, False)


def test_changed_files_names_new_changed_and_gone(url, connection, put):
    for name in ("a", "b", "c"):
        put(url, f"{name}.parquet", text=[name], source=["x"])
    ingest(connection, url)
    put(url, "b.parquet", text=["other"], source=["x"])
    delete(open_store(url), "c.parquet")
    put(url, "d.parquet", text=["d"], source=["x"])
    assert duck.changed_files(connection, list_parquet(url)) == ["b.parquet", "c.parquet", "d.parquet"]


@pytest.mark.parametrize("change", [{"domain": "other"}, {"text": "title"}, {"key": "title"}, {"bad_rows": "skip"}])
def test_other_settings_index_everything_again(url, connection, change, put):
    put(url, "a.parquet", text=["a", "b"], source=["x", "x"], other=["p", "q"], title=["s", "t"])
    ingest(connection, url)
    report = ingest(connection, url, **change)
    assert (report.reindexed_all, report.rows_indexed) == (True, 2)
    assert not ingest(connection, url, **change).reindexed_all
    with duck.connect() as fresh:
        ingest(fresh, url, **change)
        assert index(connection) == index(fresh)


def test_another_lake_replaces_the_index_even_if_its_files_look_the_same(tmp_path, connection, put):
    for name, text in (("one", "a"), ("two", "b")):
        put(str(tmp_path / name), "a.parquet", text=[text], source=["x"])
        os.utime(tmp_path / name / "a.parquet", ns=(1, 1))
        ingest(connection, str(tmp_path / name))
    assert index(connection)["a.parquet", 0][0] == content_id("x", "b")


LAKES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.lists(st.sampled_from(["p", "q", "r"]), max_size=4), min_size=1
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lakes=st.lists(LAKES, min_size=2, max_size=4))
def test_ingesting_step_by_step_equals_ingesting_at_once(lakes, put):
    url = f"memory://{uuid.uuid4().hex}"
    with duck.connect() as stepwise, duck.connect() as fresh:
        for before, lake in itertools.pairwise([{}, *lakes]):
            for name in before.keys() - lake.keys():
                delete(open_store(url), f"{name}.parquet")
            for name in [name for name in lake if lake[name] != before.get(name)]:
                texts = lake[name]
                put(
                    url,
                    f"{name}.parquet",
                    text=pa.array(texts, pa.string()),
                    source=pa.array(["x"] * len(texts), pa.string()),
                )
            ingest(stepwise, url)
        ingest(fresh, url)
        assert index(stepwise) == index(fresh)
        ids = [entry[0] for entry in index(stepwise).values()]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_ingest_leaves_the_old_index(url, connection, interruption, put):
    put(url, "a.parquet", text=["a"], source=["x"])
    ingest(connection, url)
    before = index(connection)
    put(url, "a.parquet", text=["changed", "b"], source=["x", "x"])
    put(url, "b.parquet", text=["c"], source=["x"])

    def interrupt(done, total):
        if done == total:
            raise interruption

    with pytest.raises(interruption):
        ingest(connection, url, on_progress=interrupt)
    assert index(connection) == before
    ingest(connection, url)
    assert len(index(connection)) == 3


KILLED = """
import os, sys
from connectors import duck
from connectors.plain import list_parquet
with duck.connect(sys.argv[1]) as connection:
    duck.ingest(connection, list_parquet(sys.argv[2]), text="text", domain="source",
                on_progress=lambda done, total: os._exit(9) if done == total else None)
"""


def test_a_killed_ingest_leaves_the_old_index(tmp_path, put):
    lake, catalog = str(tmp_path / "lake"), tmp_path / "catalog.duckdb"
    put(lake, "a.parquet", text=["a"], source=["x"])
    with duck.connect(catalog) as connection:
        ingest(connection, lake)
        before = index(connection)
    put(lake, "a.parquet", text=["changed", "b"], source=["x", "x"])
    assert subprocess.run([sys.executable, "-c", KILLED, catalog, lake], check=False).returncode == 9
    with duck.connect(catalog) as connection:
        assert index(connection) == before


def test_a_file_changed_since_it_was_listed_is_a_conflict(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"])
    corpus = list_parquet(url)
    put(url, "a.parquet", text=["b"], source=["x"])
    with pytest.raises(ConflictError, match=r"a\.parquet has changed"):
        duck.ingest(connection, corpus, text="text", domain="source")


# what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, "", " \t\n", "\u2003"])
def test_rows_without_text_are_named_or_skipped(url, connection, bad, put):
    put(url, "a.parquet", text=["a", bad, "b", bad], source=["x"] * 4, row_group_size=1)
    with pytest.raises(
        BadRowsError, match=r"a\.parquet has 2 row\(s\) with no text in column 'text'.*first row 1;.*--skip-bad-rows"
    ):
        ingest(connection, url)
    report = ingest(connection, url, bad_rows="skip")
    assert report.num_unusable == 2
    assert [entry[-1] for _, entry in sorted(index(connection).items())] == [True, False, True, False]


@pytest.mark.parametrize("bad", [None, ""])
def test_rows_without_domain_are_named_or_skipped(url, connection, bad, put):
    put(url, "a.parquet", text=["a", "b"], source=["x", bad])
    with pytest.raises(BadRowsError, match=r"1 row\(s\) with no domain in 'source' \(null or empty\), first row 1"):
        ingest(connection, url)
    assert ingest(connection, url, bad_rows="skip").num_unusable == 1


def test_hives_null_partition_is_no_domain(url, connection, put):
    put(url, "lang=__HIVE_DEFAULT_PARTITION__/a.parquet", text=["a"])
    with pytest.raises(BadRowsError, match="no domain in 'lang'"):
        ingest(connection, url, domain="lang")


def test_unusable_rows_have_ids_of_their_own(url, connection, put):
    put(url, "a.parquet", text=pa.array([None, None, ""], pa.string()), source=["x", None, "x"])
    ingest(connection, url, bad_rows="skip")
    ids = [entry[0] for entry in index(connection).values()]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_text_that_is_not_utf8_is_always_an_error(url, connection, bad_rows, is_dictionary, put):
    _, offsets, data = pa.array([b"fine", b"ok", b"\xff\xfe"], pa.binary()).buffers()
    text = pa.StringArray.from_buffers(3, offsets, data)
    message = r"column 'text' of .*a\.parquet is not valid UTF-8 in row 2 "
    if is_dictionary:
        text = pa.DictionaryArray.from_arrays([0, 1, 2], text)
        message = r"a\.parquet has a string that is not valid UTF-8"
    put(url, "a.parquet", text=text, source=["x"] * 3)
    with pytest.raises(BadRowsError, match=message):
        ingest(connection, url, bad_rows=bad_rows)


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_a_missing_key_is_always_an_error(url, connection, bad_rows, put):
    put(url, "a.parquet", text=["a", "b"], source=["x", "x"], id=["1", None])
    with pytest.raises(BadRowsError, match=r"key column 'id' of .*a\.parquet is null in row 1"):
        ingest(connection, url, key="id", bad_rows=bad_rows)


def test_a_repeated_key_names_where_it_is(url, connection, put):
    put(url, "a.parquet", text=["a", "b"], source=["x", "x"], id=["1", "2"])
    put(url, "b.parquet", text=["c", "d"], source=["x", "x"], id=["3", "2"])
    with pytest.raises(BadRowsError, match=r"'id' has the value '2' 2 times, first in row 1 of .*a\.parquet \(1 key"):
        ingest(connection, url, key="id")
    assert connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'files'").fetchone() == (0,)


def test_missing_columns_are_refused_before_anything_is_read(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"])
    with pytest.raises(SchemaError, match="no column 'txt'"):
        ingest(connection, url, text="txt")
