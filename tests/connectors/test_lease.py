"""The lock: one holder at a time, taken over when its lease is over, and noticed by who lost it."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from storage_faults import requests_of

from connectors.errors import ConflictError
from connectors.lease import LOCK_FOLDER, Hold, find_holder, hold
from connectors.store import delete, list_objects, put_if_absent, write_object


def entries(store):
    return [info.path for info in list_objects(store, prefix=LOCK_FOLDER)]


def lapsed(store, seconds=0.02):
    """Somebody who took the lock and was killed, long enough ago."""
    dead = Hold(store, LOCK_FOLDER, seconds)
    dead._thread = threading.Thread(target=lambda: None)  # nobody renews it
    dead.start()
    time.sleep(2 * seconds)
    return dead


def test_a_lock_has_one_holder_and_is_free_afterwards(store):
    assert find_holder(store, LOCK_FOLDER) is None
    with hold(store, LOCK_FOLDER, seconds=60) as held:
        holder = find_holder(store, LOCK_FOLDER)
        assert holder.pid
        with pytest.raises(ConflictError, match=r"lock is held by process \d+ on .* unless it is renewed; try again"):
            hold(store, LOCK_FOLDER, seconds=60).__enter__()
        held.check()
        renewed = find_holder(store, LOCK_FOLDER)
        assert (renewed.holder, renewed.number) == (holder.holder, holder.number + 1)
        assert renewed.expires_at > holder.expires_at
    assert find_holder(store, LOCK_FOLDER) is None
    with hold(store, LOCK_FOLDER, seconds=60):
        assert find_holder(store, LOCK_FOLDER).number > renewed.number
    assert len(entries(store)) == 1  # older ones are taken away


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_lock_is_given_back_when_the_work_fails(store):
    with pytest.raises(KeyboardInterrupt), hold(store, LOCK_FOLDER, seconds=60):
        raise KeyboardInterrupt
    assert find_holder(store, LOCK_FOLDER) is None


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_lease_that_is_over_is_taken_and_its_holder_learns_of_it(store):
    dead = lapsed(store)
    with hold(store, LOCK_FOLDER, seconds=60):
        with pytest.raises(ConflictError, match="expired and was taken by process"):
            dead.check()
        dead.give_back()  # takes nothing from the new holder
        assert find_holder(store, LOCK_FOLDER) is not None


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_holder_whose_lease_is_over_may_go_on_if_nobody_took_it(store):
    late = lapsed(store)
    assert find_holder(store, LOCK_FOLDER) is None
    late.check()
    late._seconds = 60
    late.check()
    assert find_holder(store, LOCK_FOLDER).holder == late._holder


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_lock_is_renewed_while_it_is_held(store):
    with hold(store, LOCK_FOLDER, seconds=0.6):
        time.sleep(1.2)
        assert find_holder(store, LOCK_FOLDER) is not None


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_an_entry_made_again_below_the_newest_takes_nothing(store):
    """Somebody who listed the lock long ago finds the number free that the newer entry's holder has removed."""
    late = Hold(store, LOCK_FOLDER, 60)
    with hold(store, LOCK_FOLDER, seconds=60) as held:
        held.check()
        assert not any(path.endswith("1.json") for path in entries(store))
        with pytest.raises(ConflictError):
            late._append(1, 60)
        held.check()


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_lock_that_was_removed_is_lost(store):
    with hold(store, LOCK_FOLDER, seconds=60) as held:
        write_object(store, f"{LOCK_FOLDER}/notes.json", b"{}")
        for path in entries(store):
            delete(store, path)
        with pytest.raises(ConflictError, match="expired and was removed"):
            held.check()


@pytest.mark.parametrize("place", ["local", "memory", "s3"], indirect=True)
def test_of_many_at_once_one_gets_the_lock(store):
    lapsed(store)
    gate = threading.Barrier(8)

    def attempt(_):
        gate.wait()
        held = Hold(store, LOCK_FOLDER, 60)
        try:
            held.start()
        except ConflictError:
            return None
        return held

    with ThreadPoolExecutor(max_workers=8) as pool:
        (winner,) = [held for held in pool.map(attempt, range(8)) if held]
    assert find_holder(store, LOCK_FOLDER).holder == winner._holder
    winner.give_back()


def test_a_damaged_entry_is_named(tmp_path):
    from connectors.errors import CorruptFileError
    from connectors.store import open_store

    store = open_store(str(tmp_path))
    put_if_absent(store, f"{LOCK_FOLDER}/{1:020d}.json", b'{"schema_version": 1}')
    with pytest.raises(CorruptFileError, match="is not a Lease"):
        find_holder(store, LOCK_FOLDER)


@pytest.mark.parametrize("place", ["s3"], indirect=True)
@pytest.mark.parametrize("doubled", ["twice", "lost"])
def test_a_write_that_was_carried_out_all_the_same_is_our_own(store, doubled):
    """The client, or what lies between, tries again by itself: the entry that is in the way is the one just made."""
    with requests_of("s3") as requests:
        if doubled == "lost":
            requests.befalls_writes = {1: "lost"}
        else:
            requests.twice = re.compile("^put_object")
        with hold(store, LOCK_FOLDER, seconds=60) as held:
            held.check()
            assert find_holder(store, LOCK_FOLDER).holder == held._holder
        assert find_holder(store, LOCK_FOLDER) is None
