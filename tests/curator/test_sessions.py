"""A session that stays open while the lake and its versions change, by its own hand and by others'."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import sentences
from selection_cases import record_run

import curator
from connectors.store import delete, open_store, write_object
from curator.errors import InputError, NotFoundError, TryAgainError

WEIGHED = "SELECT domain, count(*), count(sample_weight), min(weight_run_id) FROM samples GROUP BY ALL ORDER BY 1"
RIGHT = "SELECT bool_and(usable AND starts_with(text, domain)) FROM samples"


class Machines:
    """One lake in a store, opened on machines that share nothing but the store."""

    def __init__(self, url, options, tmp_path, monkeypatch):
        self.url, self.options = f"{url}/lake", options
        self.tmp_path, self.monkeypatch = tmp_path, monkeypatch

    def put(self, domain, first=0, num_rows=4):
        """Rows whose text begins with their domain, in a file of its name."""
        texts = [f"{domain} {text}" for text in sentences("north", first + num_rows)[first:]]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": texts, "domain": [domain] * num_rows}), sink)
        write_object(open_store(self.url, self.options), f"{domain}.parquet", sink.getvalue().to_pybytes())

    def remove(self, domain):
        delete(open_store(self.url, self.options), f"{domain}.parquet")

    def open(self, machine):
        self.monkeypatch.setenv("CURATOR_HOME", str(self.tmp_path / machine))
        return curator.open_lake(self.url, storage_options=self.options)

    def publish(self, machine, run_id, seed=0):
        with self.open(machine) as lake:
            return lake.publish(record_run(lake, self.tmp_path / f"{machine}-{run_id}", seed, run_id)).version


@pytest.fixture
def machines(request, tmp_path, monkeypatch):
    """In memory, or on the server where a test asks for "s3"."""
    place = request.getfixturevalue("s3_place") if getattr(request, "param", "memory") == "s3" else None
    where = (place.url, place.options) if place else (f"memory://{tmp_path.name}", None)
    made = Machines(*where, tmp_path, monkeypatch)
    for domain in ("a", "b"):
        made.put(domain)
    return made


@pytest.mark.parametrize("machines", ["s3"], indirect=True)
def test_what_others_publish_is_seen_by_the_next_query(machines):
    with machines.open("here") as lake:
        lake.ingest()
        assert lake.sql(WEIGHED).fetchall() == [("a", 4, 0, None), ("b", 4, 0, None)]
        assert lake.fetch("FROM top_k(0.5)", confined=True)[1] == []
        assert machines.publish("there", "one") == 1
        assert lake.fetch(WEIGHED, confined=True)[1] == [("a", 4, 4, "one"), ("b", 4, 4, "one")]
        assert len(lake.sql("FROM top_k(0.5)").fetchall()) == 4
        assert machines.publish("there", "two", seed=1) == 2
        assert lake.sql(WEIGHED).fetchall() == [("a", 4, 4, "two"), ("b", 4, 4, "two")]
        assert lake.sql("SELECT version, run_id FROM versions ORDER BY 1").fetchall() == [(1, "one"), (2, "two")]
        assert lake.sql("SELECT run_id FROM runs ORDER BY 1").fetchall() == [("one",), ("two",)]
        assert lake.sql(WEIGHED, version=1).fetchall() == [("a", 4, 4, "one"), ("b", 4, 4, "one")]


def test_a_version_that_others_let_go_is_named(machines):
    with machines.open("here") as lake:
        machines.publish("there", "one")
        machines.publish("there", "two", seed=1)
        lake.ingest()
        assert lake.sql("SELECT count(*) FROM at_version(1)").fetchall() == [(8,)]
        with machines.open("there") as other:
            other.gc("0s", keep=1)
        with pytest.raises(NotFoundError, match="version 1"):
            lake.sql("SELECT count(*) FROM at_version(1)")
        assert lake.sql("SELECT min(gone_since) FROM versions").fetchall() == [(3,)]


@pytest.mark.parametrize(
    ("machines", "change", "named"),
    [
        ("s3", lambda machines: machines.put("b", first=9), r"b\.parquet"),
        ("memory", lambda machines: machines.put("b", first=9), r"b\.parquet"),
        ("memory", lambda machines: machines.put("b", num_rows=2), r"b\.parquet"),
        ("memory", lambda machines: machines.remove("b"), r"b\.parquet"),
        ("memory", lambda machines: machines.put("c"), r"c\.parquet"),
    ],
    ids=["replaced on s3", "replaced", "shortened", "removed", "added"],
    indirect=["machines"],
)
def test_files_that_are_not_as_they_were_ingested_are_refused_until_they_are(machines, change, named):
    with machines.open("here") as lake:
        run_id = record_run(lake, machines.tmp_path / "run")
        lake.publish(run_id)
        assert lake.sql(RIGHT).fetchall() == [(True,)]
        change(machines)
        for ask in (lake.sql, lake.fetch):
            with pytest.raises(InputError, match=rf"1 file\(s\) of .* changed .*'{named}'; run `curator ingest"):
                ask(RIGHT)
        with pytest.raises(InputError, match="run `curator ingest"):
            lake.sql(RIGHT, version=1)
        assert len(lake.run(run_id).domain_weights.fetchall()) == 2  # which no file of the lake has a say in
        with machines.open("here") as beside:  # a refused session does not keep others from ingesting
            beside.ingest()
        assert lake.sql(RIGHT).fetchall() == [(True,)]
        known = [(domain, 4, 4, run_id) for domain in "ab" if f"{domain}\\.parquet" != named]
        assert [row for row in lake.sql(WEIGHED).fetchall() if row[2]] == known


def test_a_file_replaced_while_it_is_read_is_try_again(machines):
    with machines.open("here") as lake:
        lake.ingest()
        ask = lake.connector.list_files

        def replaced_afterwards():
            listed = ask()
            machines.put("b", first=9)
            return listed

        machines.monkeypatch.setattr(lake.connector, "list_files", replaced_afterwards)
        with pytest.raises(TryAgainError, match=r"b\.parquet has changed since it was listed"):
            lake.fetch(RIGHT)


def test_a_relation_outlives_what_others_publish(machines):
    with machines.open("here") as lake:
        lake.ingest()
        relation = lake.sql(WEIGHED)
        machines.publish("there", "one")
        lake.sql("SELECT 1")
        assert relation.fetchall() == [("a", 4, 4, "one"), ("b", 4, 4, "one")]
