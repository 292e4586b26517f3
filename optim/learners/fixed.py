"""Mixtures that nobody has to learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform(num_domains: int) -> NDArray[np.float64]:
    """Every domain alike, (D,)."""
    return np.full(num_domains, 1 / num_domains)


def proportional(tokens_D: NDArray[np.int64]) -> NDArray[np.float64]:
    """Every domain by its tokens, (D,): what a model sees that trains on all rows alike."""
    return np.asarray(tokens_D / tokens_D.sum(), dtype=np.float64)
