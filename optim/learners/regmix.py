"""RegMix: train small models on random mixtures, regress their loss on the mixture, take the best by the regression.

Pure functions; who trains the models is the caller's affair. Shapes: N mixtures, D domains. Source: arXiv 2407.01492
and its code (github.com/sail-sg/regmix), of which the constants are; its regression is LightGBM, or linear as here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TEMPERATURE = 0.5
"""Exponent of the prior around which mixtures are drawn: below 1 it gives rare domains more."""
_STRENGTHS = (0.1, 5.0)
"""Sums of the Dirichlet distribution's parameters: small ones give mixtures of few domains."""
_RIDGES = np.logspace(-6, 1, 15)

Array = NDArray[np.float64]


def random_mixtures(prior_D: Array, num_mixtures: int, *, seed: int) -> Array:
    """(N, D) mixtures around the prior, each summing to 1: Dirichlet with log-uniform strength, by the seed."""
    rng = np.random.default_rng([seed, num_mixtures])
    centre_D = prior_D**_TEMPERATURE / (prior_D**_TEMPERATURE).sum()
    strength_N = np.exp(rng.uniform(np.log(_STRENGTHS[0]), np.log(_STRENGTHS[1]), num_mixtures))
    # Gamma variates of tiny shape underflow to 0 in every domain at once; the logarithm of one does not:
    # log Γ(a) variate = log Γ(a + 1) variate + log(uniform)/a.
    shape_ND = strength_N[:, None] * centre_D
    log_ND = np.log(rng.gamma(shape_ND + 1)) + np.log(rng.uniform(size=shape_ND.shape)) / shape_ND
    weights_ND = np.exp(log_ND - log_ND.max(axis=1, keepdims=True))
    return np.asarray(weights_ND / weights_ND.sum(axis=1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Regression:
    """log loss ≈ intercept + ⟨coefficients, features(p)⟩; `error` is its root mean square on mixtures left out."""

    coefficients: Array
    intercept: float
    quadratic: bool
    error: float

    def predict(self, mixtures_ND: Array) -> Array:
        """Losses (N,) of mixtures."""
        return np.asarray(np.exp(self.intercept + features(mixtures_ND, quadratic=self.quadratic) @ self.coefficients))


def fit(mixtures_ND: Array, losses_N: Array) -> Regression:
    """The ridge regression of the log loss on the mixture that predicts left-out mixtures best.

    Linear or with products of two shares, and the ridge out of a grid, by the exact leave-one-out error.

    Raises:
        ValueError: fewer than 3 mixtures, or a loss that is not above 0.
    """
    if len(losses_N) < 3:
        raise ValueError(f"{len(losses_N)} mixtures are too few for a regression; it needs at least 3")
    if not (np.isfinite(losses_N).all() and (losses_N > 0).all()):
        raise ValueError(f"losses must be above 0 and finite, but there is {losses_N[~(losses_N > 0)][:1]}")
    candidates = [
        _ridge(mixtures_ND, np.log(losses_N), float(ridge), quadratic=quadratic)
        for quadratic in (False, True)
        for ridge in _RIDGES
    ]
    return min(candidates, key=lambda regression: regression.error)


def best_mixture(
    regression: Regression, prior_D: Array, *, seed: int, num_simulated: int = 100_000, num_averaged: int = 100
) -> Array:
    """The mean (D,) of the `num_averaged` mixtures of least predicted loss among `num_simulated` random ones."""
    simulated_ND = random_mixtures(prior_D, num_simulated, seed=seed)
    best = np.argsort(regression.predict(simulated_ND), kind="stable")[:num_averaged]
    return np.asarray(simulated_ND[best].mean(axis=0))


def features(mixtures_ND: Array, *, quadratic: bool) -> Array:
    """The shares themselves, (N, D), and with `quadratic` their products p_i·p_j, i ≤ j, too."""
    if not quadratic:
        return mixtures_ND
    first, second = np.triu_indices(mixtures_ND.shape[1])
    return np.concatenate([mixtures_ND, mixtures_ND[:, first] * mixtures_ND[:, second]], axis=1)


def _ridge(mixtures_ND: Array, values_N: Array, ridge: float, *, quadratic: bool) -> Regression:
    """Ridge regression with a free intercept; the leave-one-out residual is the residual over 1 − leverage."""
    inputs = features(mixtures_ND, quadratic=quadratic)
    centre, mean = inputs.mean(axis=0), float(values_N.mean())
    left, scale, right = np.linalg.svd(inputs - centre, full_matrices=False)
    shrunk = scale**2 / (scale**2 + ridge)
    projected = left.T @ (values_N - mean)
    residual_N = values_N - mean - left @ (shrunk * projected)
    leverage_N = 1 / len(values_N) + (left**2) @ shrunk
    left_out_N = residual_N / np.maximum(1 - leverage_N, 1e-9)
    coefficients = right.T @ (scale / (scale**2 + ridge) * projected)
    return Regression(
        coefficients=coefficients,
        intercept=mean - float(centre @ coefficients),
        quadratic=quadratic,
        error=float(np.sqrt(np.mean(left_out_N**2))),
    )
