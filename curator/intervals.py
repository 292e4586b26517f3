"""95 % intervals of mean token losses that were measured with several seeds on a sample of test rows.

Two things vary: the seed (initial weights and data order) and the rows that happen to be in the test part. Their
variances add up; the degrees of freedom are Welch and Satterthwaite's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval; NaN at both ends where one seed leaves it unknown."""

    mean: float
    low: float
    high: float


def mean_token_loss(loss_KN: Losses, tokens_N: NDArray[np.int64]) -> Estimate:
    """Mean token loss over seeds and rows; of a difference of losses, its mean.

    Args:
        loss_KN: summed token loss of each row by each seed's model, nats; or differences of such, row by row.
        tokens_N: target tokens of each row.
    """
    from scipy.stats import t

    num_seeds, num_rows = loss_KN.shape
    total = tokens_N.sum()
    by_seed = loss_KN.sum(axis=1) / total
    mean = float(by_seed.mean())
    if num_seeds < 2 or num_rows < 2:
        return Estimate(mean=mean, low=math.nan, high=math.nan)
    residual_N = loss_KN.mean(axis=0) - mean * tokens_N
    of_rows = num_rows / (num_rows - 1) * float((residual_N**2).sum()) / total**2
    of_seeds = float(by_seed.var(ddof=1)) / num_seeds
    variance = of_rows + of_seeds
    if variance == 0:
        return Estimate(mean=mean, low=mean, high=mean)
    freedom = variance**2 / (of_rows**2 / (num_rows - 1) + of_seeds**2 / (num_seeds - 1))
    margin = float(t.ppf(0.5 + LEVEL / 2, freedom)) * math.sqrt(variance)
    return Estimate(mean=mean, low=mean - margin, high=mean + margin)
