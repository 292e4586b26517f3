"""Requests in threads: their order, how far ahead they go, and what ends them."""

import threading

import pytest

from connectors.threads import in_threads, num_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_items(threads):
    assert list(in_threads(lambda item: item * 10, range(20), threads)) == [item * 10 for item in range(20)]
    assert list(in_threads(str, [], threads)) == []


def test_items_are_begun_at_most_twice_as_far_ahead_as_there_are_threads():
    drawn = []
    results = in_threads(str, (drawn.append(item) or item for item in range(100)), 3)
    for number in range(1, 10):
        next(results)
        assert len(drawn) <= number + 6
    results.close()


def test_that_many_are_under_way_together():
    together = threading.Barrier(3, timeout=20)
    assert list(in_threads(lambda item: together.wait() >= 0 and item, range(6), 3)) == list(range(6))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_that_fails_ends_it_and_no_later_one_is_begun(threads):
    begun, threads_before = [], threading.active_count()

    def work(item):
        begun.append(item)
        if item in (5, 6):
            raise ValueError(f"item {item}")
        return item

    results = in_threads(work, range(1000), threads)
    with pytest.raises(ValueError, match="item 5"):
        list(results)
    assert len(begun) <= 6 + 2 * threads
    assert threading.active_count() <= threads_before


def test_a_local_disk_is_read_by_one_thread(place, store):
    assert (num_threads(store) == 1) == (not store.is_remote)
