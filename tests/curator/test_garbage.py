"""`Lake.gc`: a crashed publication leaves nothing in the end, one that is under way loses nothing."""

import os
import shutil
import time
from datetime import timedelta

import pytest
from crash_points import DIED, UNTOUCHED, fault_at, in_child
from lake_cases import sentences, tree, write_rows

import curator
from curator.errors import InputError, NotFoundError, StorageError, UsageError


def crash(learned, k, do):
    """`do(lake)` in a process that dies at its k-th write; whether it did."""

    def attempt():
        with curator.open_lake(str(learned.lake)) as lake:
            lake.sql("SELECT 1")
            fault_at(k, "kill")
            do(lake)
        return UNTOUCHED

    outcome = in_child(attempt)
    assert outcome in (UNTOUCHED, DIED)
    return outcome == DIED


@pytest.fixture
def ingested(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
    return learned


def die_with_two_copies(learned):
    """A publication that is killed when two of its three copies are there."""

    def die(state):
        if state.stage == "publish" and len(list((learned.state / "data").rglob("*.parquet"))) >= 2:
            os._exit(DIED)

    assert in_child(lambda: publish_telling(learned, die)) == DIED
    return {path: path.stat().st_mtime for path in (learned.state / "data").rglob("*.parquet")}


def publish_telling(learned, tell):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id, on_progress=tell)
    return UNTOUCHED


def make_old(folder, hours):
    then = time.time() - 3600 * hours
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def test_what_a_crashed_publication_left_is_gone_after_a_collection(ingested, tmp_path):
    before = tree(ingested.lake)
    kinds = set()
    for k in range(2, 200, 5):
        copy = type(ingested)(tmp_path / str(k), ingested.run_id)
        shutil.copytree(ingested.folder, copy.folder, copy_function=shutil.copy2)
        if not crash(copy, k, lambda lake: lake.publish(ingested.run_id)):
            break
        with curator.open_lake(str(copy.lake)) as lake:
            left = tree(copy.lake).keys() - before.keys()
            if lake.history():  # it died after the commit: of all that is new, one temporary file is left
                (item,) = lake.gc("0s").items
                assert item.kind == "temporary"
                continue
            assert lake.gc().items == ()  # nothing is a day old
            planned = lake.gc("0s", dry_run=True)
            assert tree(copy.lake).keys() - before.keys() == left
            removed = lake.gc(timedelta(0))
            assert {f"_curator/{item.path}" for item in removed.items} == left
            assert planned.items == removed.items
            assert removed.size_bytes == sum(item.size_bytes for item in removed.items)
            kinds |= {item.kind for item in removed.items}
            assert tree(copy.lake) == before
            assert lake.publish(ingested.run_id).created
            assert lake.gc("0s").items == ()
            assert len(lake.scan().collect()) == 72
    assert kinds == {"object", "temporary"}
    assert k > 20  # the probe, three copies, the manifest, the entry


def test_a_collection_that_is_killed_harms_no_version(ingested, tmp_path):
    with curator.open_lake(str(ingested.lake)) as lake:
        lake.publish(ingested.run_id)
    shutil.move(next((ingested.state / "data").iterdir()), tmp_path / "published")
    shutil.move(ingested.state / "log", tmp_path / "log")
    assert len(die_with_two_copies(ingested)) == 2
    staged = next((ingested.state / "data").iterdir())
    staged.rename(staged.with_name("other-" + "0" * 12))  # what another run's publication left
    shutil.move(tmp_path / "published", staged)
    shutil.move(tmp_path / "log", ingested.state / "log")
    for k in range(1, 100):
        copy = type(ingested)(tmp_path / str(k), ingested.run_id)
        shutil.copytree(ingested.folder, copy.folder, copy_function=shutil.copy2)
        died = crash(copy, k, lambda lake: lake.gc("0s"))
        with curator.open_lake(str(copy.lake)) as lake:
            assert len(lake.scan(version=1).collect()) == 72
            lake.gc("0s")
            assert lake.gc("0s").items == ()
            assert len(list((copy.state / "data").rglob("*.parquet"))) == 3
            assert len(lake.scan(version=1).collect()) == 72
        if not died:
            break
    assert k == 3  # two copies


def test_copies_that_a_crash_left_long_ago_are_not_taken_from_under_a_publication(ingested):
    assert len(die_with_two_copies(ingested)) == 2
    make_old(ingested.state / "data", hours=30)
    old = {path: path.stat().st_mtime for path in (ingested.state / "data").rglob("*.parquet")}

    def collect_beside(state):
        if state.stage == "publish" and state.done == state.total:
            with curator.open_lake(str(ingested.lake)) as other:
                other.gc()

    with curator.open_lake(str(ingested.lake)) as lake:
        assert lake.publish(ingested.run_id, on_progress=collect_beside).created
        assert len(lake.scan().collect()) == 72
    assert all(path.stat().st_mtime > then for path, then in old.items())


def test_copies_that_a_crash_left_just_now_are_kept(ingested):
    assert len(die_with_two_copies(ingested)) == 2
    make_old(ingested.state / "data", hours=11)
    old = {path: path.stat().st_mtime for path in (ingested.state / "data").rglob("*.parquet")}
    with curator.open_lake(str(ingested.lake)) as lake:
        assert lake.publish(ingested.run_id).created
    assert all(path.stat().st_mtime == then for path, then in old.items())


def test_an_impatient_collection_beside_a_publication_is_noticed(ingested):
    def collect_beside(state):
        if state.stage == "publish" and state.done == state.total:
            with curator.open_lake(str(ingested.lake)) as other:
                assert len(other.gc("0s").items) == 3

    with curator.open_lake(str(ingested.lake)) as lake:
        with pytest.raises(StorageError, match="is gone although it"):
            lake.publish(ingested.run_id, on_progress=collect_beside)
        assert lake.history() == []


@pytest.mark.parametrize("grace", ["24", "h", "-1h", "1 fortnight", timedelta(hours=-1)])
def test_a_grace_time_that_is_none_is_refused(learned, grace):
    with curator.open_lake(str(learned.lake)) as lake, pytest.raises(UsageError, match="grace"):
        lake.gc(grace)


def test_a_damaged_log_removes_nothing(ingested):
    with curator.open_lake(str(ingested.lake)) as lake:
        lake.publish(ingested.run_id)
        before = tree(ingested.lake)
        entry = next((ingested.state / "log").glob("*.json"))
        entry.write_text("{")
        with pytest.raises(InputError, match="is not JSON"):
            lake.gc("0s")
    assert tree(ingested.lake).keys() == before.keys()


def publish_three(learned):
    """Versions 1 to 3, each of a lake with one more row in south.parquet."""
    with curator.open_lake(str(learned.lake)) as lake:
        for number in range(3):
            rows = [*sentences("south", 24), *(f"new {i}" for i in range(number))]
            write_rows(learned.lake / "south.parquet", text=rows, domain=["south"] * len(rows))
            lake.publish(learned.run_id)


def test_of_many_versions_the_newest_stay(ingested):
    publish_three(ingested)
    with curator.open_lake(str(ingested.lake)) as lake:
        before = tree(ingested.state)
        planned = lake.gc("0s", keep=2, dry_run=True)
        assert tree(ingested.state) == before
        removed = lake.gc("0s", keep=2)
        assert (planned.versions, planned.items) == (removed.versions, removed.items)
        assert removed.versions == (1,)
        names = [item.path.rpartition("/")[2] for item in removed.items]
        assert names == ["east.parquet", "north.parquet", "south.parquet"]
        history = lake.history()
        assert [(v.version, v.num_rows, v.gone_since, v.restores) for v in history] == [
            (1, 72, 4, None),
            (2, 73, None, None),
            (3, 74, None, None),
            (4, 74, None, None),
        ]
        asked = lake.sql("SELECT version, gone_since FROM versions ORDER BY 1").fetchall()
        assert asked == [(v.version, v.gone_since) for v in history]
        assert [len(lake.scan(version=number).collect()) for number in (2, 3, 4)] == [73, 74, 74]
        assert lake.sql("SELECT count(sample_weight) FROM at_version(2)").fetchall() == [(72,)]
        assert lake.verify().is_sound
        first = history[0].created_at
        for read in (
            lambda: lake.scan(version=1),
            lambda: lake.scan(as_of=first),
            lambda: lake.sql("SELECT 1", version=1),
            lambda: lake.sql("FROM at_version(1)"),
            lambda: lake.verify(1),
            lambda: lake.rollback(1),
        ):
            with pytest.raises(NotFoundError, match=r"version 1 .* were let go by version 4 .* are 2, 3, 4$"):
                read()
        assert lake.gc("0s", keep=2) == lake.gc("0s")
        assert lake.rollback(2).version == 5
        assert lake.gc("0s", keep=1).versions == (3, 4)
        assert len(lake.scan().collect()) == 73


def test_a_collection_of_versions_that_is_killed_goes_on_with_the_next(ingested, tmp_path):
    publish_three(ingested)
    for k in range(1, 100):
        copy = type(ingested)(tmp_path / str(k), ingested.run_id)
        shutil.copytree(ingested.folder, copy.folder, copy_function=shutil.copy2)
        died = crash(copy, k, lambda lake: lake.gc("0s", keep=1))
        with curator.open_lake(str(copy.lake)) as lake:
            gone = [version.version for version in lake.history() if version.gone_since]
            assert gone in ([], [1, 2])
            assert len(lake.scan(version=3).collect()) == 74
            if not gone:
                assert len(lake.scan(version=1).collect()) == 72
            lake.gc("0s", keep=1)
            assert len(list((copy.state / "data").rglob("*.parquet"))) == 3
            assert len(lake.scan().collect()) == 74
        if not died:
            break
    assert k > 6  # the entry, six copies


def test_a_run_whose_version_was_let_go_can_be_published_again(ingested):
    south = ingested.lake / "south.parquet"
    first, then = south.read_bytes(), south.stat().st_mtime_ns
    publish_three(ingested)
    with curator.open_lake(str(ingested.lake)) as lake:
        lake.gc("0s", keep=1)
        south.write_bytes(first)
        os.utime(south, ns=(then, then))
        done = lake.publish(ingested.run_id)
        assert (done.version, done.created) == (5, True)
        assert (lake.publish(ingested.run_id).version, lake.publish(ingested.run_id).created) == (5, False)
        assert len(lake.scan().collect()) == 72
        assert lake.verify(deep=True).is_sound
        assert lake.gc("0s", keep=1).versions == (3, 4)
        assert len(lake.scan().collect()) == 72


def test_no_version_at_all_is_not_kept(learned):
    with (
        curator.open_lake(str(learned.lake)) as lake,
        pytest.raises(UsageError, match="keep 0 would let go the newest"),
    ):
        lake.gc(keep=0)
