"""Rows that say nearly the same are found, against sets of n-grams by hand, and weigh the same."""

import random
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from curator.tokens import RowBatch, train_tokenizer, write_cache

pytest.importorskip("datasketch", reason="needs the extra [train]")

from curator.near_duplicates import NGRAM, clusters
from curator.row_gaps import MeasuredRows, weigh_rows
from optim.row_gaps import RowGaps

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("ato", "eli", "oru", "umi")]


def text(seed, length=60):
    rng = random.Random(seed)
    return [rng.choice(WORDS) for _ in range(length)]


def changed(words, place):
    return [*words[:place], "different", *words[place + 1 :]]


TEXTS = [
    text(1),
    changed(text(1), 30),
    changed(text(1), 5),
    text(2),
    text(3),
    text(3),
    text(4)[:20] + text(5)[:40],  # a third of another row
    text(4),
    text(6, 2),
    text(6, 2),
    text(7, 2),
]
DOMAINS = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]


@pytest.fixture
def corpus(tmp_path):
    texts = [" ".join(words) for words in TEXTS]
    rows = RowBatch(
        sample_id=pa.array([f"{i:02}" for i in range(len(texts))]), text=texts, domain=np.array(DOMAINS, np.int32)
    )
    return write_cache(tmp_path, train_tokenizer(texts, 400), [rows], ["north", "south"])


def similarity(corpus, row, other):
    """Jaccard's, of the sets of n-grams of tokens."""

    def ngrams(place):
        start, length = int(corpus.start[place]), int(corpus.num_targets[place]) + 1
        tokens = [int(token) for token in corpus.tokens[start : start + length]]
        size = min(NGRAM, length)
        return {tuple(tokens[i : i + size]) for i in range(length - size + 1)}

    return len(ngrams(row) & ngrams(other)) / len(ngrams(row) | ngrams(other))


def test_clusters_are_what_is_alike(corpus):
    found = clusters(corpus, np.arange(len(TEXTS)), 0.6)
    for row, other in combinations(range(len(TEXTS)), 2):
        alike = similarity(corpus, row, other)
        assert not 0.45 < alike < 0.7  # else the estimate may say either
        assert (found[row] == found[other]) == (alike > 0.6), (row, other, alike)
    assert found.max() + 1 == len(set(found)) == 7
    assert clusters(corpus, np.array([3, 0, 1]), 0.6).tolist() == [0, 1, 1]


def test_what_differs_a_little_is_alike_only_where_little_is_asked(corpus):
    rows = np.array([6, 7])
    alike = similarity(corpus, 6, 7)
    assert 0.15 < alike < 0.3
    assert clusters(corpus, rows, 0.05).tolist() == [0, 0]
    assert clusters(corpus, rows, 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("near_duplicates", [0, 0.6])
def test_near_duplicates_of_a_domain_share_their_weight(corpus, tmp_path, near_duplicates):
    places = np.arange(len(TEXTS))
    gaps = RowGaps.none(len(TEXTS))
    rng = np.random.default_rng(0)
    gap_R = rng.standard_normal(len(TEXTS))
    for _ in range(3):
        noisy_R = gap_R + 0.1 * rng.standard_normal(len(TEXTS))
        gaps = gaps.added(noisy_R, np.ones(len(TEXTS)), np.array(DOMAINS, np.int32), np.asarray(corpus.num_targets))
    found = weigh_rows(
        tmp_path,
        "run",
        corpus,
        MeasuredRows(places=places, gaps=gaps),
        None,
        sharpness=1.0,
        near_duplicates=near_duplicates,
        by_content=False,
    )
    shared = [(0, 1), (4, 5), (8, 9)] if near_duplicates else []
    for row, other in combinations([i for i, domain in enumerate(DOMAINS) if not domain], 2):
        assert (found.weights[row] == found.weights[other]) == ((row, other) in shared), (row, other)
    assert found.num_alike == 2 * len(shared)
    assert found.figures["num_alike"] == found.num_alike
    tokens = np.asarray(corpus.num_targets)
    for domain in (0, 1):
        own = np.array(DOMAINS) == domain
        assert found.weights[own] @ tokens[own] == pytest.approx(tokens[own].sum())
