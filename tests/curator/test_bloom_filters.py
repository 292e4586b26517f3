"""Bloom filters of the weight columns, on request; DuckDB, another engine than the one that wrote them, uses them."""

from pathlib import Path

import duckdb
import pytest
from lake_cases import FAST, values_of
from lake_cases import curator as command

import curator
from curator.config import LearnConfig
from curator.errors import ConfigError, UsageError


@pytest.fixture
def lake(learned):
    with curator.open_lake(str(learned.lake)) as opened:
        yield opened


def excluded(publication, column, value):
    """For every row group of the copies: whether the column's bloom filter says that the value is not in it."""
    files = [str(path) for path in sorted(Path(publication.location).glob("*.parquet"))]
    query = "SELECT bloom_filter_excludes FROM parquet_bloom_probe(?, ?, ?)"
    return [row[0] for file in files for row in duckdb.execute(query, [file, column, value]).fetchall()]


def filtered_columns(publication):
    """Columns that have a bloom filter in every row group of every copy."""
    query = "SELECT path_in_schema FROM parquet_metadata(?) GROUP BY 1 HAVING bool_and(bloom_filter_offset IS NOT NULL)"
    found = duckdb.execute(query, [f"{publication.location}/*.parquet"]).fetchall()
    return {row[0] for row in found}


def test_columns_that_are_named_get_a_filter_and_no_others(lake, learned):
    made = lake.publish(learned.run_id, bloom_filters=["weight_run_id", "domain_weight"])
    assert filtered_columns(made) == {"weight_run_id", "domain_weight"}
    assert excluded(made, "weight_run_id", "another run") == [True] * 9
    assert excluded(made, "weight_run_id", learned.run_id) == [False] * 9
    assert lake.sql("SELECT count(*) FROM samples WHERE weight_run_id = $run", {"run": learned.run_id}).fetchall() == [
        (72,)
    ]
    assert lake.verify().findings == ()


def test_a_run_is_published_once_with_and_once_without(lake, learned):
    plain = lake.publish(learned.run_id)
    assert filtered_columns(plain) == set()
    made = lake.publish(learned.run_id, bloom_filters={"weight_run_id"})
    again = lake.publish(learned.run_id, bloom_filters=("weight_run_id",))
    assert [(each.version, each.created) for each in (plain, made, again)] == [(1, True), (2, True), (2, False)]
    assert lake.publish(learned.run_id).version == 1


def refresh(learned, **settings):
    with curator.open_lake(str(learned.lake)) as lake:
        verdicts = ["converged", "not converged", "no gain", "unstable"]
        return lake.refresh(str(learned.target), learn=LearnConfig(**FAST), verdicts=verdicts, **settings)


def test_a_refresh_keeps_to_its_setting(learned):
    assert refresh(learned, bloom_filters=["weight_run_id"]).version == 1
    assert refresh(learned, bloom_filters=["weight_run_id"]).outcome == "nothing"
    done = refresh(learned)  # no filter is asked for now
    assert (done.version, filtered_columns(done)) == (2, set())
    with pytest.raises(ConfigError, match="bloom_filters"):
        refresh(learned, bloom_filters=["text"])


def test_what_gets_no_filter_is_refused_in_a_sentence(lake, learned):
    with pytest.raises(UsageError, match="'text' is no column that gets a bloom filter; name some of 'sample_weight'"):
        lake.publish(learned.run_id, bloom_filters=["text"])
    with pytest.raises(UsageError, match="'weight' is no column"):
        lake.publish(learned.run_id, bloom_filters="weight")
    with pytest.raises(UsageError, match="bloom filters are for copies"):
        lake.publish(learned.run_id, mode="sidecar", bloom_filters=["weight_run_id"])
    assert lake.history() == []


def test_the_command_line_takes_columns(learned):
    options = ["--bloom-filter", "weight_run_id", "--bloom-filter", "sample_weight"]
    values_of(command(learned.folder, "publish", "lake", *options, "--json"))
    with curator.open_lake(str(learned.lake)) as lake:
        made = lake.publish(learned.run_id, bloom_filters=["sample_weight", "weight_run_id"])
    assert (made.version, made.created) == (1, False)
    assert filtered_columns(made) == {"weight_run_id", "sample_weight"}
