"""What a run says about itself: the figures of every step, and a verdict in words.

The method has three failure signatures: it has not converged, it is unstable, or it brings no gain. The first two
are told here from the run's own records. Of the third a run can tell one case: nothing but noise moved its weights.
That weights which something moved bring a gain takes a model retrained on them.

Shapes: T steps, D domains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Status = Literal["converged", "not converged", "unstable", "no gain"]

MAX_MOVEMENT = 0.05
"""Largest total variation between the averages of the last two quarters that still counts as settled."""
MAX_UNCERTAINTY = 0.1
"""Largest expected total variation between reported and noise-free weights that still counts as settled."""
MAX_LOSS_RISE = 0.05
"""Largest relative rise of the target loss over its best stretch that still counts as stable."""
MAX_SHARE_UNDER_WAY = 0.2
"""Largest share of the whole way that it may be: .29 at constant speed, .2 after 1.5 time constants of settling."""
MAX_SWING = 0.15
"""Largest mean total variation of the averaged iterates about their linear trend that still counts as stable."""
CHANCE = 0.05
"""Share of runs without any signal whose `signal_to_noise` may exceed `chance_signal`."""
INTERVAL_LEVEL = 0.95
"""Nominal coverage of `ci_low` … `ci_high`."""
_LEAST_STRETCH = 3
"""Measured target losses in a tenth of a run from which on their noise is known well enough to speak of a rise."""
RISE_ERRORS = 4.0
"""A rise of the target loss counts if it is also this many standard errors of the difference of the two stretches."""
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

    Figures `…_first` and `…_last` are means over the first and last tenth of the steps, or the last that was
    measured; `train_gap_last` is L2(w) − L2(u).

    `movement` is the total variation between the mean weights of the third and the last quarter of the steps in which
    λ moved, `travel` that between the start and the last quarter, `swing` the mean total variation of the iterates of
    the later half about their linear trend. `uncertainty` is the expected total variation between the reported weights
    and those that the same gradients without noise would give; None unless they are the prior tilted by their mean.
    `num_updates` says how often λ moved, `settling_updates` how often it has to, to forget where it started.
    `logit_travel` is the largest change of a logit, `reachable_range` the most it could be.

    `signal_to_noise` is the largest mean gradient in p (of ScaleBiO α times the gap), relative to the domains' mean,
    over its standard error (see `signal`), and `chance_signal` what it exceeds by chance in `CHANCE` of the runs.
    `displacement` is the largest distance of a reported weight (dual averaging: of its logit) from where it started,
    over the half-width of intervals that hold for all domains at once: at most 1 by chance in all but `CHANCE` of the
    runs.

    Of each domain: `ci_low` … `ci_high`, the interval of its reported weight (see `weight_intervals` and
    `tilt_intervals`; None for weights that were not learned), and `tokens`, its target tokens that the run drew.
    `compute_tokens` is what the steps took, measurements apart (see `learners.learner.StepResult`).
    """

    val_loss_first: float
    val_loss_last: float
    aux_val_loss_last: float | None
    distance_last: float | None
    train_gap_last: float | None
    weight_grad_norm_last: float
    movement: float
    travel: float
    swing: float
    uncertainty: float | None = None
    signal_to_noise: float
    chance_signal: float
    displacement: float
    entropy: float
    clipped_share: float
    logit_travel: float
    reachable_range: float
    num_updates: int
    settling_updates: float
    compute_tokens: float
    ci_low: list[float] | None
    ci_high: list[float] | None
    tokens: list[float]


def summarize(
    records: Sequence[StepRecord],
    *,
    warmup_steps: int,
    num_averaged: int,
    num_updates: int,
    reachable_range: float,
    tokens: list[float],
    settling_updates: float = 0.0,
    tilt: float | None = None,
) -> Summary:
    """Figures of a finished run of at least one step.

    Args:
        records: of every step.
        warmup_steps: steps in which λ stood still.
        num_averaged: last steps whose weights were averaged into the reported ones.
        num_updates: how often λ moved after the warm-up.
        reachable_range: how far a logit could have travelled in those updates.
        tokens: target tokens that were drawn from each domain.
        settling_updates: updates that λ needs at least to forget where it started.
        tilt: what the mean gradient in p since the warm-up times −1 was multiplied by to move the logits; None: they
            were moved otherwise, and the reported weights are the average of the last `num_averaged`.
    """
    moving = [r for r in records if r.step >= warmup_steps] or list(records)
    weights_TD = np.array([r.weights for r in moving])
    averaged_TD = np.array([r.weights for r in records[-max(1, num_averaged) :]])
    val_loss_T = _known([r.val_loss for r in records])
    grads_TD = np.array([r.weight_grads for r in moving])
    found, by_chance = signal(grads_TD)
    if tilt is None:
        uncertainty = None
        low_D, high_D = weight_intervals(averaged_TD)
        displacement = _displacement(averaged_TD, np.array(records[0].weights))
    else:
        uncertainty = _uncertainty(weights_TD[-1], grads_TD, tilt)
        low_D, high_D = tilt_intervals(weights_TD[-1], grads_TD, tilt)
        displacement = _displacement(_relative(grads_TD), np.zeros(grads_TD.shape[1]))
    if grads_TD.shape[1] == 1:  # a single domain has all the weight, whatever its gradients are
        uncertainty, low_D, high_D = None if tilt is None else 0.0, np.ones(1), np.ones(1)
    # A weight that has run below the smallest float64 is 0, and its logit's travel at least this.
    start_D, end_D = (np.log(np.maximum(r.weights, np.finfo(np.float64).tiny)) for r in (records[0], records[-1]))
    return Summary(
        val_loss_first=float(_head(val_loss_T).mean()),
        val_loss_last=float(_tail(val_loss_T).mean()),
        aux_val_loss_last=_last([r.aux_val_loss for r in records]),
        distance_last=_last([r.distance for r in records]),
        train_gap_last=_train_gap(records),
        weight_grad_norm_last=float(_tail(np.array([r.weight_grad_norm for r in records])).mean()),
        movement=_movement(weights_TD),
        travel=0.5 * float(np.abs(_tail(weights_TD, 4).mean(axis=0) - np.array(records[0].weights)).sum()),
        swing=_swing(weights_TD[len(weights_TD) // 2 :]),
        uncertainty=uncertainty,
        signal_to_noise=found,
        chance_signal=by_chance,
        displacement=displacement,
        entropy=records[-1].entropy,
        clipped_share=float(np.mean([r.clipped for r in records])),
        logit_travel=float(np.abs((end_D - end_D.mean()) - (start_D - start_D.mean())).max()),
        reachable_range=reachable_range,
        num_updates=num_updates,
        settling_updates=max(settling_updates, MIN_UPDATES),
        compute_tokens=sum(r.compute_tokens for r in records),
        ci_low=low_D.tolist(),
        ci_high=high_D.tolist(),
        tokens=tokens,
    )


def judge(records: Sequence[StepRecord], summary: Summary) -> Verdict:
    """The verdict on a finished run; the gravest finding wins."""
    losses_T = _known([r.val_loss for r in records])
    if not np.isfinite(losses_T).all():
        return Verdict(status="unstable", reason="the target loss left the finite numbers")
    if summary.swing > MAX_SWING and summary.num_updates >= MIN_UPDATES:
        return Verdict(
            status="unstable",
            reason=f"the weights swing by {summary.swing:.0%} about their trend (stable is below {MAX_SWING:.0%}), so "
            "their average says little; lower the learning rate of the data weights, or the penalty",
        )
    rise = _rise(losses_T)
    if rise > MAX_LOSS_RISE:
        return Verdict(
            status="unstable",
            reason=f"the target loss of w ended {rise:.0%} above its best stretch; lower the learning rate or penalty",
        )
    if summary.num_updates < summary.settling_updates:
        return Verdict(
            status="not converged",
            reason=f"the weights were updated {summary.num_updates} times, which is fewer than the "
            f"{summary.settling_updates:.0f} that they need to settle; take more steps",
        )
    if summary.signal_to_noise < summary.chance_signal and summary.displacement <= 1:
        return Verdict(
            status="no gain",
            reason="no domain's gap differs from the others' by more than noise (signal-to-noise "
            f"{summary.signal_to_noise:.1f}, by chance up to {summary.chance_signal:.1f}), and the weights left their "
            "start by no more than noise: nothing says that others would help; take more rows or steps, or another "
            "target",
        )
    if summary.logit_travel > RANGE_MARGIN * summary.reachable_range:
        return Verdict(
            status="not converged",
            reason=f"a logit moved {summary.logit_travel:.2f} of the {summary.reachable_range:.2f} that so many steps "
            "of Adam can move it, so the range decides the weights; take more steps or a higher rate",
        )
    if summary.uncertainty is not None:
        return _of_a_tilt(summary.uncertainty)
    if summary.movement > MAX_MOVEMENT:
        return Verdict(
            status="not converged",
            reason=f"the weights still moved by {summary.movement:.1%} between the last two quarters of the run "
            f"(settled is below {MAX_MOVEMENT:.0%}); take more steps",
        )
    if summary.displacement > 1 and summary.movement > MAX_SHARE_UNDER_WAY * summary.travel:
        return Verdict(
            status="not converged",
            reason=f"the weights moved by {summary.movement:.1%} between the last two quarters of the run, "
            f"{summary.movement / summary.travel:.0%} of all their way from the start (settled is below "
            f"{MAX_SHARE_UNDER_WAY:.0%}); take more steps, or a higher learning rate of the data weights",
        )
    return Verdict(
        status="converged",
        reason=f"the weights moved by {summary.movement:.1%} between the last two quarters of the run "
        f"(settled is below {MAX_MOVEMENT:.0%})",
    )


def _of_a_tilt(uncertainty: float) -> Verdict:
    """The mean of gradients does not settle where they change with training; it is known well, or it is not."""
    said = (
        f"noise of the draws leaves the weights uncertain by {uncertainty:.1%} (settled is below {MAX_UNCERTAINTY:.0%})"
    )
    if uncertainty > MAX_UNCERTAINTY:
        return Verdict(status="not converged", reason=f"{said}; take more steps or rows")
    return Verdict(status="converged", reason=said)


def entropy(weights_D: Floats) -> float:
    """−Σ p·log p in nats, between 0 (one domain) and log D (uniform)."""
    positive = weights_D[weights_D > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0


def weight_intervals(weights_TD: Floats) -> tuple[Floats, Floats]:
    """(D,) lower and upper ends of the reported weights, the means of these iterates, at `INTERVAL_LEVEL`.

    They cover what the draws of this run's steps leave open, provided that its iterates fluctuate about a fixed point
    as a first-order autoregression does. They do not cover other seeds, models or samples of the target. Where the
    weights remember so much that the run is worth one or two independent observations, they are wide.
    """
    mean_D, margin_D = weights_TD.mean(axis=0), _half_width(weights_TD, INTERVAL_LEVEL)
    return np.clip(mean_D - margin_D, 0, 1), np.clip(mean_D + margin_D, 0, 1)


def tilt_intervals(weights_D: Floats, grads_TD: Floats, tilt: float) -> tuple[Floats, Floats]:
    """(D,) ends of weights whose logits are the prior's minus `tilt` times the mean of these gradients.

    At `INTERVAL_LEVEL`, by the delta method on the log-odds of a domain against all others, which move by `tilt` times
    the difference of their mean gradients. They cover what the draws of this run's steps leave open, not other seeds,
    models or samples of the target.
    """
    from scipy.special import expit, logit

    share_D, against_rest_TD = _against_rest(weights_D, grads_TD)
    margin_D = tilt * _half_width(against_rest_TD, INTERVAL_LEVEL)
    return expit(logit(share_D) - margin_D), expit(logit(share_D) + margin_D)


def _uncertainty(weights_D: Floats, grads_TD: Floats, tilt: float) -> float:
    """Expected ½·Σ|p − p̂|, by the delta method and a normal distribution, whose mean deviation is √(2/π) errors."""
    share_D, against_rest_TD = _against_rest(weights_D, grads_TD)
    error_D, _ = _error_of_mean(against_rest_TD)
    return float(0.5 * math.sqrt(2 / math.pi) * tilt * (share_D * (1 - share_D) * error_D).sum())


def _against_rest(weights_D: Floats, grads_TD: Floats) -> tuple[Floats, Floats]:
    """The weights kept inside (0, 1), and each domain's gradient less the mean of the others, weighted by them."""
    share_D = np.clip(weights_D, np.finfo(float).tiny, 1 - np.finfo(float).eps)
    return share_D, (grads_TD - grads_TD @ share_D[:, None]) / (1 - share_D)


def signal(grads_TD: Floats) -> tuple[float, float]:
    """The largest mean gradient in p over its standard error, and what it exceeds by chance in `CHANCE` of the runs.

    Only differences between domains move p, so the gradients are taken relative to their mean over the domains. Where
    the weights settle they go to 0, so the first quarter and the first half are looked at as well as the whole. Chance
    is Bonferroni's bound over all that is looked at.
    """
    from scipy.special import ndtri

    relative_TD = _relative(grads_TD)
    parts = [relative_TD[: len(relative_TD) // share] for share in (1, 2, 4)]
    ratios = []
    for part_TD in parts:
        if len(part_TD) > 1:
            error_D, _ = _error_of_mean(part_TD)
            mean_D = np.abs(part_TD.mean(axis=0))
            ratios.append(np.divide(mean_D, error_D, out=np.where(mean_D > 0, np.inf, 0.0), where=error_D > 0))
    by_chance = float(-ndtri(CHANCE / (2 * len(parts) * grads_TD.shape[1])))
    return float(np.max(ratios, initial=0.0)), by_chance


def _relative(grads_TD: Floats) -> Floats:
    """The gradients relative to their mean over the domains: only differences move p."""
    relative_TD: Floats = grads_TD - grads_TD.mean(axis=1, keepdims=True)
    return relative_TD


def _half_width(values_TD: Floats, level: float) -> Floats:
    """(D,) half-widths of Student's intervals of the means; never fewer than 2 degrees of freedom."""
    from scipy.special import stdtrit

    error_D, num_independent_D = _error_of_mean(values_TD)
    width_D: Floats = stdtrit(np.maximum(num_independent_D - 1, 2), 0.5 + level / 2) * error_D
    return width_D


def _displacement(weights_TD: Floats, start_D: Floats) -> float:
    width_D = _half_width(weights_TD, 1 - CHANCE / len(start_D))
    away_D = np.abs(weights_TD.mean(axis=0) - start_D)
    return float(np.divide(away_D, width_D, out=np.where(away_D > 0, np.inf, 0.0), where=width_D > 0).max())


def _error_of_mean(values_TD: Floats) -> tuple[Floats, Floats]:
    """(D,) standard errors of the means of first-order autoregressions, and the independent values that T are worth.

    The autocorrelation φ is Kendall's (1954) estimate, whose bias in short series is corrected, at most 1 − 1/T.
    """
    num = len(values_TD)
    if num < 2:
        return np.full(values_TD.shape[1], np.inf), np.ones(values_TD.shape[1])
    away_TD = values_TD - values_TD.mean(axis=0)
    square_D = (away_TD[:-1] ** 2).sum(axis=0)
    phi_D = np.divide(
        (away_TD[1:] * away_TD[:-1]).sum(axis=0), square_D, out=np.zeros_like(square_D), where=square_D > 0
    )
    phi_D = np.clip(phi_D + (1 + 3 * phi_D) / num, 0, 1 - 1 / num)
    variance_D = (away_TD[1:] - phi_D * away_TD[:-1]).var(axis=0) / (1 - phi_D**2)
    share_D = (1 + phi_D) / (1 - phi_D) - 2 * phi_D / num * (1 - phi_D**num) / (1 - phi_D) ** 2
    return np.sqrt(variance_D * share_D / num), num / share_D


def _swing(weights_TD: Floats) -> float:
    """Mean total variation of the weights about the straight line through each domain's."""
    if len(weights_TD) < 3:
        return 0.0
    line_T2 = np.vander(np.linspace(-1, 1, len(weights_TD)), 2)
    trend_TD = line_T2 @ np.linalg.lstsq(line_T2, weights_TD, rcond=None)[0]
    return float(0.5 * np.abs(weights_TD - trend_TD).sum(axis=1).mean())


def _movement(weights_TD: Floats) -> float:
    quarter = max(1, len(weights_TD) // 4)
    last, before = weights_TD[-quarter:].mean(axis=0), weights_TD[-2 * quarter : -quarter]
    if not len(before):
        return math.inf
    return float(0.5 * np.abs(last - before.mean(axis=0)).sum())


def _rise(losses_T: Floats) -> float:
    """Relative rise of the last stretch's mean over the best stretch's; 0 if the noise of the steps explains it.

    Stretches too short to show their noise say nothing.
    """
    window = len(losses_T) // 10
    if window < _LEAST_STRETCH:
        return 0.0
    smooth = np.convolve(losses_T, np.full(window, 1 / window), mode="valid")
    best = int(smooth.argmin())
    error = math.sqrt((losses_T[-window:].var(ddof=1) + losses_T[best : best + window].var(ddof=1)) / window)
    rise = float(smooth[-1] - smooth[best])
    return rise / float(smooth[best]) if rise > RISE_ERRORS * error and smooth[best] > 0 else 0.0


def _train_gap(records: Sequence[StepRecord]) -> float | None:
    """L2(w) − L2(u) in the last tenth of the steps that have both."""
    gaps = [
        r.train_loss - r.aux_train_loss for r in records if r.train_loss is not None and r.aux_train_loss is not None
    ]
    return float(_tail(np.array(gaps)).mean()) if gaps else None


def _known(values: Sequence[float | None]) -> Floats:
    """Those that were measured."""
    return np.array([value for value in values if value is not None])


def _head(values: Floats) -> Floats:
    return values[: max(1, len(values) // 10)]


def _tail(values: Floats, share: int = 10) -> Floats:
    return values[-max(1, len(values) // share) :]


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
