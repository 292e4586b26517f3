"""Ridge regression and ranks against numpy's and scipy's own."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from optim.ridge import rank_agreement, ridge

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("num_rows", "num_features"), [(60, 7), (7, 60), (12, 12)])
def test_it_minimises_what_it_should(num_rows, num_features):
    """Least squares of the rows with √λ·I below them; the same by either Gram matrix."""
    x, y = RNG.normal(size=(num_rows, num_features)), RNG.normal(size=num_rows)
    weight = RNG.uniform(0.2, 5, num_rows)
    fit = ridge(x, y, weight, [0.3])
    root = np.sqrt(weight / weight.mean())
    stacked = np.vstack([x * root[:, None], np.sqrt(fit.penalty) * np.eye(num_features)])
    expected = np.linalg.lstsq(stacked, np.append(y * root, np.zeros(num_features)), rcond=None)[0]
    np.testing.assert_allclose(fit.coefficient_F, expected, rtol=1e-9, atol=1e-12)
    hat = (x * root[:, None]) @ np.linalg.solve(stacked.T @ stacked, (x * root[:, None]).T)
    residual = y * root - hat @ (y * root)
    assert fit.error == pytest.approx(np.mean(residual**2) / (1 - np.trace(hat) / num_rows) ** 2)


def test_the_penalty_follows_the_noise():
    x = RNG.normal(size=(300, 40))
    signal = x @ RNG.normal(size=40)
    clear, noisy = ridge(x, signal, np.ones(300)), ridge(x, signal + 60 * RNG.normal(size=300), np.ones(300))
    assert clear.penalty < 0.1 * noisy.penalty
    none = ridge(x, RNG.normal(size=300), np.ones(300))
    fresh = RNG.normal(size=(1000, 40))
    assert np.std(fresh @ none.coefficient_F) < 0.5


def test_rows_of_more_variance_count_less():
    x = np.ones((100, 1))
    y = np.where(np.arange(100) < 50, 0.0, 1.0)
    weight = np.where(np.arange(100) < 50, 9.0, 1.0)
    assert ridge(x, y, weight, [1e-9]).coefficient_F[0] == pytest.approx(0.1)


@pytest.mark.parametrize("ties", [False, True])
def test_the_agreement_of_ranks_is_that_of_scipy(ties):
    first = RNG.normal(size=80)
    second = first + RNG.normal(size=80)
    if ties:
        first, second = np.round(first), np.round(second)
    found = rank_agreement(first, second)
    assert found.value == pytest.approx(spearmanr(first, second).statistic)
    assert found.low < found.value < found.high
    assert rank_agreement(-first, second).value == pytest.approx(-found.value)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of normal pairs with correlation r, Spearman's is 6/π·asin(r/2)."""
    truth = 6 / np.pi * np.arcsin(0.5 / 2)
    first = RNG.normal(size=(2000, 60))
    second = 0.5 * first + np.sqrt(0.75) * RNG.normal(size=(2000, 60))
    found = [rank_agreement(a, b) for a, b in zip(first, second, strict=True)]
    assert np.mean([each.low <= truth <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)


def test_what_has_no_order_agrees_with_nothing():
    for first, second in ((np.ones(50), np.arange(50.0)), (np.arange(4.0), np.arange(4.0))):
        found = rank_agreement(first, second)
        assert (found.value, found.low, found.high) == (0, -1, 1)
