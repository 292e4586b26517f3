"""What a real step holds, counted in this process or on each worker, for `test_planner`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from backend_cases import CONFIGS

from optim.backend import AdamWSettings, Backend, Copy, ModelSource, Term
from optim.batch import Batch
from optim.blocks import Block
from optim.mcore.backend import mcore_backend
from optim.mcore.dry_run import LiveBytes
from optim.planner import Setup


@dataclass(frozen=True, kw_only=True)
class Case:
    """`num_packs` micro-batches of w and of u, on each data-parallel rank."""

    model: str
    setup: Setup
    block: Block
    num_packs: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.model}: {self.setup}, moments {self.setup.moments}"


def full_term(copy: Copy, num_rows: int, setup: Setup, vocab_size: int) -> Term:
    length = setup.sequence_length
    batch = Batch(
        tokens_BS=torch.randint(0, vocab_size, (num_rows, length + 1)),
        mask_BS=torch.ones(num_rows, length),
        domain_B=torch.zeros(num_rows, dtype=torch.int64),
        row_weight_B=torch.ones(num_rows),
    )
    return Term(copy=copy, batch=batch, token_weight_B=torch.full((num_rows,), 1e-3))


def live_bytes(case: Case) -> int:
    """Most bytes that live in the second step of a block on this rank: the whole backend, clipping included."""
    setup, hf_config = case.setup, CONFIGS[case.model]
    rows_per_pack = setup.micro_batch_tokens // setup.sequence_length
    terms = [
        full_term(copy, packs * rows_per_pack * setup.layout.data_parallel, setup, int(hf_config["vocab_size"]))
        for copy, packs in zip(Copy, case.num_packs, strict=True)
    ]
    settings = AdamWSettings(max_grad_norm=1e-6, moments_on_switch=setup.moments)
    options = {"dtype": setup.dtype, "recompute": setup.recompute, "micro_batch_tokens": setup.micro_batch_tokens}
    with (
        LiveBytes() as live,
        mcore_backend(ModelSource(hf_config=hf_config), layout=setup.layout, optimizer=settings, **options) as backend,
    ):
        if setup.moments == "keep":
            take_step(backend, terms)  # with every layer
        backend.set_block(case.block)
        take_step(backend, terms)
        live.restart()
        take_step(backend, terms)
        return live.peak


def take_step(backend: Backend, terms: list[Term]) -> None:
    backend.forward_backward(terms)
    for copy in Copy:
        assert backend.update(copy, learning_rate=1e-3).clipped


def live_bytes_of(cases: list[Case]) -> list[int]:
    return [live_bytes(case) for case in cases]
