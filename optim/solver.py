"""Learn domain weights step by step: by ScaleBiO (arXiv 2406.19976, algorithm 1), or by another `Learner`.

Every step draws one batch, lets one random block of layers train, has the learner move the copies, and, after a
warm-up (in which ScaleBiO's u falls behind w on the target), moves λ along the gradient that the learner reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from optim import data_weights, diagnostics
from optim.backend import Backend, Copy
from optim.batch import BatchSource, StepData
from optim.blocks import BlockSchedule
from optim.data_weights import DataWeightSettings
from optim.diagnostics import StepRecord, Summary, Verdict
from optim.errors import DivergedError
from optim.learners.learner import Learner, StepResult
from optim.learners.scalebio import ScaleBiO
from optim.objective import target_token_weights
from optim.schedules import LearningRate
from optim.state import SolverState, averaged


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """One run of the solver.

    λ stands still for the first `warmup_steps` steps and then moves every `inner_steps` steps along the mean gradient
    since its last move. The reported weights are the average of p over the last `average_share` of the steps; with
    dual averaging, which averages gradients instead, the last p.
    `learner` says what a step does. Every `eval_period` steps what it does not see itself is measured by extra forward
    passes: the target losses of w and of u, and ‖w − u‖.
    """

    num_steps: int
    blocks: BlockSchedule
    learning_rate: LearningRate
    warmup_steps: int = 0
    learner: Learner = field(default_factory=ScaleBiO)
    inner_steps: int = 1
    average_share: float = 0.5
    eval_period: int = 20
    data_weights: DataWeightSettings = field(default_factory=DataWeightSettings)

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must lie in 0..{self.num_steps - 1} (num_steps - 1)")
        if self.warmup_steps < self.learner.reference_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} must be at least {self.learner.reference_steps}, the steps in which "
                "the learner trains its reference"
            )
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps={self.inner_steps} must be at least 1")
        if not 0 < self.average_share <= 1:
            raise ValueError(f"average_share={self.average_share} must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a run found: the averaged weights (D,) float64, its records, figures and verdict."""

    weights_D: Tensor
    state: SolverState
    records: list[StepRecord]
    summary: Summary
    verdict: Verdict


def solve(
    backend: Backend,
    source: BatchSource,
    prior_D: Tensor,
    settings: SolverSettings,
    *,
    start: SolverState | None = None,
    records: Sequence[StepRecord] = (),
    on_step: Callable[[StepRecord], None] = lambda _: None,
    after_step: Callable[[SolverState], None] = lambda _: None,
) -> Solution:
    """Learn the domain weights.

    Args:
        backend: the two copies, equal at the start.
        source: draws each step's data.
        prior_D: (D,) starting weights, positive, summing to 1; also what `prior_pull` pulls to.
        settings: the run.
        start: the state to go on from, of which `backend` holds the copies; None: the beginning.
        records: of the steps before `start`.
        on_step: called after every step with its record.
        after_step: called after that with the state that the next step starts from; what it raises ends the run.

    Raises:
        DivergedError: a loss or gradient left the finite numbers.

    Collective: every rank, with equal arguments.
    """
    state = start or SolverState.initial(prior_D)
    records = list(records)
    started = time.monotonic() - (records[-1].seconds if records else 0.0)
    for step in range(state.step, settings.num_steps):
        data = source.at(step)
        backend.set_block(settings.blocks.at(step))
        weights_D = data_weights.weights(state.data_weights.logits_D, settings.data_weights.floor)
        result = settings.learner.step(
            backend, data, weights_D, prior_D=prior_D, step=step, learning_rate=settings.learning_rate.at(step)
        )
        check_finite(step, result)
        state = _advance(state, result, prior_D, settings)
        record = _record(state, result, settings, seconds=time.monotonic() - started)
        if step % settings.eval_period == 0 or step == settings.num_steps - 1:
            record = _measured(record, backend, data, settings.learner)
        records.append(record)
        on_step(record)
        after_step(state)
    return conclude(state, records, settings)


def _advance(state: SolverState, result: StepResult, prior_D: Tensor, settings: SolverSettings) -> SolverState:
    """The state after a step; λ moves once enough gradients are pending."""
    step, logits = state.step, state.data_weights
    pending = (*state.pending, result.weight_grad_D) if step >= settings.warmup_steps else ()
    if len(pending) >= settings.inner_steps:
        mean_D = torch.stack(pending).mean(dim=0)
        pending = ()
        logits = data_weights.update(logits, mean_D, prior_D, settings.data_weights)
    average_D, num_averaged = state.average_D, state.num_averaged
    weights_D = data_weights.weights(logits.logits_D, settings.data_weights.floor)
    if step >= _average_from(settings):
        average_D, num_averaged = (
            averaged(average_D if num_averaged else weights_D, num_averaged, weights_D),
            num_averaged + 1,
        )
    return SolverState(
        step=step + 1,
        data_weights=logits,
        average_D=average_D,
        num_averaged=num_averaged,
        tokens_D=state.tokens_D + result.tokens_D,
        pending=pending,
    )


def _average_from(settings: SolverSettings) -> int:
    if settings.data_weights.optimizer == "dual_averaging":
        return settings.num_steps - 1
    moving = settings.num_steps - settings.warmup_steps
    return settings.num_steps - max(1, round(settings.average_share * moving))


def _record(state: SolverState, result: StepResult, settings: SolverSettings, *, seconds: float) -> StepRecord:
    weights_D = data_weights.weights(state.data_weights.logits_D, settings.data_weights.floor)
    updates = [update for update in (result.model_update, result.aux_update) if update is not None]
    return StepRecord(
        step=state.step - 1,
        weights=weights_D.tolist(),
        average_weights=state.average_D.tolist(),
        weight_grads=result.weight_grad_D.tolist(),
        gaps=None if result.gap_D is None else result.gap_D.tolist(),
        val_loss=result.val_loss,
        aux_val_loss=None,
        train_loss=result.train_loss,
        aux_train_loss=result.aux_train_loss,
        distance=None,
        grad_norm=None if result.model_update is None else result.model_update.grad_norm,
        aux_grad_norm=None if result.aux_update is None else result.aux_update.grad_norm,
        clipped=any(update.clipped for update in updates),
        weight_grad_norm=float(result.weight_grad_D.norm()),
        entropy=diagnostics.entropy(np.asarray(weights_D)),
        tokens=int(state.tokens_D.sum()),
        compute_tokens=result.compute_tokens,
        seconds=seconds,
    )


def _measured(record: StepRecord, backend: Backend, data: StepData, learner: Learner) -> StepRecord:
    """The record with the figures that the learner's own passes do not give."""
    if record.val_loss is None:
        record = replace(record, val_loss=_val_loss(backend, Copy.MODEL, data))
    if learner.uses_aux:
        record = replace(record, aux_val_loss=_val_loss(backend, Copy.AUX, data), distance=backend.distance())
    return record


def _val_loss(backend: Backend, copy: Copy, data: StepData) -> float:
    return float(target_token_weights(data.target) @ backend.losses(copy, data.target))


def conclude(state: SolverState, records: list[StepRecord], settings: SolverSettings) -> Solution:
    """What the records of all steps, and the state after them, say."""
    num_updates = state.data_weights.num_updates
    summary = diagnostics.summarize(
        records,
        warmup_steps=settings.warmup_steps,
        num_averaged=state.num_averaged,
        num_updates=num_updates,
        reachable_range=data_weights.reachable_logit_range(settings.data_weights, num_updates),
        tokens=state.tokens_D.tolist(),
        settling_updates=data_weights.settling_updates(settings.data_weights),
        tilt=data_weights.tilt(settings.data_weights, state.data_weights),
    )
    return Solution(
        weights_D=state.average_D / state.average_D.sum(),
        state=state,
        records=records,
        summary=summary,
        verdict=diagnostics.judge(records, summary),
    )


def check_finite(step: int, result: StepResult) -> None:
    """Refuse to go on after a step that saw a loss or gradient that is not finite."""
    losses = {"target": result.val_loss, "train": result.train_loss, "auxiliary": result.aux_train_loss}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    if not np.isfinite([*known.values(), float(result.weight_grad_D.sum())]).all():
        figures = ", ".join(f"{name} {loss}" for name, loss in known.items())
        raise DivergedError(
            f"step {step}: a loss became NaN or infinite ({figures})", hint="lower learning_rate or penalty"
        )
