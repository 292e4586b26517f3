"""Time travel and rollback: what a version was stays readable, whatever the lake and the log become."""

import json
import multiprocessing
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from crash_points import DIED, FAILED, SHRUGGED_OFF, UNTOUCHED, fault_at, in_child
from lake_cases import sentences, tree, write_rows

import curator
from connectors.commit import read_log
from curator.errors import NotFoundError, StorageError, TryAgainError, UsageError


def another_run(learned, name):
    """A copy of the run under another id: what is published of it is another version."""
    home = learned.state / "runs" / learned.run_id
    record = json.loads((home / "run.json").read_text())
    shutil.copytree(home, learned.state / "runs" / name)
    (learned.state / "runs" / name / "run.json").write_text(json.dumps(record | {"run_id": name}))
    return name


@pytest.fixture
def two(learned):
    """A lake with versions 1 (the run) and 2 (run "other", without east.parquet, north.parquet with other rows)."""
    another_run(learned, "other")
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        (learned.lake / "east.parquet").unlink()
        write_rows(learned.lake / "north.parquet", text=sentences("north", 9), domain=["north"] * 9)
        lake.publish("other")
        yield lake


def published(lake, **when):
    query = "SELECT domain, count(*), count(sample_id), count(sample_weight), any_value(weight_run_id) FROM samples"
    return lake.sql(f"{query} GROUP BY ALL ORDER BY 1", **when).fetchall()


# time travel ------------------------------------------------------------------------------------------------------


def test_an_old_version_has_the_rows_that_it_had(two, learned):
    run = learned.run_id
    # east is gone from the lake and north was replaced: their ids are not known any more, all else is
    assert published(two, version=1) == [
        ("east", 24, 0, 24, run),
        ("north", 24, 0, 24, run),
        ("south", 24, 24, 24, run),
    ]
    assert published(two, version=2) == [("north", 9, 9, 9, "other"), ("south", 24, 24, 24, "other")]
    assert published(two) == published(two, version=2)
    assert two.sql("SELECT * FROM samples", version=1).columns == two.sql("SELECT * FROM samples").columns
    ids = "SELECT sample_id, text FROM samples WHERE domain = 'south' ORDER BY ALL"
    assert two.sql(ids, version=1).fetchall() == two.sql(ids).fetchall()


def test_scan_takes_a_version(two):
    frame = two.scan(version=1).collect()
    assert (len(frame), frame["sample_weight"].mean()) == (72, pytest.approx(1, abs=1e-5))
    assert len(two.scan(version=2).collect()) == len(two.scan().collect()) == 33


def test_a_relation_of_one_version_is_not_changed_by_asking_another(two):
    first = two.sql("SELECT count(*) FROM samples", version=1)
    second = two.sql("SELECT count(*) FROM samples", version=2)
    assert (first.fetchall(), second.fetchall()) == ([(72,)], [(33,)])


def test_as_of_is_the_newest_version_committed_at_or_before(two):
    first, second = (datetime.fromisoformat(version.created_at) for version in two.history())
    for moment, rows in (
        (first, 72),
        (second - timedelta(microseconds=1), 72),
        (second, 33),
        (second.isoformat(), 33),
        ((second + timedelta(days=1)).date().isoformat(), 33),
        (first.replace(tzinfo=None).isoformat(), 72),  # UTC unless it says otherwise
    ):
        assert len(two.scan(as_of=moment).collect()) == rows, moment
        assert two.sql("SELECT count(*) FROM samples", as_of=moment).fetchall() == [(rows,)]
    assert first.tzinfo == UTC


@pytest.mark.parametrize(
    ("when", "error", "said"),
    [
        ({"version": 3}, NotFoundError, "has no version 3; there are 1 to 2"),
        ({"version": 0}, NotFoundError, "has no version 0; there are 1 to 2"),
        (
            {"as_of": "2020-01-01"},
            NotFoundError,
            r"had no version at 2020-01-01T00:00:00\+00:00; the first was committed",
        ),
        ({"as_of": "yesterday"}, UsageError, "as_of 'yesterday' is not an ISO date or datetime, such as"),
        ({"version": 1, "as_of": "2030-01-01"}, UsageError, "both name a version; give one"),
    ],
)
def test_a_version_that_is_not_there(two, when, error, said):
    for ask in (two.scan, lambda **when: two.sql("SELECT 1", **when)):
        with pytest.raises(error, match=said):
            ask(**when)


def test_time_travel_before_anything_was_published(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        with pytest.raises(NotFoundError, match="has no published version yet; publish a run first"):
            lake.scan(version=1)
        with pytest.raises(NotFoundError, match="has no published version yet"):
            lake.rollback(1)


def test_a_hive_partition_is_a_column_of_an_old_version(tmp_path, learned):
    """The domain is a folder's name, and a column of the lake is called like one of ours."""
    for domain in ("north", "south"):
        table = pq.read_table(learned.lake / f"{domain}.parquet").select(["text", "score"])
        place = tmp_path / "hive" / f"domain={domain}" / "a.parquet"
        place.parent.mkdir(parents=True)
        pq.write_table(table.rename_columns(["text", "usable"]), place)
    shutil.copytree(learned.state / "runs", tmp_path / "hive" / "_curator" / "runs")
    with curator.open_lake(str(tmp_path / "hive")) as lake:
        lake.publish(learned.run_id)
        now, then = (lake.sql("SELECT * FROM samples ORDER BY sample_id", **w) for w in ({}, {"version": 1}))
        assert now.columns == then.columns
        assert now.fetchall() == then.fetchall()
        assert "original_usable" in now.columns


# rollback ---------------------------------------------------------------------------------------------------------


def test_a_rollback_is_one_more_version_that_restores_an_older_one(two, learned):
    before = tree(learned.state)
    done = two.rollback(1)
    assert (done.version, done.restores, done.replaces, done.created) == (3, 1, 2, True)
    history = two.history()
    assert [(v.version, v.run_id, v.restores) for v in history] == [
        (1, learned.run_id, None),
        (2, "other", None),
        (3, learned.run_id, 1),
    ]
    assert history[2].location == history[0].location
    assert two.sql("SELECT version, restores FROM versions ORDER BY 1").fetchall() == [(1, None), (2, None), (3, 1)]
    assert len(two.scan().collect()) == 72
    assert len(two.scan(version=2).collect()) == 33
    assert {path: digest for path, digest in tree(learned.state).items() if path in before} == before
    assert two.sql("SELECT DISTINCT weight_run_id FROM samples WHERE sample_weight IS NOT NULL").fetchall() == [
        (learned.run_id,)
    ]


def test_rolling_back_to_what_is_the_newest_changes_nothing(two, learned):
    before = tree(learned.state)
    assert (two.rollback(2).created, two.rollback(2).version) == (False, 2)
    assert tree(learned.state) == before
    assert two.rollback(1).created
    for version in (1, 3):  # twice, by either name
        again = two.rollback(version)
        assert (again.version, again.restores, again.created) == (3, 1, False)
    forward = two.rollback(2)
    assert (forward.version, forward.restores, forward.created) == (4, 2, True)
    assert two.rollback(3).restores == 1  # what version 3 restored
    assert [v.restores for v in two.history()] == [None, None, 1, 2, 1]


def test_a_dry_rollback_writes_nothing(two, learned):
    before = tree(learned.state)
    done = two.rollback(1, dry_run=True)
    assert (done.version, done.restores, done.created) == (3, 1, False)
    assert tree(learned.state) == before


def test_a_version_whose_file_is_gone_is_not_restored(two, learned):
    gone = next(Path(two.history()[0].location).rglob("south.parquet"))
    gone.unlink()
    with pytest.raises(StorageError, match=r"south\.parquet is gone although it was published"):
        two.rollback(1)
    with pytest.raises(NotFoundError, match="has no version 7; there are 1 to 2"):
        two.rollback(7)
    assert len(two.history()) == 2


def test_publishing_after_a_rollback_says_where_the_run_is(two):
    two.rollback(1)
    again = two.publish("other")
    assert (again.version, again.created) == (2, False)


@pytest.mark.parametrize("kind", ["kill", pytest.param("fail", marks=pytest.mark.slow)])
def test_a_rollback_killed_or_failed_at_any_write_leaves_the_old_or_the_new(two, learned, tmp_path, kind):
    two.close()

    def attempt(url, k, kind):
        with curator.open_lake(url) as lake:
            import crash_points

            lake.history()
            fault_at(k, kind)
            try:
                lake.rollback(1)
            except (StorageError, TryAgainError):
                return FAILED
            return SHRUGGED_OFF if crash_points.fired else UNTOUCHED

    def look(url, outcome):
        with curator.open_lake(url) as lake:
            seen = [version.restores for version in lake.history()]
            assert seen in ([None, None], [None, None, 1]), seen
            assert outcome not in (UNTOUCHED, SHRUGGED_OFF) or seen == [None, None, 1]
            assert lake.rollback(1).created == (seen == [None, None])
            assert [version.restores for version in lake.history()] == [None, None, 1]
        return 0

    for k in range(1, 100):
        folder = tmp_path / str(k)
        shutil.copytree(learned.lake, folder, copy_function=shutil.copy2)
        outcome = in_child(lambda url=str(folder), k=k: attempt(url, k, kind))
        assert outcome in (UNTOUCHED, FAILED, SHRUGGED_OFF, DIED)
        assert in_child(lambda url=str(folder), o=outcome: look(url, o)) == 0
        shutil.rmtree(folder)
        if outcome == UNTOUCHED:
            break
    assert k > 6  # the probe, then the entry: temporary, link, removal


def roll(url, start, version, answers):
    start.wait()
    with curator.open_lake(url) as lake:
        while True:
            try:
                done = lake.rollback(version)
            except TryAgainError:
                time.sleep(0.01)
            else:
                answers.put((os.getpid(), done.version, done.created))
                return


def add(url, start, run, answers):
    start.wait()
    with curator.open_lake(url) as lake:
        done = lake.publish(run)
        answers.put((os.getpid(), done.version, done.created))


def test_rollbacks_and_publications_at_once_each_happen_exactly_once(two, learned):
    another_run(learned, "third")
    two.close()
    spawn = multiprocessing.get_context("spawn")
    start, answers = spawn.Event(), spawn.Queue()
    url = str(learned.lake)
    work = [(roll, 1), (roll, 1), (roll, 1), (add, "third")]
    processes = [spawn.Process(target=target, args=(url, start, what, answers)) for target, what in work]
    for process in processes:
        process.start()
    start.set()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    log = read_log(two.destination)
    assert len({version.idempotency_key for version in log}) == len(log)
    made = [version for _, version, created in found if created]
    assert sorted(made) == [version.number for version in log[2:]]  # what was made is in the log, each once
    assert [version.run_id for version in log[2:]].count("third") == 1
    # "third" before the rollback: hidden by it; after it: the newest, and a rollback that came later hides it again
    assert [version.run_id for version in log[2:]] in (
        [learned.run_id, "third"],
        ["third", learned.run_id],
        [learned.run_id, "third", learned.run_id],
    )
