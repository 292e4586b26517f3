"""Ridge regression in closed form, its penalty by generalised cross-validation, and agreement of ranks.

Weighted by w_i, with X the rows times √w_i and y likewise:

    β = (XᵀX + λI)⁻¹ Xᵀy = Xᵀ(XXᵀ + λI)⁻¹ y,      GCV(λ) = (‖y − Xβ‖²/R) / (1 − tr H/R)²,   H = X(XᵀX + λI)⁻¹Xᵀ

by one eigendecomposition of the smaller of the two Gram matrices for all λ. Shapes: R rows, F features.

Source: Golub, Heath & Wahba 1979, Technometrics 21 (GCV); Bonett & Wright 2000, Psychometrika 65 (interval of ranks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTIES = tuple(10.0**power for power in range(-4, 4))
"""λ, as multiples of the mean eigenvalue that is not 0."""
_NORMAL = 1.959964
"""Standard errors from the middle of a 95 % interval to its end."""


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Coefficients (F,), and what generalised cross-validation makes of them: a mean squared error."""

    coefficient_F: Floats
    penalty: float
    error: float


def ridge(feature_RF: Floats, value_R: Floats, weight_R: Floats, penalties: Sequence[float] = PENALTIES) -> Ridge:
    """The fit whose penalty has the least error by generalised cross-validation; no intercept.

    Args:
        feature_RF: centred.
        value_R: centred.
        weight_R: reciprocals of the values' variances up to a factor, positive.
        penalties: multiples of the mean eigenvalue, positive.
    """
    root_R = np.sqrt(weight_R / weight_R.mean())
    x_RF, y_R = feature_RF * root_R[:, None], value_R * root_R
    num_rows, num_features = x_RF.shape
    is_tall = num_features <= num_rows
    eigen, vectors = np.linalg.eigh(x_RF.T @ x_RF if is_tall else x_RF @ x_RF.T)
    eigen = np.maximum(eigen, 0)
    scale = eigen.sum() / len(eigen) or 1.0
    along = vectors.T @ (x_RF.T @ y_R if is_tall else y_R)
    fits = []
    for multiple in penalties:
        penalty = multiple * scale
        solved = vectors @ (along / (eigen + penalty))
        coefficient_F = solved if is_tall else x_RF.T @ solved
        error = float(np.mean((y_R - x_RF @ coefficient_F) ** 2))
        freedom = 1 - float(np.sum(eigen / (eigen + penalty))) / num_rows
        fits.append(Ridge(coefficient_F=coefficient_F, penalty=penalty, error=error / freedom**2))
    return min(fits, key=lambda fit: fit.error)


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """Spearman's correlation with its 95 % interval, by Fisher's transformation."""

    value: float
    low: float
    high: float


def rank_agreement(first_R: Floats, second_R: Floats) -> RankAgreement:
    """How alike two orders of the same rows are; of fewer than five rows, or values without order, nothing is known."""
    num_rows = len(first_R)
    rank_R, other_R = _ranks(first_R), _ranks(second_R)
    if num_rows < 5 or np.ptp(rank_R) == 0 or np.ptp(other_R) == 0:
        return RankAgreement(value=0.0, low=-1.0, high=1.0)
    value = float(np.corrcoef(rank_R, other_R)[0, 1])
    middle = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
    margin = _NORMAL * math.sqrt((1 + value**2 / 2) / (num_rows - 3))
    return RankAgreement(value=value, low=math.tanh(middle - margin), high=math.tanh(middle + margin))


def _ranks(value_R: Floats) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place_R, count = np.unique(value_R, return_inverse=True, return_counts=True)
    rank: Floats = np.cumsum(count) - (count - 1) / 2
    return rank[place_R]
