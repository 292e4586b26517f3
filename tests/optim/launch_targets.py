"""What `test_launch` has its workers do."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from optim.errors import LayoutError


def add_up(payload: int) -> tuple[int, float, int]:
    total = torch.tensor(float(payload + dist.get_rank()))
    dist.all_reduce(total)
    return dist.get_rank(), float(total), torch.get_num_threads()


def greet(payload: str) -> None:
    sys.stdout.write(f"rank {dist.get_rank()} says {payload}\n")  # in one piece: ranks share the log


def fail_on_rank_one(how: str) -> None:
    """Rank 1 ends in the way named; the others wait for it in a collective without end."""
    if dist.get_rank() == 1:
        _end(how)
    while True:
        dist.all_reduce(torch.zeros(1))
        time.sleep(0.01)


def _end(how: str) -> None:
    if how == "raise":
        raise ValueError("first line\nsecond line")
    if how == "raise ours":
        raise LayoutError("cannot be split")
    if how == "exit":
        os._exit(0)
    if how == "exit 3":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(how)


def wait_for_a_peer_that_hangs(folder: Path) -> None:
    """Rank 1 never comes to the collective in which rank 0 waits."""
    (folder / f"pid{dist.get_rank()}").write_text(f"{os.getpid()} {os.getppid()}")
    if dist.get_rank() == 1:
        time.sleep(600)
    dist.all_reduce(torch.zeros(1))


def wait_on_a_tensor_parallel_peer(folder: Path) -> None:
    """The same in a group that Megatron made."""
    from optim.layout import Layout
    from optim.mcore.device import megatron_on_this_device
    from optim.mcore.parallel import model_parallel

    with megatron_on_this_device(), model_parallel(Layout(tensor_parallel=2)) as groups:
        if groups.tensor_rank == 1:
            time.sleep(600)
        dist.all_reduce(torch.zeros(1), group=groups.tensor)


def return_what_cannot_be_pickled(_: Any) -> Any:
    return lambda: 0


def leave_early(_: Any) -> int:
    """The ranks come to their end at different times."""
    time.sleep(0.3 * dist.get_rank())
    return os.getpid()


def note_pid_and_wait(folder: Path) -> None:
    (folder / f"pid{dist.get_rank()}").write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(600)
