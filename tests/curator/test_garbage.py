"""`Lake.gc`: a crashed publication leaves nothing in the end, one that is under way loses nothing."""

import os
import shutil
import time
from datetime import timedelta

import pytest
from crash_points import DIED, UNTOUCHED, fault_at, in_child
from lake_cases import tree

import curator
from curator.errors import InputError, StorageError, UsageError


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
