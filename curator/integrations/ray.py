"""Work on the shards of a lake by Ray Data (extra [ray]): the same shards as by processes, on as many machines.

Who starts the work keeps the catalog, and an actor beside it says which rows a file has; the tasks read the lake and
write their shards themselves. A task that is lost with its machine is run again by Ray, which does no harm since a
shard is written whole or not at all.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa

from curator.errors import ConfigError, MissingExtraError, TryAgainError

LOCAL = "local"


class Job(Protocol):
    """What is to be done with every shard; pickled, and sent to every machine once."""

    def rows(self, shard: Any) -> pa.Table:
        """What the catalog knows of a shard's rows; called on the machine that has the catalog."""

    def write(self, shard: Any, rows: pa.Table) -> Iterator[int]:
        """Write a shard; yields numbers of rows as they are read."""


def written_by_ray(address: str, tasks: int | None, job: Job, shards: Sequence[Any]) -> Iterator[int]:
    """Let Ray write shards; yields the number of rows of each when it is there, in any order.

    Args:
        address: of a cluster that this machine belongs to: "auto", or HOST:PORT. "local" starts one on this machine,
            and stops it afterwards. If the process is connected already, that is used.
        tasks: the most that run at a time; None: as many as there are processors.
        job: what is done.
        shards: pickled with the job.

    Raises:
        MissingExtraError: ray is not installed.
        ConfigError: `address` is of a cluster that this machine does not belong to.
        TryAgainError: there is no cluster at `address`, or its tasks are lost again and again.
        CuratorError: what a task raised.
    """
    if "://" in address:
        raise ConfigError(
            f"ray address {address!r} is that of a client, which has no place for the catalog",
            hint="run the command on a "
            'machine of the cluster with "auto", or with "local" for a cluster of this machine alone',
        )
    ray = _ray()
    with _connected(ray, address), _lost_tasks(ray):
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        index = ray.remote(_Index).options(num_cpus=0, scheduling_strategy=here).remote(job, list(shards))
        shared = ray.put((job, list(shards)))
        numbers = ray.data.range(len(shards), override_num_blocks=len(shards))
        for done in numbers.map(_Write(index, shared), concurrency=tasks).iter_rows():
            if done["error"]:
                raise pickle.loads(done["error"])  # noqa: S301  # what our own task wrote a moment ago
            yield done["num_rows"]


class _Index:
    """Has the catalog."""

    def __init__(self, job: Job, shards: Sequence[Any]) -> None:
        self._job, self._shards = job, shards

    def rows(self, number: int) -> pa.Table:
        return self._job.rows(self._shards[number])


class _Write:
    """A task: the number of a shard → how many rows it has, or what was raised.

    Errors come back as values, since Ray would wrap them in its own and try them again.
    """

    def __init__(self, index: Any, shared: Any) -> None:
        self._index, self._shared = index, shared

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import ray

        job, shards = ray.get(self._shared)
        number = int(shard["id"])
        try:
            rows = ray.get(self._index.rows.remote(number))
            return {"num_rows": sum(job.write(shards[number], rows)), "error": b""}
        except Exception as error:
            cause = getattr(error, "cause", None)
            return {"num_rows": 0, "error": pickle.dumps(cause if isinstance(cause, Exception) else error)}


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address, include_dashboard=False if address == LOCAL else None, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TryAgainError(
            f"there is no Ray cluster at {address!r} ({error})",
            hint='`ray start --head` on this machine starts one, and "local" one that lasts as long as the command',
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _lost_tasks(ray: Any) -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    told, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    except ray.exceptions.RayError as error:
        raise TryAgainError(
            f"Ray lost its tasks ({type(error).__name__}), perhaps for want of memory",
            hint="the same command goes on with the shards that are missing",
        ) from error
    finally:
        context.enable_progress_bars = told


def _ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise MissingExtraError("scoring by Ray needs the package 'ray': pip install 'lake-curator[ray]'") from error
    return ray
