"""An Iceberg table from the command line and Python: learn, publish, ask, go back; other readers see the weights."""

import pyarrow as pa
import pytest
from lake_cases import LANGUAGES, curator, refusal, sentences, values_of

import curator as sdk
from curator.errors import InputError, UsageError

pytest.importorskip("pyiceberg", reason="needs the extra [iceberg]")
pytest.importorskip("megatron.core", reason="needs the extra [train]")

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.transforms import IdentityTransform

QUERY = "SELECT domain, count(*), count(sample_weight) FROM samples GROUP BY 1 ORDER BY 1"
TABLE = "sqlite:///catalog.db#demo.text.sentences"


def rows_of(domains, first=0, num=24):
    """Sentences of the domains as `write_lake` writes them."""
    texts = [text for domain in domains for text in sentences(domain, first + num)[first:]]
    return pa.table({"text": texts, "domain": [domain for domain in domains for _ in range(num)]})


@pytest.fixture
def catalog(here, monkeypatch):
    """A catalog in the folder of the test, with a table partitioned by domain."""
    monkeypatch.chdir(here)
    with SqlCatalog("demo", uri="sqlite:///catalog.db", warehouse=f"file://{here}/warehouse") as made:
        made.create_namespace("text")
        table = made.create_table("text.sentences", rows_of(LANGUAGES).schema)
        with table.update_spec() as spec:
            spec.add_field("domain", IdentityTransform())
        table.append(rows_of(LANGUAGES))
        yield made


def test_the_whole_path_on_an_iceberg_table_of_a_configured_catalog(here, catalog):
    def call(*arguments):
        uri = f"sqlite:///{here}/catalog.db"
        return values_of(curator(here, *arguments, "--json", PYICEBERG_CATALOG__DEMO__URI=uri))

    lake = "iceberg:demo.text.sentences"
    learned = call("learn", lake, "--target", "target.parquet", "--method", "dsir", "--config", "fast.toml")
    published = call("publish", lake)
    assert (published["version"], published["created"], published["num_unweighted"]) == (2, True, 0)
    assert call("sql", lake, QUERY)["rows"] == [[domain, 24, 24] for domain in sorted(LANGUAGES)]
    assert catalog.load_table("text.sentences").current_snapshot().summary["run_id"] == learned["run_id"]


def test_the_same_from_python_as_rows_are_appended_and_taken_back(here, catalog):
    def read(**which):
        return catalog.load_table("text.sentences").scan(**which).to_arrow()

    with sdk.open_lake(f"iceberg:{TABLE}") as lake:
        before, first = read(), catalog.load_table("text.sentences").current_snapshot().snapshot_id
        target = str(here / "target.parquet")
        settings = {"method": "dsir", "vocab_size": 300, "line_search": {"places": []}}
        one, two = (lake.learn(target, seed=seed, **settings) for seed in (0, 1))
        assert not lake.publish(one, dry_run=True).created
        assert len(catalog.load_table("text.sentences").snapshots()) == 1
        publication = lake.publish(one)
        assert publication.location.startswith(f"{here}/warehouse/text/sentences/curator/{one.run_id}-")
        assert (publication.version, lake.publish(one).created) == (2, False)
        assert lake.scan().collect()["sample_weight"].mean() == pytest.approx(1, abs=1e-5)
        assert lake.sql(QUERY).fetchall() == [(domain, 24, 24) for domain in sorted(LANGUAGES)]
        assert lake.fetch("SELECT count(sample_weight) FROM samples", confined=True)[1] == [(72,)]
        lake.release()
        seen = read().to_pylist()
        learned = {row["domain"]: row["domain_weight"] for row in one.record["domains"]}
        assert {row["domain"]: row["domain_weight"] for row in seen} == pytest.approx(learned, rel=1e-6)
        assert {row["weight_run_id"] for row in seen} == {one.run_id}
        assert read(snapshot_id=first).equals(before)

        catalog.load_table("text.sentences").append(rows_of(["north"], first=24))
        report = lake.ingest()
        assert (report.added, report.removed) == (1, 0)
        assert lake.sql(QUERY).fetchall()[1] == ("north", 48, 24)
        again = lake.publish(two)
        assert (again.version, again.created, again.num_unweighted) == (4, True, 24)
        assert (len(read()), 96 - read()["sample_weight"].null_count) == (96, 72)
        assert [version.version for version in lake.history()] == [2, 4]
        assert lake.sql("SELECT DISTINCT weight_run_id FROM samples", version=2).fetchall() == [(one.run_id,)]
        assert all(lake.verify(number).is_sound for number in (2, 4))

        back = lake.rollback(2)
        assert (back.version, back.restores, back.created) == (5, 2, True)
        assert lake.rollback(2).created is False
        assert [version.restores for version in lake.history()] == [None, None, 2]
        lake.ingest()
        assert lake.sql(QUERY).fetchall() == [(domain, 24, 24) for domain in sorted(LANGUAGES)]
        assert set(lake.scan().collect()["weight_run_id"]) == {one.run_id}
        assert lake.gc("0s").items == ()  # every manifest is a version's
        with pytest.raises(UsageError, match=r"letting go of versions is for plain Parquet.*VACUUM \(Delta\)"):
            lake.gc(keep=1)
        with pytest.raises(UsageError, match="sidecars are for plain Parquet"):
            lake.publish(one, mode="sidecar")


def test_a_table_with_columns_of_these_names_is_refused(here, catalog):
    own = rows_of(LANGUAGES).append_column("sample_weight", pa.array([1.0] * 72))
    catalog.create_table("text.own", own.schema).append(own)
    with (
        sdk.open_lake("iceberg:sqlite:///catalog.db#demo.text.own") as lake,
        pytest.raises(InputError, match="has a column 'sample_weight' already"),
    ):
        lake.learn(str(here / "target.parquet"), method="dsir")


def test_what_is_no_table_is_refused_in_a_sentence(here, catalog):
    assert "does not name an Iceberg table" in refusal(curator(here, "ingest", "iceberg:sentences"), 2)
    message = refusal(curator(here, "ingest", f"iceberg:{TABLE}s"), 2)
    assert message.startswith("the catalog has no Iceberg table demo.text.sentencess")
    assert "catalog.db.old does not exist" in refusal(
        curator(here, "ingest", "iceberg:sqlite:///catalog.db.old#demo.text.sentences"), 2
    )
