"""Intervals against simulations with a known truth, and against a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curator.intervals import mean_token_loss

pytest.importorskip("scipy", reason="needs the extra [train]")

TRIALS = 2500
TRUTH = 0.3


def covered(seed_sd, row_sd, *, num_seeds, num_rows, both_sd=0.0):
    """Share of the trials in which the interval holds the truth; deviations are in nats per token."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(TRIALS):
        tokens_N = rng.integers(5, 60, num_rows)
        per_token_KN = TRUTH + seed_sd * rng.normal(size=(num_seeds, 1)) + row_sd * rng.normal(size=(1, num_rows))
        per_token_KN = per_token_KN + both_sd * rng.normal(size=(num_seeds, num_rows))
        found = mean_token_loss(per_token_KN * tokens_N, tokens_N)
        hits += found.low <= TRUTH <= found.high
    return hits / TRIALS


@pytest.mark.parametrize(
    ("seed_sd", "row_sd", "num_seeds"),
    [(0.02, 0.0, 3), (0.0, 0.3, 3), (0.04, 0.3, 3), (0.08, 0.3, 3), (0.03, 0.3, 5), (0.2, 0.3, 2)],
    ids=["seeds", "rows", "both alike", "more of seeds", "five seeds", "two seeds"],
)
def test_95_percent_of_the_intervals_hold_the_truth(seed_sd, row_sd, num_seeds):
    """Two standard errors of the share of so many trials are 0.9 %."""
    assert 0.94 <= covered(seed_sd, row_sd, num_seeds=num_seeds, num_rows=150) <= 0.985


def test_an_interplay_of_seeds_and_rows_makes_the_interval_no_narrower():
    assert covered(0.02, 0.3, both_sd=0.6, num_seeds=3, num_rows=150) >= 0.94


def test_few_seeds_make_a_wide_interval():
    """The factor of three seeds is Student's 4.30 and not the normal 1.96, without which 81 % would be covered."""
    loss_K = np.array([1.0, 2.0, 4.0])
    found = mean_token_loss(loss_K[:, None] * np.full(50, 10.0), np.full(50, 10))
    standard_error = loss_K.std(ddof=1) / math.sqrt(3)
    assert found.mean == pytest.approx(7 / 3)
    assert found.high - found.mean == pytest.approx(4.302652729911275 * standard_error)
    assert found.mean - found.low == pytest.approx(4.302652729911275 * standard_error)


@pytest.mark.parametrize(("seed_sd", "row_sd"), [(0.0, 0.5), (0.04, 0.5), (0.08, 0.2)])
def test_the_standard_error_is_that_of_a_bootstrap_over_seeds_and_rows(seed_sd, row_sd):
    """With so many seeds and rows that Student's factor is 1.98 and resampling loses nothing."""
    rng = np.random.default_rng(3)
    num_seeds, num_rows = 60, 300
    tokens_N = rng.integers(5, 60, num_rows)
    loss_KN = tokens_N * (1 + seed_sd * rng.normal(size=(num_seeds, 1)) + row_sd * rng.normal(size=(1, num_rows)))
    found = mean_token_loss(loss_KN, tokens_N)
    means = []
    for _ in range(2000):
        rows = rng.integers(0, num_rows, num_rows)
        of_rows = loss_KN[:, rows].sum(axis=1) / tokens_N[rows].sum()
        means.append(of_rows[rng.integers(0, num_seeds, num_seeds)].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.08)
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))


def test_long_rows_count_by_their_tokens():
    found = mean_token_loss(np.array([[10.0, 300.0], [10.0, 300.0]]), np.array([10, 100]))
    assert found.mean == pytest.approx(310 / 110)


def test_the_difference_of_equal_losses_is_exactly_0():
    loss_KN = np.random.default_rng(0).normal(size=(3, 40))
    found = mean_token_loss(loss_KN - loss_KN, np.full(40, 7))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 40), (3, 1)], ids=["one seed", "one row"])
def test_one_seed_or_one_row_tells_no_interval(shape):
    found = mean_token_loss(np.ones(shape), np.ones(shape[1], dtype=np.int64))
    assert found.mean == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_pairing_narrows_the_interval():
    """Rows differ by far more than mixtures do, and equally under both."""
    rng = np.random.default_rng(1)
    tokens_N = np.full(200, 20)
    row_N = rng.normal(3.0, 1.0, 200)
    one_KN = tokens_N * (row_N + 0.01 * rng.normal(size=(3, 1)))
    two_KN = tokens_N * (row_N - 0.05 + 0.01 * rng.normal(size=(3, 1)))
    difference = mean_token_loss(two_KN - one_KN, tokens_N)
    assert difference.high < 0
    assert difference.high - difference.low < 0.5 * (
        mean_token_loss(one_KN, tokens_N).high - mean_token_loss(one_KN, tokens_N).low
    )
