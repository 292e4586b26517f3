"""What a run says about itself: the figures of every step, and a verdict in words.

The method has three failure signatures: it has not converged, it is unstable, or it brings no gain. The first two
are told here from the run's own records; the third needs a model retrained on the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["converged", "not converged", "unstable", "no gain"]

MAX_MOVEMENT = 0.05
"""Largest total variation between the averages of the last two quarters that still counts as settled."""
MAX_LOSS_RISE = 0.05
"""Largest relative rise of the target loss over its best stretch that still counts as stable."""
MIN_UPDATES = 40
"""Fewest updates of λ whose movement can be judged."""
RANGE_MARGIN = 0.9
"""Share of the reachable range of a logit beyond which the range, not the data, decides the weight."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step in figures; None for what its learner does not have, or was not measured at that step.

    Losses are in nats per token; `weights`, `weight_grads` (∂/∂p) and `gaps` (ℓ(w) − ℓ(u)) have one entry per domain.
    `tokens` and `seconds` count from the start; `compute_tokens` are this step's (see `learners.learner.StepResult`).
    """

    step: int
    weights: list[float]
    average_weights: list[float]
    weight_grads: list[float]
    gaps: list[float] | None
    val_loss: float | None
    aux_val_loss: float | None
    train_loss: float | None
    aux_train_loss: float | None
    distance: float | None
    grad_norm: float | None
    aux_grad_norm: float | None
    clipped: bool
    weight_grad_norm: float
    entropy: float
    tokens: int
    compute_tokens: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`status` for machines, `reason` for people: one sentence with the figure it rests on."""

    status: Status
    reason: str

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures over the whole run that the verdict rests on.

    `movement` is the total variation between the mean weights of the third and the last quarter of the steps in
    which λ moved, `num_updates` how often it moved, and `settling_updates` how often it has to, to forget where
    it started; `signal_to_noise` the norm of the mean gradient in p over the standard error of that mean in the last
    half; `logit_travel` the largest change of a logit; `reachable_range` the most it could have been. `compute_tokens`
    is what the steps took, measurements apart (see `learners.learner.StepResult`).
    """

    val_loss_first: float
    val_loss_last: float
    aux_val_loss_last: float | None
    distance_last: float | None
    movement: float
    signal_to_noise: float
    entropy: float
    clipped_share: float
    logit_travel: float
    reachable_range: float
    num_updates: int
    settling_updates: float
    compute_tokens: float


def summarize(
    records: Sequence[StepRecord],
    *,
    warmup_steps: int,
    num_updates: int,
    reachable_range: float,
    settling_updates: float = 0.0,
) -> Summary:
    """Figures of a finished run of at least one step.

    Args:
        records: of every step.
        warmup_steps: steps in which λ stood still.
        num_updates: how often λ moved after them.
        reachable_range: how far a logit could have travelled in those updates.
        settling_updates: updates that λ needs at least to forget where it started.
    """
    moving = [r for r in records if r.step >= warmup_steps] or list(records)
    weights_TD = np.array([r.weights for r in moving])
    val_loss_T = _known([r.val_loss for r in records])
    with np.errstate(divide="ignore"):
        start_D, end_D = np.log(records[0].weights), np.log(records[-1].weights)
    return Summary(
        val_loss_first=float(_head(val_loss_T).mean()),
        val_loss_last=float(_tail(val_loss_T).mean()),
        aux_val_loss_last=_last([r.aux_val_loss for r in records]),
        distance_last=_last([r.distance for r in records]),
        movement=_movement(weights_TD),
        signal_to_noise=_signal_to_noise(np.array([r.weight_grads for r in moving])),
        entropy=records[-1].entropy,
        clipped_share=float(np.mean([r.clipped for r in records])),
        logit_travel=float(np.abs((end_D - end_D.mean()) - (start_D - start_D.mean())).max()),
        reachable_range=reachable_range,
        num_updates=num_updates,
        settling_updates=max(settling_updates, MIN_UPDATES),
        compute_tokens=sum(r.compute_tokens for r in records),
    )


def judge(records: Sequence[StepRecord], summary: Summary) -> Verdict:
    """The verdict on a finished run; the gravest finding wins."""
    losses_T = _known([r.val_loss for r in records])
    if not np.isfinite(losses_T).all():
        return Verdict(status="unstable", reason="the target loss left the finite numbers")
    rise = _rise(losses_T)
    if rise > MAX_LOSS_RISE:
        return Verdict(
            status="unstable",
            reason=f"the target loss of w ended {rise:.0%} above its best stretch; lower the learning rate or penalty",
        )
    if summary.logit_travel > RANGE_MARGIN * summary.reachable_range:
        return Verdict(
            status="not converged",
            reason=f"a logit moved {summary.logit_travel:.2f} of the {summary.reachable_range:.2f} that so many steps "
            "of Adam can move it, so the range decides the weights; take more steps or a higher rate",
        )
    if summary.num_updates < summary.settling_updates:
        return Verdict(
            status="not converged",
            reason=f"the weights were updated {summary.num_updates} times, which is fewer than the "
            f"{summary.settling_updates:.0f} that they need to settle; take more steps",
        )
    if summary.movement > MAX_MOVEMENT:
        return Verdict(
            status="not converged",
            reason=f"the weights still moved by {summary.movement:.1%} between the last two quarters of the run "
            f"(settled is below {MAX_MOVEMENT:.0%}); take more steps",
        )
    return Verdict(
        status="converged",
        reason=f"the weights moved by {summary.movement:.1%} between the last two quarters of the run "
        f"(settled is below {MAX_MOVEMENT:.0%})",
    )


def entropy(weights_D: NDArray[np.float64]) -> float:
    """−Σ p·log p in nats, between 0 (one domain) and log D (uniform)."""
    positive = weights_D[weights_D > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0


def _movement(weights_TD: NDArray[np.float64]) -> float:
    quarter = max(1, len(weights_TD) // 4)
    last, before = weights_TD[-quarter:].mean(axis=0), weights_TD[-2 * quarter : -quarter]
    if not len(before):
        return math.inf
    return float(0.5 * np.abs(last - before.mean(axis=0)).sum())


def _signal_to_noise(grads_TD: NDArray[np.float64]) -> float:
    half = grads_TD[len(grads_TD) // 2 :]
    if len(half) < 2:
        return 0.0
    error_D = half.std(axis=0, ddof=1) / math.sqrt(len(half))
    noise = float(np.linalg.norm(error_D))
    return float(np.linalg.norm(half.mean(axis=0))) / noise if noise > 0 else math.inf


def _rise(losses_T: NDArray[np.float64]) -> float:
    window = max(1, len(losses_T) // 10)
    smooth = np.convolve(losses_T, np.full(window, 1 / window), mode="valid")
    return float(smooth[-1] / smooth.min() - 1) if smooth.min() > 0 else 0.0


def _known(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Those that were measured."""
    return np.array([value for value in values if value is not None])


def _head(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[: max(1, len(values) // 10)]


def _tail(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[-max(1, len(values) // 10) :]


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
