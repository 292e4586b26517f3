"""Train one fresh model on a given stream of batches and measure it on held-out rows.

What the Performance Evaluator judges mixtures by. It runs on any `Backend`, so under every layout that learning knows;
the second copy stands idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from optim.backend import Backend, Copy, Term
from optim.batch import Batch
from optim.blocks import BlockSchedule
from optim.objective import target_token_weights
from optim.schedules import LearningRate


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """One step: its mean token loss in nats, and the target tokens and seconds since the start."""

    step: int
    loss: float
    tokens: int
    seconds: float


def train(
    backend: Backend,
    batches: Iterable[Batch],
    blocks: BlockSchedule,
    learning_rate: LearningRate,
    on_step: Callable[[TrainRecord], None] = lambda _: None,
) -> TrainRecord:
    """Take one AdamW step of the active block down the mean token loss of each batch; returns the last record.

    Collective: every rank, with equal arguments.

    Raises:
        DivergedError: a loss or gradient left the finite numbers.
        ValueError: there is no batch.
    """
    started = time.monotonic()
    tokens = 0
    record = None
    for step, batch in enumerate(batches):
        backend.set_block(blocks.at(step))
        weight_B = target_token_weights(batch)
        (loss_B,) = backend.forward_backward(
            [Term(copy=Copy.MODEL, batch=batch, token_weight_B=weight_B.float())],
        )
        backend.update(Copy.MODEL, learning_rate=learning_rate.at(step))
        tokens += int(batch.num_targets_B.sum())
        record = TrainRecord(
            step=step, loss=float(weight_B @ loss_B), tokens=tokens, seconds=time.monotonic() - started
        )
        on_step(record)
    if record is None:
        raise ValueError("there is no batch to train on")
    return record


def summed_losses(backend: Backend, batches: Iterable[Batch]) -> Tensor:
    """The trained model's summed token loss of every row of `batches`, (N,) float64, nats. Collective."""
    return torch.cat([backend.losses(Copy.MODEL, batch) for batch in batches])
