"""Tables in memory as targets, which records can name afterwards, and as lakes, once they are written."""

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import FAST, sentences, tree, write_lake, write_target

import curator
from curator import memory
from curator.errors import InputError, UsageError

DSIR = FAST | {"method": "dsir"}


@pytest.fixture
def lake(tmp_path):
    with curator.open_lake(write_lake(tmp_path / "lake"), text="text", domain="domain") as opened:
        yield opened


def tables(texts):
    """The same texts as every library has them."""
    table = pa.table({"text": texts, "n": range(len(texts))})
    yield table
    yield table.to_reader(max_chunksize=3)
    yield pa.concat_tables([table.slice(0, 5), table.slice(5)])
    yield pl.DataFrame({"text": texts})
    yield pl.DataFrame({"text": texts}, schema={"text": pl.Categorical})
    yield duckdb.connect().sql("SELECT unnest($texts) AS text", params={"texts": texts})


def test_a_target_in_memory_is_learned_for_as_its_file_would_be(lake, tmp_path):
    write_target(tmp_path / "target.parquet")
    frame = pl.read_parquet(tmp_path / "target.parquet")
    by_file = lake.learn(tmp_path / "target.parquet", **DSIR)
    by_frame = lake.learn(frame.rename({"text": "said"}), target_text="said", **DSIR)
    weights = [{row["domain"]: row["domain_weight"] for row in run.record["domains"]} for run in (by_file, by_frame)]
    assert weights[0] == weights[1]
    told, kept = by_file.record["target"], by_frame.record["target"]
    assert (told["in_memory"], kept["in_memory"]) == (False, True)
    assert told["fingerprint"] == kept["fingerprint"]
    assert pl.read_parquet(kept["url"])["said"].to_list() == frame["text"].to_list()
    assert b"target that was in memory" in pq.read_schema(kept["url"]).metadata[b"lake-curator"]
    assert lake.ingest().num_files == 3  # what was kept is none of the lake's files
    again = lake.learn(kept["url"], target_text="said", **DSIR)
    assert again.record["target"] == kept


def test_every_library_gives_the_same_file_for_the_same_texts(tmp_path):
    texts = [*sentences("north", 8), "ünï", "", "x"]
    places = {memory.keep_target(table, "text", tmp_path) for table in tables(texts)}
    assert len(places) == 1
    (place,) = places
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert pq.read_table(place).to_pydict() == {"text": texts}
    assert memory.is_kept(tmp_path, str(place))
    assert memory.keep_target(pa.table({"text": texts[::-1]}), "text", tmp_path) != place
    told_apart = {memory.keep_target(pa.table({"text": t}), "text", tmp_path) for t in (["ab", "c"], ["a", "bc"])}
    assert len(told_apart) == 2


def test_a_frame_of_pandas_is_a_target(tmp_path):
    pandas = pytest.importorskip("pandas", minversion="2.2")
    frame = pandas.DataFrame({"text": ["a", None, "b"]}, index=[7, 8, 9])
    assert pq.read_table(memory.keep_target(frame, "text", tmp_path))["text"].to_pylist() == ["a", None, "b"]


def test_refresh_knows_a_target_in_memory_again(lake):
    frame = pl.DataFrame({"text": sentences("north", 20, seed=9)})
    how = curator.LearnConfig(**DSIR)
    assert lake.refresh(frame, learn=how).outcome == "published"
    assert lake.refresh(frame.clone(), learn=how).outcome == "nothing"
    assert lake.status(frame, learn=how).action == "nothing"


def test_plans_and_comparisons_take_tables(lake):
    target, test = (pl.DataFrame({"text": sentences("north", 20, seed=seed)}) for seed in (9, 10))
    plan = lake.plan_comparison(target=target, test=test, steps=2, seeds=1)
    assert plan.num_test_rows == 20
    forecast = lake.forecast(target.to_arrow(), calibration_steps=0, **FAST)
    assert forecast.num_target_rows == 20


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            pl.DataFrame({"txt": ["a"], "n": [1]}),
            r"a DataFrame of polars, has no column 'text' \(txt, n\); name its text",
        ),
        (pa.table([["a"], ["b"]], names=["text", "text"]), r"a Table of pyarrow, has 2 columns 'text'; name its text"),
        (pl.DataFrame({"text": [1]}), r"column 'text' of the target, a DataFrame of polars, is int64; it must be text"),
        (pl.Series("text", ["a"]), r"the target, a Series of polars, cannot be read as a table"),
        (pl.DataFrame({"text": ["", None]}), r"has no row with text"),
        (pl.DataFrame({"text": []}, schema={"text": pl.String}), r"has no row with text"),
        (duckdb.connect().sql("SELECT if(range = 90000, error('boom'), 'a') AS text FROM range(100000)"), r".*boom"),
    ],
)
def test_tables_that_are_no_target_are_refused_in_a_sentence(lake, table, said):
    with pytest.raises(InputError, match=said) as caught:
        lake.learn(table, **DSIR)
    assert "\n" not in str(caught.value)


def test_a_target_of_more_than_a_small_set_of_rows_is_to_be_written(lake, monkeypatch):
    monkeypatch.setattr(memory, "_MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"more than 0 GiB of text; take fewer rows, or write them as Parquet files"):
        lake.learn(pl.DataFrame({"text": ["x" * 1001]}), **DSIR)


def test_a_target_may_be_asked_of_the_lake_itself(lake):
    lake.ingest()
    run = lake.learn(lake.sql("SELECT text FROM samples WHERE domain = 'north' LIMIT 12"), **DSIR)
    assert run.record["target"]["num_samples"] == 12
    assert run.leaks.by_domain == {"north": 12}


def test_a_table_becomes_a_lake(tmp_path):
    frame = pl.DataFrame({"text": sentences("north", 30), "domain": ["a", "b", "c"] * 10, "n": range(30)})
    place = curator.write_corpus(frame, tmp_path / "made")
    assert pl.read_parquet(f"{place}/*.parquet").equals(frame)
    with curator.open_lake(place, text="text", domain="domain") as lake:
        assert lake.ingest().num_rows == 30
        run = lake.learn(pl.DataFrame({"text": sentences("north", 20, seed=9)}), **DSIR)
        assert lake.publish(run).num_rows == 30
        relation = lake.sql("SELECT text, domain FROM samples")
        copy = curator.write_corpus(relation, tmp_path / "copy")
    with curator.open_lake(copy, text="text", domain="domain") as lake:
        assert lake.ingest().num_rows == 30
    kinds = frame.with_columns(pl.col("domain").cast(pl.Categorical), e=pl.lit("x", pl.Enum(["x", "y"])))
    with curator.open_lake(curator.write_corpus(kinds, tmp_path / "kinds"), text="text", domain="domain") as lake:
        assert lake.ingest().num_rows == 30
        assert lake.sql("SELECT DISTINCT domain, e FROM samples ORDER BY 1").fetchall()[0] == ("a", "x")
    assert curator.write_corpus(frame, "memory://made/corpus") == "memory://made/corpus"


def test_a_lake_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    before = tree(tmp_path)
    boom = duckdb.connect().sql("SELECT if(range = 90000, error('boom'), 'a') AS text FROM range(100000)")
    union = duckdb.connect().sql("SELECT union_value(k := 1) AS u")
    for table, out, said in (
        (pl.DataFrame({"text": ["a"]}), "full", "is not an empty folder; name a new one, nothing is overwritten"),
        (pl.DataFrame({"text": ["a"]}), "full/x", "is not an empty folder"),
        (pl.DataFrame({"text": ["a"]}).clear(), "new", "a DataFrame of polars has no rows; nothing was written"),
        (np.zeros(3), "new", "a lake cannot be written of a ndarray; give a table"),
        (union, "new", "has a column that Parquet cannot hold"),
        (boom, "new", "cannot be read to its end .*boom"),
    ):
        with pytest.raises((UsageError, InputError), match=said):
            curator.write_corpus(table, tmp_path / out)
        assert tree(tmp_path) == before
        assert not (tmp_path / "new").exists()
