import math
from collections import Counter

import numpy as np
import pytest

from optim.learners.dsir import NUM_BUCKETS, bucket_counts, log_importance, log_ratios, resampled_shares

ROWS = [[5, 5, 7], [9], [], [5, 11, 7, 7], [9, 11]]
TARGET = [5, 7, 7, 13]


def flat(rows):
    buckets = np.array([bucket for row in rows for bucket in row], dtype=np.int64)
    return buckets, np.repeat(np.arange(len(rows)), [len(row) for row in rows])


def test_importance_is_the_sum_of_log_ratios_over_a_rows_ngrams():
    bucket_G, row_G = flat(ROWS)
    ratio_M = log_ratios(bucket_counts(np.array(TARGET)), bucket_counts(bucket_G))
    target, raw = Counter(TARGET), Counter(bucket_G.tolist())
    expected = []
    for row in ROWS:
        total = 0.0
        for bucket in row:
            p = (target[bucket] + 1) / (len(TARGET) + NUM_BUCKETS)
            q = (raw[bucket] + 1) / (len(bucket_G) + NUM_BUCKETS)
            total += math.log(p / q)
        expected.append(total)
    np.testing.assert_allclose(log_importance(bucket_G, row_G, len(ROWS), ratio_M), expected, rtol=1e-12)


def test_rows_are_drawn_in_proportion_to_their_importance():
    weight = np.array([1.0, 2.0, 5.0])
    drawn = [
        resampled_shares(np.log(weight), np.arange(3), np.ones(3, dtype=np.int64), 3, num_rows=1, seed=seed)
        for seed in range(4000)
    ]
    np.testing.assert_allclose(np.mean(drawn, axis=0), weight / weight.sum(), atol=0.03)


def test_a_domains_weight_is_its_share_of_the_drawn_rows_tokens():
    log_weight = np.array([50.0, 0.0, 100.0, 60.0, -10.0])
    domain, tokens = np.array([0, 0, 1, 2, 2]), np.array([10, 1, 20, 70, 1])
    shares = resampled_shares(log_weight, domain, tokens, 4, num_rows=3, seed=0)
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.7, 0.0])
