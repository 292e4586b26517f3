"""A lock that is only lent: numbered objects, each created if absent; the newest says who holds it, and until when.

    <folder>/00000000000000000007.json   taken; number 8 renews it, gives it back, or takes it over once it has expired

It saves work and guards nothing: a holder that was cut off, or whose clock is wrong, may go on beside another. What is
done under it has to be safe without it, as `connectors.commit` is.
"""

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from connectors.errors import ConflictError, ConnectorError, NotFoundError, UnavailableError
from connectors.manifest import SCHEMA_VERSION, build, dump_json, load_json
from connectors.store import Store, delete, list_objects, put_if_absent, read_bytes

LOCK_FOLDER = "lock"
"""Where the lock of a whole destination lies."""
_SUFFIX = ".json"
_MAX_ATTEMPTS = 10
_RENEWALS = 3
"""Renewals within the time of one lease, so that one may fail."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One entry of a lock.

    Attributes:
        number: from 1; the largest counts.
        holder: unique to the call of `hold` that made it.
        host, pid: where that call was made, for people.
        taken_at: when it was made; UTC, ISO 8601, by the holder's clock.
        expires_at: from when on anybody may take the lock; in an entry that gives it back, when that was.
    """

    number: int
    holder: str
    host: str
    pid: int
    taken_at: str
    expires_at: str
    schema_version: int = SCHEMA_VERSION

    @property
    def is_over(self) -> bool:
        """Whether it has expired or was given back, by our clock."""
        return datetime.fromisoformat(self.expires_at) <= datetime.now(UTC)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.taken_at}, until {self.expires_at} unless it is renewed"


def find_holder(store: Store, folder: str) -> Lease | None:
    """Who holds the lock in `folder`; None if nobody does."""
    newest = _newest(store, folder)
    return None if newest is None or newest.is_over else newest


@contextmanager
def hold(store: Store, folder: str, *, seconds: float) -> Iterator["Hold"]:
    """Hold the lock in `folder` for the body, renewed by a thread; given back afterwards, if it is still ours.

    Args:
        store: its storage must pass `check_put_if_absent`.
        folder: of the lock alone.
        seconds: after which others may take it from a holder that does not answer any more.

    Raises:
        ConflictError: somebody else holds it.
    """
    held = Hold(store, folder, seconds)
    held.start()
    try:
        yield held
    finally:
        held.give_back()


class Hold:
    """A lock while it is held. Made by `hold`."""

    def __init__(self, store: Store, folder: str, seconds: float) -> None:
        self._store = store
        self._folder = folder
        self._seconds = seconds
        self._holder = uuid4().hex
        self._taken_at = _moment()
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True, name=f"lease {folder}")

    def start(self) -> None:
        """Take the lock, and go on renewing it.

        Raises:
            ConflictError: somebody else holds it.
        """
        newest = _newest(self._store, self._folder)
        if newest is not None and not newest.is_over:
            raise ConflictError(
                f"{self._store.describe(self._folder)} is held by {newest}", hint="try again when it has ended"
            )
        self._append(newest.number + 1 if newest else 1, self._seconds)
        self._thread.start()

    def check(self) -> None:
        """Renew the lock now.

        Raises:
            ConflictError: somebody else has taken it since it expired.
            UnavailableError: the storage did not answer.
        """
        with self._one_at_a_time:
            self._append(self._ours().number + 1, self._seconds)

    def give_back(self) -> None:
        """Let the next one take it at once."""
        self._ended.set()
        self._thread.join()
        with suppress(ConnectorError):  # it expires by itself
            self._append(self._ours().number + 1, 0.0)

    def _go_on(self) -> None:
        while not self._ended.wait(self._seconds / _RENEWALS):
            try:
                self.check()
            except ConflictError:
                return
            except ConnectorError:  # there is time for another attempt; `check` says if it was too late
                continue

    def _ours(self) -> Lease:
        newest = _newest(self._store, self._folder)
        if newest is None or newest.holder != self._holder:
            by = f"taken by {newest}" if newest else "removed"
            raise ConflictError(f"{self._store.describe(self._folder)} expired and was {by}", hint="try again later")
        return newest

    def _append(self, number: int, seconds: float) -> None:
        """The next entry; older ones are of no use any more."""
        entry = Lease(
            number=number,
            holder=self._holder,
            host=platform.node(),
            pid=os.getpid(),
            taken_at=self._taken_at,
            expires_at=_moment(seconds),
        )
        try:
            put_if_absent(self._store, _path(self._folder, number), dump_json(asdict(entry)))
        except (UnavailableError, ConflictError):  # no answer, or a write carried out twice: what is there says it
            if _newest(self._store, self._folder) != entry:
                raise
        if self._ours().number != number:  # one that was just removed could be made again
            raise ConflictError(f"{self._store.describe(self._folder)} was taken meanwhile", hint="try again later")
        with suppress(ConnectorError):  # the next one removes them, too
            for other in _numbers(self._store, self._folder):
                if other < number:
                    delete(self._store, _path(self._folder, other))


def _moment(later_seconds: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=later_seconds)).isoformat(timespec="microseconds")


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:020d}{_SUFFIX}"


def _numbers(store: Store, folder: str) -> list[int]:
    names = [info.path.rpartition("/")[2].removesuffix(_SUFFIX) for info in list_objects(store, _SUFFIX, prefix=folder)]
    return sorted(int(name) for name in names if name.isdecimal())


def _newest(store: Store, folder: str) -> Lease | None:
    failure: ConnectorError | None = None
    for _ in range(_MAX_ATTEMPTS):
        numbers = _numbers(store, folder)
        if not numbers:
            return None
        path = _path(folder, numbers[-1])
        try:
            place = store.describe(path)
            return build(Lease, load_json(read_bytes(store, path), place), place)
        except NotFoundError as error:  # replaced by a newer one since it was listed
            failure = error
            time.sleep(0.02)
    raise UnavailableError(
        f"{store.describe(folder)} changes faster than it can be read", hint="try again"
    ) from failure
