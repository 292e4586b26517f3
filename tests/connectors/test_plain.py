"""From an address to an explicit list of Parquet files."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.errors import CorruptFileError, InputError, NotFoundError, SchemaError
from connectors.plain import lake_place, list_parquet
from connectors.store import write_object

TABLE = pa.table({"text": ["a", "b"], "source": ["x", "y"]})


def parquet(table=TABLE):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def fill(place, *paths):
    for path in paths:
        write_object(place.store(), path, parquet())


def listed(place, pattern=""):
    corpus = list_parquet(f"{place.url}{pattern}", place.options)
    return [file.path for file in corpus.files]


def test_a_folder_is_taken_with_everything_below_it_sorted(place):
    fill(place, "b.parquet", "a/z.parquet", "a/b/c.pq", "d.parq")
    write_object(place.store(), "a/README.md", b"hello")
    assert listed(place) == ["a/b/c.pq", "a/z.parquet", "b.parquet", "d.parq"]
    assert listed(place, "/") == listed(place)


@pytest.mark.parametrize("hidden", ["_curator/data/a.parquet", ".git/a.parquet", "x/_tmp/a.parquet", "_a.parquet"])
def test_names_with_underscore_or_dot_are_passed_over(place, hidden):
    fill(place, "x/a.parquet", hidden)
    write_object(place.store(), "_SUCCESS", b"")
    assert listed(place) == ["x/a.parquet"]
    assert listed(place, "/**/*.parquet") == ["x/a.parquet"]


def test_what_is_passed_over_can_be_named(place):
    fill(place, "_curator/data/a.parquet")
    assert listed(place, "/_curator/data") == ["a.parquet"]
    assert listed(place, "/_curator/data/*.parquet") == ["a.parquet"]


def test_a_single_file_is_a_corpus_of_one(place):
    fill(place, "sub/a.parquet", "sub/b.parquet")
    corpus = list_parquet(f"{place.url}/sub/a.parquet", place.options)
    assert [file.path for file in corpus.files] == ["a.parquet"]
    assert corpus.store.url == f"{place.url}/sub"


def test_partitions_are_found_wherever_the_address_ends(place):
    fill(place, "lake/lang=en/day=1/a.parquet", "lake/lang=de/day=1/a.parquet")
    for pattern in ("/lake", "/lake/lang=en", "/lake/lang=en/day=1/a.parquet", "/lake/lang=en/*/*.parquet", "/lake/**"):
        corpus = list_parquet(f"{place.url}{pattern}", place.options)
        assert corpus.store.url == f"{place.url}/lake"
        assert corpus.files[-1].partition == {"lang": "en", "day": "1"}
        assert len(corpus.files) == (1 if "lang=en" in pattern else 2)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/*.parquet", ["b.parquet", "c1.parquet"]),
        ("/c?.parquet", ["c1.parquet"]),
        ("/[a-b].parquet", ["b.parquet"]),
        ("/*/*.parquet", ["a/d.parquet"]),
        ("/**/*.parquet", ["a/d.parquet", "a/e/f.parquet", "b.parquet", "c1.parquet"]),
        ("/**", ["a/d.parquet", "a/e/f.parquet", "b.parquet", "c1.parquet"]),
        ("/a/**/*.parquet", ["d.parquet", "e/f.parquet"]),
        ("/a/**/f.parquet", ["e/f.parquet"]),
    ],
)
def test_globs(place, pattern, expected):
    fill(place, "b.parquet", "c1.parquet", "a/d.parquet", "a/e/f.parquet")
    assert listed(place, pattern) == expected


def test_a_glob_is_rooted_at_its_fixed_prefix(place):
    fill(place, "x/y/a.parquet")
    assert list_parquet(f"{place.url}/x/*/*.parquet", place.options).store.url == f"{place.url}/x"


def test_two_stars_must_be_a_whole_part(place):
    with pytest.raises(InputError, match=r"`\*\*` must be a whole part"):
        listed(place, "/x**/a.parquet")


def test_a_name_with_wildcards_that_exists_is_meant_literally(place):
    fill(place, "[a].parquet", "a.parquet")
    assert listed(place, "/[a].parquet") == ["[a].parquet"]


def test_odd_names_are_found(place):
    names = ["größe/日本.parquet", 'it\'s "so" 50%.parquet', "lang=a%2Fb/x y.parquet"]
    fill(place, *names)
    assert listed(place) == sorted(names)


def test_lake_place_is_the_root_of_the_list(place):
    fill(place, "lake/lang=en/a.parquet")
    for part in ("", "lang=en", "lang=en/a.parquet", "*/*.parquet"):
        root, found = lake_place(f"{place.url}/lake/{part}", place.options)
        assert (root.path, found) == (f"{place.store().path}/lake", part)


def test_relative_and_absolute_local_globs(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(parquet())
    monkeypatch.chdir(tmp_path)
    for address in (
        "*.parquet",
        "./*.parquet",
        "a.parquet",
        ".",
        f"{tmp_path}/*.parquet",
        f"file://{tmp_path}/*.parquet",
    ):
        corpus = list_parquet(address)
        assert [file.path for file in corpus.files] == ["a.parquet"]
        assert corpus.store.path == str(tmp_path)


def test_the_corpus_describes_itself(place):
    fill(place, "a.parquet", "b.parquet")
    corpus = list_parquet(place.url, place.options)
    assert corpus.num_rows == 4
    assert corpus.size_bytes == sum(file.size_bytes for file in corpus.files)
    assert repr(corpus) == f"Corpus({place.url!r}: 2 files, 4 rows, 0.0 MB)"
    assert corpus.schema.equals(TABLE.schema)


def test_nothing_there_is_not_found(place):
    with pytest.raises(NotFoundError, match=f"{place.url}/nowhere"):
        listed(place, "/nowhere")


def test_a_folder_without_parquet_says_what_is_there(place):
    write_object(place.store(), "data/a.jsonl", b"{}")
    write_object(place.store(), "data/b.csv", b"x")
    with pytest.raises(NotFoundError, match=r"of the 2 objects there \(.*a\.jsonl, .*b\.csv\).*\.parquet"):
        listed(place, "/data")


def test_a_glob_without_matches_says_what_is_there(place):
    fill(place, "data/a.parquet")
    with pytest.raises(
        NotFoundError, match=r"no Parquet file matches .*b\*\.parquet; of the 1 objects there \(a\.parquet"
    ):
        listed(place, "/data/b*.parquet")


def test_a_file_that_is_not_parquet_is_named(place):
    fill(place, "a.parquet")
    write_object(place.store(), "b.parquet", b"text,source\n")
    with pytest.raises(CorruptFileError, match=r"b\.parquet is not a Parquet file"):
        listed(place)


def test_files_that_disagree_are_named(place):
    fill(place, "a.parquet")
    write_object(place.store(), "b.parquet", parquet(pa.table({"text": [1]})))
    with pytest.raises(SchemaError, match=r"'text' is string in a\.parquet but int64 in b\.parquet"):
        listed(place)


def test_a_local_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a\udcff.parquet").write_bytes(parquet())
    with pytest.raises(InputError, match="not valid UTF-8; rename it"):
        list_parquet(str(tmp_path))


def test_credentials_are_not_repeated_in_errors(s3_place):
    with pytest.raises(NotFoundError) as caught:
        list_parquet(f"{s3_place.url}/nowhere", s3_place.options)
    assert s3_place.options["secret"] not in str(caught.value)


def test_a_file_of_another_kind_comes_with_how_to_convert_it(tmp_path):
    (tmp_path / "lake.csv").write_text("text,source\n" * 100)
    with pytest.raises(CorruptFileError, match=r"lake\.csv is not a Parquet file; convert it, .*TO 'lake\.parquet'"):
        list_parquet(str(tmp_path / "lake.csv"))
