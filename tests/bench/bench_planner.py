"""What `curator plan` says against what a process really grows by, and the table of optim/README.md.

Each case runs two real steps of a model of about 50M parameters in a fresh process and reads its peak resident memory.
Run: python tests/bench/bench_planner.py [memory|table]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from optim.backend import AdamWSettings, Copy, ModelSource, Term
from optim.batch import Batch
from optim.blocks import Block
from optim.layout import Layout
from optim.mcore.backend import McoreBackend, mcore_backend
from optim.planner import GIB, PUBLISHED, Setup, plan, propose
from optim.presets import PRESETS

MODEL = PRESETS["small"] | {"hidden_size": 640, "intermediate_size": 1760, "vocab_size": 8192, "num_hidden_layers": 8}
FROZEN = Setup(layout=Layout(), dtype="float32", device="cpu", sequence_length=512, block_size=2, edges="frozen")
CASES = {
    "all layers": replace(FROZEN, block_size=0, edges="always"),
    "all layers, recompute": replace(FROZEN, block_size=0, edges="always", recompute=True),
    "2 layers": FROZEN,
    "2 layers, recompute": replace(FROZEN, recompute=True),
    "2 layers and edges, bfloat16": replace(FROZEN, edges="always", dtype="bfloat16"),
    "2 layers, recompute, bfloat16": replace(FROZEN, recompute=True, dtype="bfloat16"),
}
NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc then returns every tensor of 64 KiB or more to the system when it is freed."""


def resident_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(name: str) -> None:
    """Print the growth of the peak resident memory over what the imports took."""
    setup = CASES[name]
    with mcore_backend(
        ModelSource(hf_config=PRESETS["tiny"] | {"vocab_size": 512}),
        layout=Layout(),
        optimizer=AdamWSettings(),
        micro_batch_tokens=64,
        dtype=setup.dtype,
        recompute=setup.recompute,  # with which torch imports 40 MiB more
    ) as warm_up:
        step(warm_up, num_rows=(1, 1), length=64)
    before = resident_bytes()
    with mcore_backend(
        ModelSource(hf_config=MODEL),
        layout=Layout(),
        optimizer=AdamWSettings(),
        micro_batch_tokens=setup.micro_batch_tokens,
        dtype=setup.dtype,
        recompute=setup.recompute,
    ) as backend:
        layers = frozenset(range(setup.block_size or backend.info.num_layers))
        backend.set_block(Block(layers=layers, edges=setup.edges != "frozen"))
        rows = setup.micro_batch_tokens // setup.sequence_length
        for _ in range(2):
            step(backend, num_rows=(rows, 2 * rows), length=setup.sequence_length)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def step(backend: McoreBackend, *, num_rows: tuple[int, int], length: int) -> None:
    """Forward and backward through w and u, and both updates."""
    terms = []
    for copy, rows in zip(Copy, num_rows, strict=True):
        batch = Batch(
            tokens_BS=torch.randint(0, 512, (rows, length + 1)),
            mask_BS=torch.ones(rows, length),
            domain_B=torch.zeros(rows, dtype=torch.int64),
            row_weight_B=torch.ones(rows),
        )
        terms.append(Term(copy=copy, batch=batch, token_weight_B=torch.full((rows,), 1e-3)))
    backend.forward_backward(terms)
    for copy in Copy:
        backend.update(copy, learning_rate=1e-4)


def bench_memory() -> None:
    """Planned bytes against the growth of real processes, as they come and with an allocator that keeps nothing."""
    for name, setup in CASES.items():
        planned = plan(MODEL, setup).worst.total
        as_it_comes, exact = (growth_in_a_process(name, environment) for environment in ({}, NOTHING_KEPT))
        print(
            f"{name}: planned {planned / 2**20:.0f} MiB, peak resident growth {as_it_comes / planned:.3f} of it, "
            f"{exact / planned:.3f} when freed memory goes back at once",
            flush=True,
        )


def growth_in_a_process(name: str, environment: Mapping[str, str]) -> int:
    """What `measure` prints in a fresh process."""
    command = [sys.executable, __file__, "measure", name]
    process = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return int(process.stdout.splitlines()[-1])


def print_table() -> None:
    """GiB a card for the published models on 8 cards of 80 GiB: blocks of 2 layers, then what is proposed."""
    layout = Layout(tensor_parallel=8, sequence_parallel=True)
    for name, hf_config in PUBLISHED.items():
        setup = Setup(layout=layout, block_size=2, edges="frozen", recompute=True)
        small = plan(hf_config, setup).worst
        print(f"{name}: {setup}: {small.total / GIB:.1f} GiB", flush=True)
        made = propose(hf_config, num_devices=8, memory_gib=80)
        print(f"{name}: proposed {made.setup}: {made.worst.total / GIB:.1f} GiB", flush=True)


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    if what == "measure":
        measure(sys.argv[2])
    if what in ("all", "memory"):
        bench_memory()
    if what in ("all", "table"):
        print_table()
