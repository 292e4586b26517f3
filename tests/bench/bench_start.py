"""Starting workers until their first collective has an answer: `launch` against torchrun. Wall time, best of rounds.

Run: python tests/bench/bench_start.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from optim.launch import launch


def meet(_: object) -> float:
    """Import the engine and add up over the ranks."""
    import torch
    import torch.distributed as dist

    import optim.mcore.backend  # noqa: F401

    total = torch.ones(1)
    dist.all_reduce(total)
    return float(total)


def worker() -> None:
    """What torchrun starts."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    meet(None)
    dist.barrier()  # as `launch` does: without it one rank's exit can break another's all-reduce
    dist.destroy_process_group()
    os._exit(0)  # as `launch` does; the interpreter's own way out ends in SIGABRT now and then


def by_launch(num_workers: int) -> None:
    """Our launcher."""
    found = launch("bench_start:meet", None, world_size=num_workers, threads=1, preload=("optim.mcore.backend",))
    assert found == [num_workers] * num_workers


def by_torchrun(num_workers: int) -> None:
    """torch's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    # the interface is named as `launch` names it: without it gloo at times picks one that does not answer
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, __file__, "worker"], check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"torchrun failed: {done.stderr[-2000:]}")


def best_wall(start: Callable[[int], None], num_workers: int) -> float:
    """Seconds of one start."""
    started = time.perf_counter()
    start(num_workers)
    return time.perf_counter() - started


def bench(rounds: int = 3) -> None:
    """1, 2 and 4 workers, the launchers taking turns."""
    for num_workers in (1, 2, 4):
        ours = theirs = float("inf")
        for _ in range(rounds):
            ours = min(ours, best_wall(by_launch, num_workers))
            theirs = min(theirs, best_wall(by_torchrun, num_workers))
        print(
            f"start of {num_workers}: {theirs / ours:.2f}x torchrun ({ours:.1f} s against {theirs:.1f} s)", flush=True
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        worker()
    else:
        bench()
