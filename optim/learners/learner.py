"""What every step-wise way to learn data weights has in common.

A learner says what one step does with the two copies of the model, and what its gradient in the data weights p is. All
else (batches, blocks, how p moves along that gradient, averaging, records, checkpoints) is `optim.solver`'s, the same
for all. Shapes: B rows, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from optim.backend import Backend, UpdateReport
from optim.batch import Batch, StepData

FORWARD_SHARE = 1 / 3
"""Compute of a forward pass in units of a forward-backward pass: the backward takes two of three products."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step saw, before its updates; None for what a learner does not have at that step.

    `weight_grad_D` is ∂/∂p of what the learner minimises, natural sign, up to a constant that all domains share (p
    does not move by one); `gap_D` = ℓ(w) − ℓ(u) and `tokens_D` the target tokens of each domain; all (D,) float64.
    Losses are in nats per token: of w on the target and on the mixture, of u on the mixture. `compute_tokens` are the
    target tokens that went through forward and backward; those of a forward pass alone count as `FORWARD_SHARE`.
    """

    weight_grad_D: Tensor
    tokens_D: Tensor
    compute_tokens: float
    gap_D: Tensor | None = None
    val_loss: float | None = None
    train_loss: float | None = None
    aux_train_loss: float | None = None
    model_update: UpdateReport | None = None
    aux_update: UpdateReport | None = None


class Learner(Protocol):
    """A way to learn data weights step by step; an immutable value without state of its own."""

    @property
    def uses_aux(self) -> bool:
        """Whether u is trained; it stands idle otherwise."""

    @property
    def reference_steps(self) -> int:
        """Steps of a first phase that trains a reference only; 0 for most. The weights must stand still in it."""

    def step(
        self,
        backend: Backend,
        data: StepData,
        weights_D: Tensor,
        *,
        prior_D: Tensor,
        step: int,
        learning_rate: float,
    ) -> StepResult:
        """Move the copies by one step, and report the gradient in p.

        Args:
            backend: the two copies, the active block set.
            data: what the step draws.
            weights_D: p, (D,) float64.
            prior_D: where p started, (D,) float64.
            step: its number, from 0.
            learning_rate: of the AdamW updates.

        Collective: every rank, with equal arguments.
        """


def data_tokens(data: StepData, num_domains: int) -> Tensor:
    """Target tokens of each domain in the training batch, (D,) float64."""
    tokens_D = torch.zeros(num_domains, dtype=torch.float64)
    return tokens_D.index_add_(0, data.train.domain_B, data.train.num_targets_B.double())


def compute_tokens(*batches: Batch, forward_only: tuple[Batch, ...] = ()) -> float:
    """Target tokens of the batches that went through forward and backward, and a third of the others'."""
    full = sum(float(batch.num_targets_B.sum()) for batch in batches)
    return full + FORWARD_SHARE * sum(float(batch.num_targets_B.sum()) for batch in forward_only)


def inclusion(data: StepData, tokens_D: Tensor) -> Tensor:
    """π⁻¹ of the domains that have a target token in this step, 0 for the others; (D,) float64."""
    return torch.where(tokens_D > 0, data.inclusion_D.double(), 0.0)
