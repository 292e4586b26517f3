"""The temporary directory through which `launch` and its workers talk."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OWN_PACKAGES = ("curator", "connectors", "optim")

# What torch.distributed raises in a rank whose peer has gone; in lower case, since it is not of one mind.
_PEER_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "nccl",
    "gloo",
    "socket closed",
)

# What it raises in a rank that waited in vain: in a collective, or for the others to appear.
_TIMED_OUT = ("timed out waiting", "timed out after", "wait timeout after", "socket timeout", "timeout waiting for key")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one rank failed (rank −1: before there were ranks).

    `cause` is one line; `traceback` is '' for a process that was killed. `exception` is the pickled exception where
    the caller can raise it as itself.
    """

    rank: int
    cause: str
    traceback: str = ""
    exception: bytes | None = None
    is_consequence: bool = False
    time_ns: int = 0

    def own_exception(self) -> BaseException | None:
        """The exception to raise as itself, if there is one."""
        if self.exception is None:
            return None
        error = pickle.loads(self.exception)  # noqa: S301 - from our own worker
        return error if isinstance(error, BaseException) else None


@dataclass(frozen=True)
class Order:
    """What the workers are to do. `payload` stays pickled until a rank needs it."""

    target: str
    payload: bytes
    world_size: int
    device: str
    preload: tuple[str, ...]
    collective_timeout: float


@dataclass(frozen=True)
class Job:
    """One call: its order, and each rank's result or failure."""

    folder: Path

    @property
    def store(self) -> Path:
        """The file through which ranks find each other."""
        return self.folder / "store"

    def write(
        self,
        target: str,
        payload: Any,
        *,
        world_size: int,
        device: str,
        preload: tuple[str, ...],
        collective_timeout: float,
    ) -> None:
        """Write the order.

        Raises:
            TypeError: if the payload cannot be pickled.
        """
        try:
            data = pickle.dumps(payload)
        except Exception as error:
            raise TypeError(f"the payload for {target} cannot be sent to workers: {error}") from error
        order = Order(target, data, world_size, device, preload, collective_timeout)
        (self.folder / "order").write_bytes(pickle.dumps(order))

    def order(self) -> Order:
        """What `write` wrote."""
        order: Order = pickle.loads((self.folder / "order").read_bytes())  # noqa: S301 - our own file
        return order

    def write_result(self, rank: int, value: Any) -> None:
        """Write a rank's result: wholly or not at all.

        Raises:
            TypeError: if it cannot be pickled.
        """
        try:
            data = pickle.dumps(value)
        except Exception as error:
            raise TypeError(f"the result, a {type(value).__name__}, cannot be sent back: {error}") from error
        self._publish(f"result{rank}", data)

    def has_result(self, rank: int) -> bool:
        """Whether the rank has come to its end."""
        return (self.folder / f"result{rank}").exists()

    def result(self, rank: int) -> Any:
        """What the rank returned."""
        return pickle.loads((self.folder / f"result{rank}").read_bytes())  # noqa: S301 - our own file

    def write_failure(self, failure: Failure) -> None:
        """Write how a rank failed, unless it has said so itself."""
        if not (self.folder / f"failure{failure.rank}").exists():
            self._publish(f"failure{failure.rank}", pickle.dumps(failure))

    def failures(self, world_size: int) -> list[Failure]:
        """Every failure written."""
        paths = (self.folder / f"failure{rank}" for rank in range(-1, world_size))
        return [pickle.loads(path.read_bytes()) for path in paths if path.exists()]  # noqa: S301 - our own files

    def note_helper_exit(self, returncode: int) -> None:
        """Record that the helper itself ended badly, if no failure explains it."""
        if returncode and not any(self.folder.glob("failure*")):
            self.write_failure(Failure(rank=-1, cause=describe_exit(returncode), time_ns=time.time_ns()))

    def _publish(self, name: str, data: bytes) -> None:
        partial = self.folder / f".{name}"
        partial.write_bytes(data)
        partial.rename(self.folder / name)


def describe_exit(status: int) -> str:
    """What an exit status of a process that left no traceback means."""
    if status < 0:
        import signal

        name = signal.Signals(-status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"ended with status {status} without returning a result"


def is_peer_lost(error: BaseException) -> bool:
    """Whether `error` only says that another rank has gone."""
    lost = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _PEER_LOST)
    return lost and not is_timeout(error)


def is_timeout(error: BaseException) -> bool:
    """Whether `error` says that this rank waited in vain for the others."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TIMED_OUT)


def reraisable(error: BaseException) -> bytes | None:
    """`error` pickled, if it is an exception of this distribution that survives the journey; else None."""
    package = type(error).__module__.partition(".")[0]
    if package not in _OWN_PACKAGES:
        return None
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301 - just made
    except Exception:
        return None
    return data
