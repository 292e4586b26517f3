"""The program that `optim.launch` starts: `python -m optim.worker JOB PARENT_PID [RANK]`.

Without a rank it is the helper: it imports the target, forks or starts the ranks, and looks after them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from optim.errors import MissingExtraError
from optim.job import Failure, Job, Order, describe_exit, is_peer_lost, is_timeout, reraisable

_POLL_SECONDS = 0.02
_GRACE_SECONDS = 0.5


def main(argv: list[str]) -> int:
    """The exit status of the helper or of one rank."""
    job, parent = Job(Path(argv[0])), int(argv[1])
    _die_with(parent)
    order = job.order()
    if len(argv) > 2:
        return _run_rank(job, order, int(argv[2]))
    try:
        ranks = _fork_ranks(job, order) if order.device == "cpu" else _start_ranks(job, order)
    except Exception as error:
        job.write_failure(_failure(-1, error, order.collective_timeout))
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the ranks are told too, and may have something to finish
    return _watch(job, ranks, parent)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _fork_ranks(job: Job, order: Order) -> dict[int, int]:
    """Import once, then fork; rank of each process."""
    gc.disable()  # the collector finds nothing in what imports make, and takes a fifth of their time
    for module in order.preload:
        importlib.import_module(module)
    _import_target(order.target)
    gc.freeze()  # nor would it in the ranks, where it would copy the shared pages besides
    gc.enable()
    ranks = {}
    helper = os.getpid()
    for rank in range(order.world_size):
        pid = os.fork()
        if pid == 0:
            _die_with(helper)
            os._exit(_run_rank(job, order, rank))
        ranks[pid] = rank
    return ranks


def _start_ranks(job: Job, order: Order) -> dict[int, int]:
    """One fresh process per GPU; rank of each process."""
    command = [sys.executable, "-m", "optim.worker", str(job.folder), str(os.getpid())]
    return {subprocess.Popen([*command, str(rank)]).pid: rank for rank in range(order.world_size)}  # noqa: S603


def _import_target(target: str) -> Callable[[Any], Any]:
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
        importlib.import_module("torch.distributed")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("megatron", "safetensors", "torch", "transformers"):
            raise MissingExtraError(f"training needs {error.name!r}: pip install 'lake-curator[train]'") from error
        raise
    function: Callable[[Any], Any] = getattr(module, function_name)
    return function


def _run_rank(job: Job, order: Order, rank: int) -> int:
    """Join the others, call the target, write its result or its failure."""
    faulthandler.enable()
    try:
        _join(job, order, rank)
        import pickle

        payload = pickle.loads(order.payload)  # noqa: S301 - from our own parent
        job.write_result(rank, _import_target(order.target)(payload))
        _leave()
    except BaseException as error:
        if job.has_result(rank) and is_peer_lost(error):
            return 0  # this rank had done its part; the one that left early reports itself
        job.write_failure(_failure(rank, error, order.collective_timeout))
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _join(job: Job, order: Order, rank: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    if order.device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if order.device == "cuda" else "gloo",
        store=dist.FileStore(str(job.store), order.world_size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=order.world_size,
        timeout=timedelta(seconds=order.collective_timeout),
    )


def _leave() -> None:
    """Wait for the others, so that nobody's connection closes while a peer still reads."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def _failure(rank: int, error: BaseException, collective_timeout: float) -> Failure:
    cause = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
    if is_timeout(error):
        cause = (
            f"a collective waited {collective_timeout:g} seconds for its peers; one of them hangs or went another way"
        )
    return Failure(
        rank=rank,
        cause=cause,
        traceback="".join(traceback.format_exception(error)),
        exception=reraisable(error),
        is_consequence=is_peer_lost(error),
        time_ns=time.time_ns(),
    )


def _watch(job: Job, ranks: dict[int, int], parent: int) -> int:
    """Wait for all ranks; after the first failure end the others. Returns the exit status."""
    alive = dict(ranks)
    deadline = None
    while alive:
        for pid in list(alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done and _has_failed(job, alive.pop(pid), os.waitstatus_to_exitcode(status)) and deadline is None:
                deadline = time.monotonic() + _GRACE_SECONDS  # let the others tell their story
        if os.getppid() != parent or (deadline and time.monotonic() > deadline):
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return 1
        time.sleep(_POLL_SECONDS)
    return 0 if deadline is None else 1


def _has_failed(job: Job, rank: int, status: int) -> bool:
    if status == 0 and job.has_result(rank):
        return False
    job.write_failure(Failure(rank=rank, cause=describe_exit(status), time_ns=time.time_ns()))
    return True


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)  # taking apart what was imported would take half a second
