"""Sums over snapshots against numpy on all of them, and what in-domain weights must be whatever was measured."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.row_gaps import (
    MAX_RATIO,
    RowGaps,
    in_domain_weights,
    reliability,
    spread,
    worst_means,
)


@st.composite
def measured(draw):
    """(gap_SR, domain_R, tokens_R): 2-6 snapshots of 1-30 rows in up to 4 domains, of which some may be empty."""
    num_rows, num_snapshots = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 1e-6, 0.1, 50.0]))
    gap_SR = 3 + scale * (rng.standard_normal((num_snapshots, num_rows)) + rng.standard_normal(num_rows))
    return gap_SR, rng.integers(0, 4, num_rows).astype(np.int32), rng.integers(1, 900, num_rows)


def added(gap_SR, domain_R, tokens_R):
    gaps = RowGaps.none(len(domain_R))
    for gap_R in gap_SR:
        gaps = gaps.added(gap_R, 2 * gap_R, domain_R, tokens_R)
    return gaps


def weights_of(gaps, domain_R, tokens_R, *, sharpness):
    """Those of measured rows; what they were scaled by is checked."""
    relative_R = gaps.mean_relative_R
    expected_R, width = reliability(gaps, tokens_R) * relative_R, spread(relative_R, tokens_R)
    weight_R, mean_D = in_domain_weights(expected_R, width, domain_R, tokens_R, sharpness=sharpness)
    unscaled_R = weight_R * mean_D[domain_R]
    np.testing.assert_allclose(
        np.log(unscaled_R),
        np.clip(-sharpness * expected_R / (width or 1), -np.log(MAX_RATIO), np.log(MAX_RATIO)),
        atol=1e-9,
    )
    return weight_R


@given(measured())
def test_sums_give_the_means_and_errors_of_all_snapshots(rows):
    gap_SR, domain_R, tokens_R = rows
    gaps = added(*rows)
    relative_SR = gap_SR.copy()
    for domain in set(domain_R):
        own = domain_R == domain
        relative_SR[:, own] -= np.average(gap_SR[:, own], axis=1, weights=tokens_R[own])[:, None]
    error_R = relative_SR.std(axis=0, ddof=1) / np.sqrt(len(gap_SR))
    np.testing.assert_allclose(gaps.mean_R, gap_SR.mean(0))
    np.testing.assert_allclose(gaps.mean_loss_R, 2 * gap_SR.mean(0))
    np.testing.assert_allclose(gaps.mean_relative_R, relative_SR.mean(0), atol=1e-12)
    np.testing.assert_allclose(gaps.standard_error_R, error_R, rtol=1e-6, atol=1e-7)


@given(measured(), st.floats(0, 5))
def test_every_domain_keeps_its_tokens_and_lower_gaps_never_weigh_less(rows, sharpness):
    _, domain_R, tokens_R = rows
    gaps = added(*rows)
    weight_R = weights_of(gaps, domain_R, tokens_R, sharpness=sharpness)
    for domain in set(domain_R):
        own = domain_R == domain
        assert weight_R[own] @ tokens_R[own] == pytest.approx(tokens_R[own].sum())
        order = np.argsort(gaps.mean_relative_R[own], kind="stable")
        assert (np.diff(weight_R[own][order]) <= 1e-9).all()
        assert weight_R[own].max() <= MAX_RATIO**2 * weight_R[own].min() * (1 + 1e-9)


@given(measured(), st.randoms())
def test_the_order_of_rows_and_snapshots_changes_nothing(rows, random):
    gap_SR, domain_R, tokens_R = rows
    order, turn = list(range(len(domain_R))), list(range(len(gap_SR)))
    random.shuffle(order)
    random.shuffle(turn)
    straight = weights_of(added(*rows), domain_R, tokens_R, sharpness=1.0)
    shuffled = (gap_SR[turn][:, order], domain_R[order], tokens_R[order])
    mixed = weights_of(added(*shuffled), domain_R[order], tokens_R[order], sharpness=1.0)
    np.testing.assert_allclose(mixed, straight[order], rtol=1e-5)


def many(signal, noise, num_snapshots=6, num_rows=4000):
    rng = np.random.default_rng(3)
    gap_SR = signal * rng.standard_normal(num_rows) + noise * rng.standard_normal((num_snapshots, num_rows))
    return gap_SR, rng.integers(0, 3, num_rows).astype(np.int32), rng.integers(20, 100, num_rows)


def test_mere_noise_leaves_all_rows_alike():
    rows = many(signal=0, noise=0.2)
    assert reliability(added(*rows), rows[2]) < 0.06
    np.testing.assert_allclose(weights_of(added(*rows), *rows[1:], sharpness=1.0), 1, atol=0.25)


def test_equal_gaps_leave_all_rows_alike():
    rows = many(signal=0, noise=0)
    assert reliability(added(*rows), rows[2]) == 0
    assert (weights_of(added(*rows), *rows[1:], sharpness=1.0) == 1).all()


@pytest.mark.parametrize(("signal", "noise"), [(0.1, 0.1), (0.1, 0.4), (1.0, 0.01)])
def test_reliability_is_the_share_of_signal_in_the_scatter_of_means(signal, noise):
    rows = many(signal, noise)
    expected = signal**2 / (signal**2 + noise**2 / 6)
    assert reliability(added(*rows), rows[2]) == pytest.approx(expected, abs=0.03)


def test_what_a_domain_moves_by_is_no_signal_of_its_rows():
    gap_SR, domain_R, tokens_R = many(signal=0.1, noise=0.1)
    shift_SD = 5 * np.random.default_rng(0).standard_normal((6, 3))
    shifted = added(gap_SR + shift_SD[:, domain_R], domain_R, tokens_R)
    plain = added(gap_SR, domain_R, tokens_R)
    np.testing.assert_allclose(shifted.standard_error_R, plain.standard_error_R, atol=1e-9)
    weights = [weights_of(gaps, domain_R, tokens_R, sharpness=1.0) for gaps in (shifted, plain)]
    np.testing.assert_allclose(*weights)


def test_some_of_the_rows_have_their_own_sums():
    rows = many(signal=0.1, noise=0.1)
    gaps, kept = added(*rows), np.array([7, 3, 3999])
    part = gaps.only(kept)
    assert (part.mean_relative_R == gaps.mean_relative_R[kept]).all()
    assert (part.standard_error_R == gaps.standard_error_R[kept]).all()
    assert (part.mean_R == gaps.mean_R[kept]).all()


def test_a_row_of_one_spread_gains_the_sharpness_times_the_reliability():
    gap_SR = np.tile([[-1.0, 1.0]], (3, 1))
    domain_R, tokens_R = np.zeros(2, np.int32), np.array([7, 7])
    low, high = weights_of(added(gap_SR, domain_R, tokens_R), domain_R, tokens_R, sharpness=0.5)
    assert low / high == pytest.approx(np.e)  # reliability 1, and exp(.5)/exp(−.5)
    low, high = weights_of(added(gap_SR, domain_R, tokens_R), domain_R, tokens_R, sharpness=99.0)
    assert low / high == pytest.approx(MAX_RATIO**2)


gaps_of_rows = st.lists(st.lists(st.floats(-20, 20), min_size=1, max_size=30), min_size=1, max_size=5)


def worst(rows, share):
    row_T = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return worst_means(np.concatenate([np.array(row) for row in rows]), row_T, len(rows), share)


@given(gaps_of_rows, st.floats(0.01, 1))
def test_the_gap_of_a_row_is_the_mean_of_its_worst_tokens(rows, share):
    expected = [np.mean(sorted(row)[-math.ceil(share * len(row)) :]) for row in rows]
    assert worst(rows, share) == pytest.approx(np.array(expected))


@given(gaps_of_rows, st.floats(-5, 5), st.floats(0, 3))
def test_what_all_tokens_gain_moves_the_gap_by_as_much(rows, shift, scale):
    moved = [[scale * gap + shift for gap in row] for row in rows]
    assert worst(moved, 0.5) == pytest.approx(scale * worst(rows, 0.5) + shift, abs=1e-9)


@given(gaps_of_rows)
def test_fewer_tokens_are_worse_ones(rows):
    found = [worst(rows, share) for share in (1, 0.7, 0.5, 0.1)]
    assert found[0] == pytest.approx(np.array([np.mean(row) for row in rows]))
    assert (np.diff(found, axis=0) >= -1e-9).all()
    assert (found[-1] <= [max(row) + 1e-9 for row in rows]).all()


def test_tokens_may_come_in_any_order():
    rng = np.random.default_rng(0)
    row_T, gap_T = rng.permutation(np.repeat([2, 0, 1], [5, 3, 9])), rng.normal(size=17)
    expected = [np.mean(sorted(gap_T[row_T == row])[-math.ceil(0.5 * (row_T == row).sum()) :]) for row in range(3)]
    assert worst_means(gap_T, row_T, 3, 0.5) == pytest.approx(np.array(expected))
