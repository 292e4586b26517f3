"""Weights by DSIR (`optim.learners.dsir`): words are counted, no model is trained.

The lake's texts are read twice, once for their n-gram distribution and once for each row's importance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curator.progress import Progress, ProgressCallback
from curator.tokens import TokenCache
from curator.words import HashedWords
from optim.learners.dsir import NUM_BUCKETS, bucket_counts, log_importance, log_ratios, resampled_shares
from optim.learners.fixed import with_floor

if TYPE_CHECKING:
    from curator.lake import Lake

SELECTED_SHARE = 0.1
"""Share of the lake's rows that is resampled."""

Indices = NDArray[np.int64]


def dsir_weights(
    lake: Lake, target: Sequence[str], corpus: TokenCache, *, floor: float, seed: int, on_progress: ProgressCallback
) -> NDArray[np.float64]:
    """The weight of each domain of `corpus`, (D,), at least `floor`.

    Rows of the lake that are not in that cache do not count.
    """
    target_counts_M = bucket_counts(ngram_buckets(target)[0])
    raw_counts_M = np.zeros(NUM_BUCKETS, dtype=np.int64)
    for _, texts in _rows(lake, corpus, "words counted", on_progress):
        raw_counts_M += bucket_counts(ngram_buckets(texts)[0])
    ratio_M = log_ratios(target_counts_M, raw_counts_M)
    importance_N = np.zeros(corpus.num_rows)
    for places, texts in _rows(lake, corpus, "rows weighed", on_progress):
        importance_N[places] = log_importance(*ngram_buckets(texts), len(texts), ratio_M)
    shares_D = resampled_shares(
        importance_N,
        np.asarray(corpus.domain, dtype=np.int64),
        np.asarray(corpus.num_targets),
        len(corpus.domains),
        num_rows=max(1, round(SELECTED_SHARE * corpus.num_rows)),
        seed=seed,
    )
    return with_floor(shares_D, floor)


def ngram_buckets(texts: Sequence[str]) -> tuple[Indices, Indices]:
    """The bucket of every word and of every pair of neighbouring words, and the text that each stands in, (G,) each."""
    words = HashedWords(texts)
    found = [words.sequences(length) for length in (1, 2)]
    buckets = [(hashes % np.uint64(NUM_BUCKETS)).astype(np.int64) for hashes, _ in found]
    return np.concatenate(buckets), np.concatenate([row for _, row in found])


def _rows(
    lake: Lake, corpus: TokenCache, detail: str, on_progress: ProgressCallback
) -> Iterator[tuple[Indices, list[str]]]:
    """(place in the cache, text) of the rows of the lake, in batches."""
    ids, done = corpus.sample_ids(), 0
    for batch in lake.text_batches(corpus.domains):
        place = pc.index_in(batch.sample_id.cast(pa.string()), ids).to_numpy(zero_copy_only=False)
        kept = np.flatnonzero(~np.isnan(place))
        yield place[kept].astype(np.int64), [batch.text[int(i)] for i in kept]
        done += len(kept)
        on_progress(Progress(stage="learn", done=done, total=corpus.num_rows, detail=detail))
