"""Mixtures that nobody has to learn, and the floor under one that was found all at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform(num_domains: int) -> NDArray[np.float64]:
    """Every domain alike, (D,)."""
    return np.full(num_domains, 1 / num_domains)


def proportional(tokens_D: NDArray[np.int64]) -> NDArray[np.float64]:
    """Every domain by its tokens, (D,): what a model sees that trains on all rows alike."""
    return np.asarray(tokens_D / tokens_D.sum(), dtype=np.float64)


def with_floor(weights_D: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """floor + (1 − D·floor)·p, (D,): at least `floor` each, sums to 1 if p does."""
    return np.asarray(floor + (1 - len(weights_D) * floor) * weights_D)
