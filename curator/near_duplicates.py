"""Rows that say nearly the same, by MinHash (Broder 1997, `datasketch`) over the n-grams of their tokens.

They should weigh the same: what sets them apart is noise. Row by row, one joins the cluster whose first row it is most
like, if the Jaccard similarity of their sets of n-grams is estimated to be at least what is asked, and begins a cluster
else. Only first rows are looked up, so a family of thousands costs no more than its rows. Candidates come from
locality-sensitive hashing: a pair near the bound is missed now and then.
"""

from __future__ import annotations

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from curator.tokens import TokenCache

NGRAM = 5
"""Tokens of an n-gram; a row with fewer is one n-gram."""
_NUM_HASHES = 128  # the estimate's standard error is below 1/(2·√128) = .045
_SEED = 1

Indices = NDArray[np.int64]


def clusters(cache: TokenCache, places: Indices, similarity: float) -> Indices:
    """The cluster of each of the rows at `places`, (R,), numbered from 0; a row like no other is alone in its own.

    Args:
        cache: the tokens of rows.
        places: of R rows.
        similarity: the least Jaccard similarity to the first row of a cluster, in (0, 1].
    """
    index = MinHashLSH(threshold=similarity, num_perm=_NUM_HASHES)
    empty = MinHash(num_perm=_NUM_HASHES, seed=_SEED, hashfunc=int)
    first_rows: list[MinHash] = []
    cluster_R = np.empty(len(places), dtype=np.int64)
    for row, place in enumerate(places):
        sketch = empty.copy()
        sketch.update_batch(_ngrams(cache, int(place)))
        alike = {cluster: sketch.jaccard(first_rows[cluster]) for cluster in sorted(index.query(sketch))}
        best = max(alike, key=alike.__getitem__, default=None)
        if best is None or alike[best] < similarity:
            best = len(first_rows)
            first_rows.append(sketch)
            index.insert(best, sketch, check_duplication=False)
        cluster_R[row] = best
    return cluster_R


def _ngrams(cache: TokenCache, place: int) -> NDArray[np.uint64]:
    """32-bit hashes of the n-grams of a row, each once."""
    start, length = int(cache.start[place]), int(cache.num_targets[place]) + 1
    tokens = np.asarray(cache.tokens[start : start + length]).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, min(NGRAM, length))
    factors = np.random.default_rng(_SEED).integers(2**63, size=windows.shape[1], dtype=np.uint64) | np.uint64(1)
    hashes: NDArray[np.uint64] = np.unique((windows + np.uint64(1)) @ factors >> np.uint64(32))
    return hashes
