"""Start worker processes for one call, and bring back their results or the first real error.

A helper process imports the program once and forks the ranks from it (CPU), or starts one process per GPU: CUDA does
not survive a fork. Ranks meet through a file in the job's temporary directory, so no port is opened. Nothing here
re-imports the caller's script, so no `if __name__ == "__main__"` is asked of it and a notebook can call it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from optim.errors import MissingExtraError, WorkerError
from optim.job import Failure, Job

Device = Literal["cpu", "cuda"]
_TRAIN_PACKAGES = ("torch", "transformers", "safetensors", "megatron.core")
COLLECTIVE_TIMEOUT = 1800.0
"""Seconds that a rank waits for its peers: longer than any step, shorter than a night of standing still."""


def launch(
    target: str,
    payload: Any,
    *,
    world_size: int,
    threads: int | None = None,
    device: Device = "cpu",
    preload: Sequence[str] = (),
    on_poll: Callable[[], None] | None = None,
    poll_seconds: float = 0.2,
    grace_seconds: float = 2.0,
    log: Path | None = None,
    collective_timeout: float = COLLECTIVE_TIMEOUT,
) -> list[Any]:
    """Call `target(payload)` in `world_size` processes joined by torch.distributed; return their results by rank.

    Either every rank's result comes back, or an exception and no process is left: when one rank fails the others are
    ended, when this process is interrupted or dies all of them are.

    Args:
        target: "package.module:function"; imported in the workers.
        payload: Handed to every rank; pickled.
        world_size: Number of ranks.
        threads: Threads of each rank; by default the cores shared out.
        device: "cuda" gives rank r the r-th GPU; "cpu" hides GPUs.
        preload: Modules to import before the ranks are forked, beyond the target's own: once instead of once a rank.
        on_poll: Called in this process about every `poll_seconds`; an exception it raises ends the workers.
        poll_seconds: How often to look after the workers.
        grace_seconds: How long ranks may take to end after SIGTERM, when this call is interrupted.
        log: File that the workers' output is appended to; None: this process's stderr.
        collective_timeout: Seconds after which a rank that waits for its peers in a collective fails.

    Raises:
        MissingExtraError: if a package that workers need is not installed.
        WorkerError: if a rank raised, was killed, waited too long for its peers, or returned something that cannot be
            pickled. An exception of this
            distribution is raised as itself, with the WorkerError as its cause.
    """
    check_train_extra()
    with tempfile.TemporaryDirectory(prefix="lake-curator-") as folder:
        job = Job(Path(folder))
        job.write(
            target,
            payload,
            world_size=world_size,
            device=device,
            preload=tuple(preload),
            collective_timeout=collective_timeout,
        )
        threads = threads or max(1, device_count("cpu") // world_size)
        _supervise(job, _environment(threads, device), on_poll, poll_seconds, grace_seconds, log)
        failures = job.failures(world_size)
        if failures:
            _raise_first(failures, world_size, log)
        return [job.result(rank) for rank in range(world_size)]


def device_count(device: Device) -> int:
    """CPU cores that this process may use, or its GPUs."""
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_train_extra() -> None:
    """Check, without importing them, that the packages of the `train` extra are there.

    Raises:
        MissingExtraError: naming the package and how to install it.
    """
    for name in _TRAIN_PACKAGES:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # the parent of a dotted name
            found = False
        if not found:
            raise MissingExtraError(f"training needs {name!r}: pip install 'lake-curator[train]'")


def _environment(threads: int, device: str) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
    # Waiting threads sleep: with spinning ones a small model takes 4-10× as long on a machine that others use too.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron asks for it, to overlap its all-reduces
    environment["PYTHONUNBUFFERED"] = "1"
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _supervise(
    job: Job,
    environment: dict[str, str],
    on_poll: Callable[[], None] | None,
    poll_seconds: float,
    grace_seconds: float,
    log: Path | None,
) -> None:
    """Run the helper to its end; end its whole process group if anything goes wrong here."""
    with ExitStack() as stack:
        # fd 2 rather than sys.stderr: a notebook's sys.stderr is no file, and stdout is left to the caller's results
        output = 2 if log is None else stack.enter_context(log.open("ab"))
        helper = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "optim.worker", str(job.folder), str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        stack.callback(_end_group, helper, grace_seconds)
        _poll_until_done(helper, on_poll, poll_seconds)
        job.note_helper_exit(helper.returncode)


def _poll_until_done(helper: subprocess.Popen[bytes], on_poll: Callable[[], None] | None, poll_seconds: float) -> None:
    while True:
        try:
            helper.wait(poll_seconds)
        except subprocess.TimeoutExpired:
            if on_poll is not None:
                on_poll()
        else:
            return


def _end_group(helper: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """End the helper and every rank: politely, then, or when interrupted once more, not."""
    try:
        _signal_group(helper, signal.SIGTERM)
        helper.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(helper, signal.SIGKILL)
        helper.wait()


def _signal_group(helper: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
        os.killpg(helper.pid, number)


def _raise_first(failures: list[Failure], world_size: int, log: Path | None) -> None:
    """Raise the failure that the others follow from."""
    first = min(failures, key=lambda failure: (failure.is_consequence, failure.time_ns))
    where = f"; its output is in {log}" if log else ""
    who = "the workers could not start" if first.rank < 0 else f"worker {first.rank} of {world_size} failed"
    message = f"{who}: {first.cause}{where}"
    worker_error = WorkerError(message, rank=first.rank, traceback=first.traceback)
    own = first.own_exception()
    if own is None:
        if first.traceback:
            worker_error.add_note(first.traceback)
        raise worker_error
    worker_error.add_note(first.traceback)
    raise own from worker_error
