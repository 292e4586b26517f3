"""DSIR: weigh a domain by the rows that importance resampling would take from it. Source: arXiv 2302.03169.

A row is a bag of hashed n-grams; its importance is how much likelier the target's n-gram distribution makes it than the
lake's. Rows are resampled without replacement (Gumbel top-k), and a domain's weight is its share of their tokens. Pure
functions. Shapes: N rows, D domains, M buckets, G n-grams of all rows together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_BUCKETS = 10_000
"""As in the paper."""

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def bucket_counts(bucket_G: Indices) -> Indices:
    """How often each bucket occurs, (M,)."""
    return np.bincount(bucket_G, minlength=NUM_BUCKETS)


def log_ratios(target_counts_M: Indices, raw_counts_M: Indices) -> Array:
    """log of target over raw probability of each bucket, (M,); a count of 1 is added to all, so that none is 0."""

    def log_probabilities(counts_M: Indices) -> Array:
        return np.asarray(np.log((counts_M + 1) / (counts_M.sum() + len(counts_M))))

    return log_probabilities(target_counts_M) - log_probabilities(raw_counts_M)


def log_importance(bucket_G: Indices, row_G: Indices, num_rows: int, log_ratio_M: Array) -> Array:
    """log p(row | target) − log p(row | raw) of each row, (N,): the sum over its n-grams."""
    return np.asarray(np.bincount(row_G, weights=log_ratio_M[bucket_G], minlength=num_rows), dtype=np.float64)


def resampled_shares(
    log_importance_N: Array, domain_N: Indices, tokens_N: Indices, num_domains: int, *, num_rows: int, seed: int
) -> Array:
    """Each domain's share (D,) of the tokens of `num_rows` rows drawn by importance without replacement.

    The rows of largest log importance plus standard Gumbel noise are such a draw.
    """
    noise_N = np.random.default_rng(seed).gumbel(size=len(log_importance_N))
    drawn = np.argsort(-(log_importance_N + noise_N), kind="stable")[:num_rows]
    tokens_D = np.bincount(domain_N[drawn], weights=tokens_N[drawn], minlength=num_domains)
    return np.asarray(tokens_D / tokens_D.sum())
