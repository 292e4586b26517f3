"""Several requests to a storage at once, whose answers come in order: on a remote one each is a round trip."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from connectors.store import Store

Item = TypeVar("Item")
Result = TypeVar("Result")

REMOTE_THREADS = 16


def num_threads(store: Store) -> int:
    """For small reads: several on a remote storage, one on a local disk, where threads gain nothing."""
    return REMOTE_THREADS if store.is_remote else 1


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result]:
    """What `work` returns for each item, in their order; at most twice as many are begun ahead as there are threads.

    The first that fails, in their order, ends it with its error once those under way have ended; no other is begun.
    """
    if threads == 1:
        yield from map(work, items)
        return
    coming = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        ahead = deque(pool.submit(work, item) for item in islice(coming, 2 * threads))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(work, item) for item in islice(coming, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
