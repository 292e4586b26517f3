"""Domain weights on the simplex: logits ↔ weights, and the optimizers that move them. Pure functions, float64.

λ has its own optimizer and never any weight decay. Shapes: D domains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from optim.objective import logit_grad

SHRINKAGE = 25
"""Gradients that dual averaging starts from: of 0, or those that would have tilted the prior to where it starts."""
_LEAST_ABOVE_FLOOR = 1e-3
"""Of its share in the prior, what a weight has above the floor at the start: at 0 no gradient would move it."""
_ROUNDING = 1e-9
"""By which caps that leave no more than one mixture may miss a sum of 1."""


@dataclass(frozen=True, kw_only=True)
class DataWeightSettings:
    """How λ moves.

    `optimizer`: `unscaled_eg`, exponentiated gradient (mirror descent on the simplex: λ ← λ − lr·g_p); `eg`, the same
    in units of the usual gradient, the root mean square over domains and updates so far; `dual_averaging`, the prior
    tilted by the mean of all gradients so far in the same units (λ ← log(prior) − lr·ḡ_p/σ); or `adam` on the logits
    (what the ScaleBiO paper uses). `prior_pull` in [0, 1) is the share of λ − log(prior) that every update takes
    away, a KL proximal term. `floor` is the least weight a domain can have; D·floor < 1.
    """

    optimizer: Literal["unscaled_eg", "eg", "dual_averaging", "adam"] = "unscaled_eg"
    learning_rate: float = 0.1
    prior_pull: float = 0.0
    floor: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} of the data weights must be above 0")
        if not 0 <= self.prior_pull < 1:
            raise ValueError(f"prior_pull={self.prior_pull} must lie in [0, 1)")
        if self.floor < 0:
            raise ValueError(f"floor={self.floor} must not be negative")


@dataclass(frozen=True, kw_only=True)
class DataWeightState:
    """λ and what its optimizer remembers; each tensor is (D,) float64. `start_D` is λ − log(prior) at the start."""

    logits_D: Tensor
    first_D: Tensor
    second_D: Tensor
    start_D: Tensor
    num_updates: int


def initial_state(prior_D: Tensor, start_D: Tensor | None = None, *, floor: float = 0.0) -> DataWeightState:
    """λ = log(prior), so that the weights start at the prior; or as they are to be for the weights `start_D`.

    Those include the floor, above which they have to lie; what does not is lifted to just above it.
    """
    zeros_D = torch.zeros_like(prior_D, dtype=torch.float64)
    logits_D = prior_D.double().log()
    if start_D is not None:
        above_D = (start_D.double() - floor).clamp_min(_LEAST_ABOVE_FLOOR * prior_D.double())
        logits_D = (above_D / above_D.sum()).log()
    return DataWeightState(
        logits_D=logits_D,
        first_D=zeros_D,
        second_D=zeros_D.clone(),
        start_D=logits_D - prior_D.double().log(),
        num_updates=0,
    )


def weights(logits_D: Tensor, floor: float = 0.0) -> Tensor:
    """p = floor + (1 − D·floor)·softmax(λ), (D,), at least `floor` each, sums to 1."""
    return floor + (1.0 - logits_D.numel() * floor) * torch.softmax(logits_D, dim=0)


def on_path(prior_D: Tensor, weights_D: Tensor, place: float) -> Tensor:
    """p ∝ prior^(1 − s)·weights^s, (D,): the straight line of logits from the prior (s = 0) through the weights (1)."""
    logits_D = (1 - place) * prior_D.double().log() + place * weights_D.double().log()
    return torch.softmax(logits_D, dim=0)


def capped(weights_D: Tensor, cap_D: Tensor) -> Tensor:
    """The mixture nearest to p (in KL divergence) with no share above its cap, (D,): the rest is scaled up alike.

    Raises:
        ValueError: the caps add up to less than 1.
    """
    if float(cap_D.sum()) < 1 - _ROUNDING:
        raise ValueError(f"the caps add up to {float(cap_D.sum()):.3f}, which leaves a part of the mixture empty")
    result_D, full_D = weights_D.double(), torch.zeros_like(weights_D, dtype=torch.bool)
    while bool((result_D > cap_D * (1 + 1e-12)).any()):
        full_D = full_D | (result_D >= cap_D)
        rest = weights_D[~full_D].sum().clamp_min(torch.finfo(torch.float64).tiny)
        scaled_D = weights_D.double() * (1 - cap_D[full_D].sum()).clamp_min(0) / rest
        result_D = torch.where(full_D, cap_D.double(), scaled_D)
    return result_D


def update(
    state: DataWeightState, weight_grad_D: Tensor, prior_D: Tensor, settings: DataWeightSettings
) -> DataWeightState:
    """One descent step of λ along `weight_grad_D`, the gradient in p; returns the new state, centred logits."""
    moved = _MOVES[settings.optimizer](state, weight_grad_D.double(), prior_D, settings)
    pull = settings.prior_pull
    logits_D = (1 - pull) * moved.logits_D + pull * prior_D.double().log()
    return replace(moved, logits_D=logits_D - logits_D.logsumexp(0), num_updates=state.num_updates + 1)


def reachable_logit_range(settings: DataWeightSettings, num_updates: int) -> float:
    """How far one logit can travel at most in `num_updates` steps; Adam's steps are bounded by its learning rate.

    `inf` for exponentiated gradient, whose steps grow with the gradient.
    """
    return settings.learning_rate * num_updates if settings.optimizer == "adam" else math.inf


def tilt(settings: DataWeightSettings, state: DataWeightState) -> float | None:
    """What the mean gradient is multiplied by in the logits; None unless they are the prior's tilted by it."""
    if settings.optimizer != "dual_averaging":
        return None
    age = state.num_updates
    sigma = state.second_D.mean().sqrt().clamp_min(settings.eps)
    return (1 - settings.prior_pull) * settings.learning_rate * age / (age + SHRINKAGE) / float(sigma)


def settling_updates(settings: DataWeightSettings) -> float:
    """Updates after which 1 − e⁻² of the way to where gradient and pull balance is done; 0 without a pull."""
    return 2.0 / settings.prior_pull if settings.prior_pull else 0.0


def _exponentiated(
    state: DataWeightState,
    grad_D: Tensor,
    _: Tensor,
    settings: DataWeightSettings,
) -> DataWeightState:
    """Kivinen & Warmuth 1997: p ∝ p·exp(−lr·g)."""
    return replace(state, logits_D=state.logits_D - settings.learning_rate * grad_D)


def _scaled(state: DataWeightState, grad_D: Tensor, _: Tensor, settings: DataWeightSettings) -> DataWeightState:
    """p ∝ p·exp(−lr·g/σ), σ² the mean of (g_d − ḡ)² over domains and updates so far.

    The scale of AdaGrad-Norm (arXiv 1806.01811) with the mean in place of the sum: steps shrink as the gradient does,
    and a gradient of mere noise moves λ by lr·√updates at most, whatever its size.
    """
    centred_D = grad_D - grad_D.mean()
    age = state.num_updates + 1
    second_D = state.second_D + (centred_D.square().mean() - state.second_D) / age
    step_D = centred_D / second_D.sqrt().clamp_min(settings.eps)
    return replace(state, logits_D=state.logits_D - settings.learning_rate * step_D, second_D=second_D)


def _dual_averaging(
    state: DataWeightState, grad_D: Tensor, prior_D: Tensor, settings: DataWeightSettings
) -> DataWeightState:
    """λ = log(prior) − lr·Σg/((k + k₀)·σ) after k gradients, relative to their mean over the domains.

    Nesterov's dual averaging (2009; Xiao 2010 with a regularizer, here KL(p‖prior)/lr): every gradient counts alike,
    whenever it was seen. σ as in `eg`, so mere noise tilts the prior by lr/√k. The k₀ = `SHRINKAGE` gradients
    of 0 keep the first few looks from deciding what the next ones see. Where the weights start elsewhere, at λ₀, the
    k₀ gradients are those that lead there: k₀/(k + k₀)·(λ₀ − log(prior)) is left of it, 8 % after 300.
    """
    centred_D = grad_D - grad_D.mean()
    age = state.num_updates + 1
    first_D = state.first_D + (centred_D - state.first_D) / age
    second_D = state.second_D + (centred_D.square().mean() - state.second_D) / age
    tilt_D = age / (age + SHRINKAGE) * first_D / second_D.sqrt().clamp_min(settings.eps)
    start_D = SHRINKAGE / (age + SHRINKAGE) * state.start_D
    logits_D = prior_D.double().log() + start_D - settings.learning_rate * tilt_D
    return replace(state, logits_D=logits_D, first_D=first_D, second_D=second_D)


def _adam(state: DataWeightState, grad_D: Tensor, _: Tensor, settings: DataWeightSettings) -> DataWeightState:
    """Adam (arXiv 1412.6980) on the logits, without weight decay."""
    beta1, beta2 = settings.betas
    age = state.num_updates + 1
    grad_D = logit_grad(grad_D, torch.softmax(state.logits_D, 0), settings.floor)
    first_D = beta1 * state.first_D + (1 - beta1) * grad_D
    second_D = beta2 * state.second_D + (1 - beta2) * grad_D**2
    scaled_D = first_D / (1 - beta1**age) / ((second_D / (1 - beta2**age)).sqrt() + settings.eps)
    return replace(
        state, logits_D=state.logits_D - settings.learning_rate * scaled_D, first_D=first_D, second_D=second_D
    )


_MOVES: Mapping[str, Callable[[DataWeightState, Tensor, Tensor, DataWeightSettings], DataWeightState]] = {
    "unscaled_eg": _exponentiated,
    "eg": _scaled,
    "dual_averaging": _dual_averaging,
    "adam": _adam,
}
