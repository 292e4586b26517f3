"""Sidecars: the weights beside files that are not copied, and never joined to files that have changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import tree, write_rows

import curator
from connectors.commit import commit, read_log, read_manifest
from connectors.store import list_objects
from curator.errors import InputError, TryAgainError, UsageError

WEIGHTS = ["sample_weight", "domain_weight", "weight_run_id"]
ROWS = "SELECT sample_id, domain, text, score, sample_weight, domain_weight, weight_run_id FROM samples ORDER BY ALL"


@pytest.fixture
def lake(learned):
    with curator.open_lake(str(learned.lake)) as opened:
        yield opened


@pytest.fixture
def beside(lake, learned):
    lake.publish(learned.run_id, mode="sidecar")
    return lake


def change(path):
    """The same rows in the reverse order, in a file of another time."""
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)


def test_a_sidecar_has_the_weights_and_nothing_of_the_data(lake, learned):
    before = {path: digest for path, digest in tree(learned.lake).items() if path.endswith(".parquet")}
    publication = lake.publish(learned.run_id, mode="sidecar")
    assert (publication.version, publication.created, publication.num_files, publication.num_rows) == (1, True, 3, 72)
    sidecars = sorted(Path(publication.location).glob("*.parquet"))
    assert [path.name for path in sidecars] == ["east.parquet", "north.parquet", "south.parquet"]
    for path in sidecars:
        table = pq.read_table(path)
        assert table.schema.names == ["sample_id", "row", *WEIGHTS]
        assert table["row"].to_pylist() == list(range(24))
        assert b"lake-curator" in pq.read_metadata(path).metadata
    after = tree(learned.lake)
    assert {path: after[path] for path in before} == before
    assert lake.publish(learned.run_id, mode="sidecar").created is False


def test_what_is_read_is_what_copies_give(lake, learned):
    lake.publish(learned.run_id)
    copied = lake.sql(ROWS).fetchall(), lake.scan().collect().sort("text")
    lake.publish(learned.run_id, mode="sidecar")
    assert [version.version for version in lake.history()] == [1, 2]
    assert lake.sql(ROWS).fetchall() == copied[0]
    assert lake.sql(ROWS, version=2).fetchall() == lake.sql(ROWS, version=1).fetchall() == copied[0]
    frame = lake.scan().collect().sort("text")
    assert frame.columns == copied[1].columns
    assert frame.equals(copied[1])
    assert lake.sql("SELECT * FROM samples", version=2).columns == lake.sql("SELECT * FROM samples").columns


def test_hive_partitions_and_files_with_other_columns(learned, tmp_path):
    for domain in ("north", "south"):
        table = pq.read_table(learned.lake / f"{domain}.parquet").select(["text"])
        if domain == "south":
            table = table.append_column("row", pa.array(range(24)))
        place = tmp_path / "hive" / f"domain={domain}" / "a'[*].parquet"
        place.parent.mkdir(parents=True)
        pq.write_table(table, place)
    shutil.copytree(learned.state / "runs", tmp_path / "hive" / "_curator" / "runs")
    with curator.open_lake(str(tmp_path / "hive")) as lake:
        lake.publish(learned.run_id, mode="sidecar")
        query = "SELECT sample_id, domain, text, original_row, sample_weight FROM samples ORDER BY ALL"
        expected = lake.sql(query).fetchall()
        assert lake.sql(query, version=1).fetchall() == expected
        frame = lake.scan().collect()
        rows = frame.select("domain", "text", "row", "sample_weight").sort("domain", "text").rows()
        assert rows == sorted((row[1:] for row in expected), key=lambda row: row[:2])
        assert lake.verify().is_sound


def test_a_source_that_has_changed_is_never_joined(beside, learned):
    change(learned.lake / "south.parquet")
    with curator.open_lake(str(learned.lake)) as lake:
        for ask in (lake.scan, lambda: lake.rollback(1)):
            with pytest.raises(
                InputError, match=r"beside .*south\.parquet, which has changed since or is gone; publish"
            ):
                ask()
    beside.ingest()
    with pytest.raises(InputError, match=r"south\.parquet, which has changed since"):
        beside.sql("SELECT 1", version=1)
    weighted = beside.sql(
        "SELECT domain, count(*), count(sample_weight) FROM samples GROUP BY ALL ORDER BY 1"
    ).fetchall()
    assert weighted == [("east", 24, 24), ("north", 24, 24), ("south", 24, 0)]  # today's rows: no weight is known
    found = beside.verify()
    assert [(f.level, f.path, f.said) for f in found.findings] == [
        ("error", "south.parquet", "the source has changed since the version was made")
    ]
    again = beside.publish(learned.run_id, mode="sidecar")
    assert (again.version, again.num_unweighted) == (2, 0)  # the ids are of the content: the rows are found again
    assert beside.verify().is_sound
    by_text = {
        row["text"]: row["sample_id"] for row in beside.sql("SELECT text, sample_id FROM samples").pl().to_dicts()
    }
    then = beside.sql("SELECT text, sample_id FROM samples", version=2).fetchall()
    assert dict(then) == by_text


def test_a_source_that_changes_while_sidecars_are_written_is_noticed(lake, learned):
    def change_the_last(state):
        if state.stage == "publish" and state.detail == "north.parquet":
            change(learned.lake / "south.parquet")

    with pytest.raises(TryAgainError, match=r"south\.parquet has changed since it was listed"):
        lake.publish(learned.run_id, mode="sidecar", on_progress=change_the_last)
    assert lake.history() == []
    assert lake.publish(learned.run_id, mode="sidecar").created


def test_versions_of_both_kinds_go_back_and_forth(lake, learned):
    lake.publish(learned.run_id, mode="sidecar")
    lake.publish(learned.run_id)
    lake.rollback(1)
    assert [version.restores for version in lake.history()] == [None, None, 1]
    assert "-sidecar-" in lake.history()[2].location
    assert [lake.verify(version).is_sound for version in (1, 2, 3)] == [True] * 3
    assert lake.verify(1, deep=True).is_sound
    assert len(lake.scan(version=1).collect()) == len(lake.scan(version=2).collect()) == 72
    kept = list_objects(lake.destination)
    left = learned.state / "data" / f"{learned.run_id}-sidecar-{'0' * 12}" / "left.parquet"
    write_rows(left, a=[1])
    assert [item.path.rpartition("/")[2] for item in lake.gc("0s").items] == ["left.parquet"]
    assert list_objects(lake.destination) == kept


def test_a_sidecar_in_another_order_is_found(beside):
    manifest = read_manifest(beside.destination, read_log(beside.destination)[0])
    east, north, south = manifest.files
    path = Path(beside.destination.full_path(north.published_path))
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "row", pa.array([1, 0, *range(2, 24)])), path)
    edited = replace(manifest, files=(east, replace(north, size_bytes=path.stat().st_size), south))
    commit(beside.destination, edited, idempotency_key="edited")
    (finding,) = beside.verify().findings
    assert (finding.level, finding.path) == ("error", north.published_path)
    assert finding.said == "has rows in another order than its source"


def test_views_for_other_tools_are_refused(lake, learned, tmp_path):
    lake.publish(learned.run_id)
    views = lake.write_views()
    with pytest.raises(UsageError, match=r"curator\.duckdb cannot show weights that lie beside .* remove it first"):
        lake.publish(learned.run_id, mode="sidecar")
    assert len(lake.history()) == 1
    views.unlink()
    lake.publish(learned.run_id, mode="sidecar")
    with pytest.raises(UsageError, match="views cannot show version 2, weights that lie beside source files"):
        lake.write_views(tmp_path / "views.duckdb")
    assert not (tmp_path / "views.duckdb").exists()


def test_an_unknown_mode_is_refused(lake, learned):
    with pytest.raises(UsageError, match=r'mode \'link\' is unknown; "copy" and "sidecar" are allowed'):
        lake.publish(learned.run_id, mode="link")
