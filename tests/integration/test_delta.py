"""A Delta table from the command line: ingest, learn, publish, ask; its other readers see the weights."""

import pyarrow as pa
import pytest
from lake_cases import LANGUAGES, curator, refusal, sentences, values_of

import curator as sdk
from curator.carry import weights_now
from curator.errors import InputError, UsageError
from curator.publish import publish

deltalake = pytest.importorskip("deltalake", reason="needs the extra [delta]")
pytest.importorskip("megatron.core", reason="needs the extra [train]")

QUERY = "SELECT domain, count(*), count(sample_weight) FROM samples GROUP BY 1 ORDER BY 1"


def rows_of(domains, first=0, num=24):
    """Sentences of the domains as `write_lake` writes them."""
    texts = [text for domain in domains for text in sentences(domain, first + num)[first:]]
    return pa.table({"text": texts, "domain": [domain for domain in domains for _ in range(num)]})


@pytest.fixture
def table(here):
    """A table partitioned by domain, in the folder of the test."""
    deltalake.write_deltalake(here / "table", rows_of(LANGUAGES), partition_by=["domain"])
    return here / "table"


def test_the_whole_path_on_a_delta_table(here, table):
    lake = "delta:table"

    def call(*arguments):
        return values_of(curator(here, *arguments, "--json"))

    learned = call("learn", lake, "--target", "target.parquet", "--method", "dsir", "--config", "fast.toml")
    published = call("publish", lake)
    assert (published["version"], published["created"], published["num_unweighted"]) == (1, True, 0)
    assert call("sql", lake, QUERY)["rows"] == [[domain, 24, 24] for domain in sorted(LANGUAGES)]
    assert deltalake.DeltaTable(table).history(1)[0]["run_id"] == learned["run_id"]


def test_the_same_from_python_as_rows_are_appended_and_taken_back(here, table):
    import polars as pl

    def read(version=None):
        return pl.scan_delta(str(table), version=version).collect().sort("text")

    with sdk.open_lake(f"delta:{table}") as lake:
        before = read()
        run = lake.learn(str(here / "target.parquet"), method="dsir", vocab_size=300, line_search={"places": []})
        assert not lake.publish(run, dry_run=True).created
        assert deltalake.DeltaTable(table).version() == 0
        publication = lake.publish(run)
        assert publication.location.startswith(f"{table}/curator/")
        assert (publication.version, lake.publish(run).created) == (1, False)
        assert lake.scan().collect()["sample_weight"].mean() == pytest.approx(1, abs=1e-5)
        assert lake.sql(QUERY).fetchall() == [(domain, 24, 24) for domain in sorted(LANGUAGES)]
        seen = read()
        weights = dict(seen.group_by("domain").agg(pl.col("domain_weight").first()).iter_rows())
        learned = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
        assert weights == pytest.approx(learned, rel=1e-6)
        assert set(seen["weight_run_id"]) == {run.run_id}
        assert read(version=0).equals(before)

        deltalake.write_deltalake(table, rows_of(["north"], first=24), mode="append", schema_mode="merge")
        assert lake.ingest().added == 1
        assert lake.sql(QUERY).fetchall()[1] == ("north", 48, 24)
        again = lake.publish(run)
        assert (again.version, again.created, again.num_unweighted) == (3, True, 24)
        assert (len(read()), read()["sample_weight"].count()) == (96, 72)
        assert [version.version for version in lake.history()] == [1, 3]

        carried = weights_now(lake, run, (), lambda _: None)  # as a refresh does that learns nothing
        publish(lake, run, lambda _: None, weights_now=carried, label="carried")
        counted = "SELECT count(*) FROM samples JOIN sample_tokens USING (sample_id) WHERE sample_weight IS NOT NULL"
        assert lake.sql(counted).fetchall() == [(96,)]
        assert lake.sql(counted, version=3).fetchall() == [(72,)]
        assert lake.rollback(3).version == 5

        deltalake.DeltaTable(table).optimize.compact()
        lake.ingest()
        assert lake.sql(QUERY).fetchall()[1] == ("north", 48, 24)
        deltalake.DeltaTable(table).restore(0)
        lake.ingest()
        assert lake.sql(QUERY).fetchall() == [(domain, 24, 0) for domain in sorted(LANGUAGES)]


def test_versions_of_a_table_are_read_checked_and_gone_back_to(here, table):
    with sdk.open_lake(f"delta:{table}") as lake:
        settings = {"method": "dsir", "vocab_size": 300, "line_search": {"places": []}}
        target = str(here / "target.parquet")
        first, second = (lake.learn(target, seed=seed, **settings) for seed in (0, 1))
        assert [lake.publish(run).version for run in (first, second)] == [1, 2]

        def run_of(**version):
            return lake.sql("SELECT DISTINCT weight_run_id FROM samples", **version).fetchall()

        assert (run_of(), run_of(version=1)) == ([(second.run_id,)], [(first.run_id,)])
        assert lake.fetch("SELECT count(sample_weight) FROM samples", confined=True)[1] == [(72,)]
        lake.release()
        assert all(lake.verify(number).is_sound for number in (1, 2))
        assert lake.rollback(1, dry_run=True).created is False
        back = lake.rollback(1)
        assert (back.version, back.restores, back.created) == (3, 1, True)
        assert run_of() == [(first.run_id,)]
        assert lake.rollback(1).created is False
        assert [version.restores for version in lake.history()] == [None, None, 1]
        assert set(lake.scan().collect()["weight_run_id"]) == {first.run_id}
        assert lake.gc("0s").items == ()  # every manifest is a version's
        with pytest.raises(UsageError, match=r"letting go of versions is for plain Parquet.*VACUUM \(Delta\)"):
            lake.gc(keep=1)
        with pytest.raises(UsageError, match="sidecars are for plain Parquet"):
            lake.publish(first, mode="sidecar")


def test_a_table_with_columns_of_these_names_is_refused(here):
    own = rows_of(LANGUAGES).append_column("sample_weight", pa.array([1.0] * 72))
    deltalake.write_deltalake(here / "table", own)
    with (
        sdk.open_lake(f"delta:{here / 'table'}") as lake,
        pytest.raises(InputError, match="has a column 'sample_weight' already"),
    ):
        lake.learn(str(here / "target.parquet"), method="dsir")
    assert deltalake.DeltaTable(here / "table").version() == 0


def test_what_is_no_table_is_refused_in_a_sentence(here):
    message = refusal(curator(here, "ingest", "delta:lake"), 2)
    assert message == f"{here / 'lake'} is not a Delta table: it has no _delta_log; check the address"
    assert "does not exist" in refusal(curator(here, "ingest", "delta:nothing"), 2)
