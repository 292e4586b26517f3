"""A bilevel step in parallel layouts on this machine's cores against one process with all of them. Wall time.

Run: python tests/bench/bench_layouts.py
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch
import torch.distributed as dist
from bench_engine import config_of, full_batch, term

from optim.backend import AdamWSettings, Copy, ModelSource
from optim.launch import device_count, launch
from optim.layout import Layout
from optim.mcore.backend import mcore_backend


def seconds_of_a_step(layout: Layout, rounds: int = 3) -> float:
    """Best wall time of three terms of 8 × 256 tokens and both updates, in micro-batches of 512 tokens."""
    torch.manual_seed(0)
    config = config_of("10M")
    batch = full_batch(int(str(config["vocab_size"])))
    terms = [term(copy, batch) for copy in (Copy.MODEL, Copy.MODEL, Copy.AUX)]
    best = float("inf")
    with ExitStack() as stack:
        opened = mcore_backend(
            ModelSource(hf_config=config), layout=layout, optimizer=AdamWSettings(), micro_batch_tokens=512
        )
        backend = stack.enter_context(opened)
        for number in range(rounds + 1):
            dist.barrier()
            started = time.perf_counter()
            backend.forward_backward(terms)
            for copy in Copy:
                backend.update(copy, learning_rate=1e-4)
            dist.barrier()
            if number:
                best = min(best, time.perf_counter() - started)
    return best


def measured(layout: Layout, threads: int) -> float:
    """The same in worker processes."""
    found = launch(
        "bench_layouts:seconds_of_a_step",
        layout,
        world_size=layout.world_size,
        threads=threads,
        preload=("optim.mcore.backend",),
    )
    return max(found)


def bench() -> None:
    """Two workers with half of the cores each, and one with all or half of them."""
    cores = device_count("cpu")
    default = measured(Layout(), cores)
    half = measured(Layout(), max(1, cores // 2))
    print(f"one process, {cores // 2} of {cores} threads: {default / half:.2f} of the speed with {cores}", flush=True)
    for layout in (Layout(tensor_parallel=2), Layout(pipeline_parallel=2), Layout(data_parallel=2)):
        seconds = measured(layout, max(1, cores // 2))
        print(f"{layout}: {default / seconds:.2f} of the speed of one process with {cores} threads", flush=True)


if __name__ == "__main__":
    bench()
