"""Each verdict is reached by the record that deserves it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optim.diagnostics import (
    MAX_LOSS_RISE,
    StepRecord,
    _rise,
    _uncertainty,
    entropy,
    judge,
    summarize,
    tilt_intervals,
    weight_intervals,
)


def make_records(weights_TD, val_loss_T):
    return [
        StepRecord(
            step=t,
            weights=list(map(float, p)),
            average_weights=list(map(float, p)),
            weight_grads=[-0.5 + 0.1 * (-1) ** t, 0.5],
            gaps=[-0.5 + 0.1 * (-1) ** t, 0.5],
            val_loss=float(loss),
            aux_val_loss=float(loss) + 1 if t % 10 == 0 else None,
            train_loss=1.0,
            aux_train_loss=1.0,
            distance=2.0 if t % 10 == 0 else None,
            grad_norm=1.0,
            aux_grad_norm=1.0,
            clipped=t % 4 == 0,
            weight_grad_norm=1.0,
            entropy=entropy(np.asarray(p)),
            tokens=t,
            compute_tokens=2.0,
            seconds=float(t),
        )
        for t, (p, loss) in enumerate(zip(weights_TD, val_loss_T, strict=True))
    ]


def verdict_of(weights_TD, val_loss_T, reachable_range=math.inf, **changes):
    records = make_records(weights_TD, val_loss_T)
    values = {"warmup_steps": 10, "num_averaged": 45, "num_updates": 90, "tokens": [50.0, 50.0]}
    values |= {"reachable_range": reachable_range} | changes
    summary = summarize(records, **values)
    return judge(records, summary), summary


FALLING = np.linspace(5, 3, 100)
SETTLED = np.stack(
    [np.clip(np.linspace(0.5, 1.7, 100), 0.5, 0.8), 1 - np.clip(np.linspace(0.5, 1.7, 100), 0.5, 0.8)], 1
)
MOVING = np.stack([np.linspace(0.5, 0.95, 100), np.linspace(0.5, 0.05, 100)], 1)


def test_settled_weights_are_converged():
    verdict, summary = verdict_of(SETTLED, FALLING)
    assert verdict.status == "converged"
    assert summary.movement < 0.01
    assert summary.val_loss_last < summary.val_loss_first
    assert summary.aux_val_loss_last == pytest.approx(FALLING[90] + 1)
    assert summary.clipped_share == 0.25


def test_moving_weights_are_not_converged():
    verdict, summary = verdict_of(MOVING, FALLING)
    assert verdict.status == "not converged"
    assert "still moved" in verdict.reason
    # weights move by .45/99 a step, so between means of neighbouring quarters of the last 90 steps by 22 of them
    assert summary.movement == pytest.approx(22 * 0.45 / 99, rel=1e-6)


@pytest.mark.parametrize("changes", [{"num_updates": 39}, {"settling_updates": 91.0}])
def test_too_few_updates_cannot_have_converged(changes):
    verdict, _ = verdict_of(SETTLED, FALLING, **changes)
    assert verdict.status == "not converged"
    assert "updated" in verdict.reason


def test_a_binding_range_is_not_convergence():
    reach = float(np.log(0.8 / 0.2) / 2)
    verdict, _ = verdict_of(SETTLED, FALLING, reachable_range=reach)
    assert verdict.status == "not converged"
    assert "range" in verdict.reason


@pytest.mark.parametrize("losses", [np.concatenate([FALLING[:60], np.linspace(4, 6, 40)]), np.r_[FALLING[:99], np.nan]])
def test_a_rising_or_infinite_target_loss_is_unstable(losses):
    assert verdict_of(SETTLED, losses)[0].status == "unstable"


def test_losses_that_were_not_measured_do_not_count():
    records = make_records(SETTLED, np.where(np.arange(100) < 90, 5.0, 3.0))
    sparse = [StepRecord(**(vars(r) | ({} if r.step % 5 == 0 else {"val_loss": None}))) for r in records]
    values = {"warmup_steps": 10, "num_averaged": 45, "num_updates": 90}
    values |= {"reachable_range": math.inf, "tokens": [1.0, 1.0]}
    full, few = (summarize(some, **values) for some in (records, sparse))
    assert (few.val_loss_first, few.val_loss_last) == (full.val_loss_first, full.val_loss_last) == (5.0, 3.0)
    assert judge(sparse, few).status == "converged"
    assert few.compute_tokens == 200.0


def test_signal_to_noise_tells_signal_from_noise():
    rng = np.random.default_rng(0)
    noise, signal = [
        [
            StepRecord(**{**vars(r), "weight_grads": list(rng.normal(mean, 1.0, 2))})
            for r in make_records(SETTLED, FALLING)
        ]
        for mean in ((3.0, 3.0), (2.0, 0.0))
    ]
    found = [
        summarize(
            records, warmup_steps=0, num_averaged=50, num_updates=100, reachable_range=1.0, tokens=[1.0, 1.0]
        ).signal_to_noise
        for records in (noise, signal)
    ]
    assert found[0] < 3  # what all domains share moves no weight
    assert found[1] > 8


def test_the_interval_of_a_mean_is_students_for_independent_values_and_wider_with_memory():
    """1,000 independent values: t·s/√T. First-order autoregressions, φ = .9: nearly all of 200 intervals cover 0.5."""
    rng = np.random.default_rng(0)
    white_TD = 0.5 + 0.01 * rng.normal(size=(1000, 1))
    low, high = weight_intervals(white_TD)
    assert (high - low)[0] / 2 == pytest.approx(1.96 * white_TD.std() / math.sqrt(1000), rel=0.1)
    memory_TD = np.zeros((300, 200))
    for t in range(1, 300):
        memory_TD[t] = 0.9 * memory_TD[t - 1] + 0.01 * rng.normal(size=200)
    low, high = weight_intervals(0.5 + memory_TD[50:])
    assert 0.88 <= float(((low <= 0.5) & (high >= 0.5)).mean()) <= 1.0


def test_the_interval_of_a_tilt_is_that_of_the_mean_gradient_and_covers():
    """1,000 runs of 200 noisy gradients whose mean tilts equal parts: the weights of the true mean lie inside."""
    rng = np.random.default_rng(0)
    mean_D, factor = np.array([-0.4, 0.1, 0.3]), 2.0
    true_D = np.exp(-factor * mean_D) / np.exp(-factor * mean_D).sum()
    inside, away, uncertainty = [], [], []
    for _ in range(1000):
        grads_TD = mean_D + rng.normal(size=(200, 3))
        found_D = np.exp(-factor * grads_TD.mean(axis=0))
        found_D /= found_D.sum()
        low_D, high_D = tilt_intervals(found_D, grads_TD, factor)
        assert (low_D < found_D).all()
        assert (found_D < high_D).all()
        inside.append((low_D <= true_D) & (true_D <= high_D))
        away.append(np.abs(found_D - true_D).sum() / 2)
        uncertainty.append(_uncertainty(found_D, grads_TD, factor))
    assert np.mean(uncertainty) == pytest.approx(np.mean(away), rel=0.1)
    assert 0.93 <= float(np.mean(inside)) <= 0.995
    assert float((high_D - low_D).max()) < 0.3


@pytest.mark.parametrize(
    ("mean_D", "tilt", "status"),
    [
        ([0.0, 0.0], 0.3, "no gain"),
        ([-1.0, 1.0], 0.3, "converged"),
        ([-0.5] + [0.0] * 11, 1.0, "converged"),
        ([-0.5] + [0.0] * 11, 8.0, "not converged"),
    ],
)
def test_a_tilt_is_judged_by_its_noise(mean_D, tilt, status):
    """Noise alone is no gain; a signal has settled if the noise that the tilt lets through is small in the weights."""
    grads_TD = np.array(mean_D) + np.random.default_rng(1).normal(size=(100, len(mean_D)))
    tilted_D = np.exp(-tilt * grads_TD.mean(axis=0))
    weights_TD = np.tile(tilted_D / tilted_D.sum(), (100, 1))  # so that the gradients alone decide
    records = [
        StepRecord(**{**vars(r), "weight_grads": list(g)})
        for r, g in zip(make_records(weights_TD, FALLING), grads_TD, strict=True)
    ]
    values = {"warmup_steps": 0, "num_averaged": 1, "num_updates": 100, "reachable_range": math.inf}
    summary = summarize(records, **values, tokens=[1.0] * len(mean_D), tilt=tilt)
    verdict = judge(records, summary)
    assert verdict.status == status, verdict
    assert (summary.displacement > 1) == any(mean_D)
    if any(mean_D):
        assert "uncertain by" in verdict.reason


def test_a_rise_of_the_target_loss_that_noise_explains_is_not_one():
    noisy = 0.1 + 0.1 * np.random.default_rng(0).random(100)
    assert verdict_of(SETTLED, noisy)[0].status == "converged"


@pytest.mark.parametrize("num_losses", [5, 12, 16, 19, 29])
def test_few_measured_losses_are_not_said_to_rise(num_losses):
    """DoReMi's target loss, say, is measured sixteen times in a run."""
    rng = np.random.default_rng(3)
    assert not any(_rise(1 + 0.05 * rng.standard_normal(num_losses)) for _ in range(200))


def test_noise_about_a_loss_that_falls_is_no_rise_and_a_rise_is_one():
    rng = np.random.default_rng(4)
    falling = 1 + 2 * np.exp(-np.arange(100) / 25)
    assert not any(_rise(falling + 0.03 * rng.standard_normal(100)) > MAX_LOSS_RISE for _ in range(200))
    turned = falling + np.linspace(-1, 1, 100).clip(min=0)
    assert all(_rise(turned + 0.03 * rng.standard_normal(100)) > MAX_LOSS_RISE for _ in range(200))


def test_weights_that_turn_back_and_forth_swing_and_weights_that_only_travel_do_not():
    swinging = np.where(np.arange(100) % 20 < 10, 0.9, 0.1)
    verdict, summary = verdict_of(np.stack([swinging, 1 - swinging], 1), FALLING)
    assert verdict.status == "unstable"
    assert summary.swing > 0.3
    assert verdict_of(MOVING, FALLING)[1].swing < 1e-9


def test_gaps_of_noise_and_weights_that_stayed_are_no_gain():
    records = make_records(np.full((100, 2), 0.5), FALLING)
    rng = np.random.default_rng(1)
    records = [StepRecord(**{**vars(r), "weight_grads": list(rng.normal(0.0, 1.0, 2))}) for r in records]
    summary = summarize(
        records, warmup_steps=10, num_averaged=45, num_updates=90, reachable_range=math.inf, tokens=[1.0, 1.0]
    )
    assert judge(records, summary).status == "no gain"


def test_entropy_is_between_zero_and_log_d():
    assert entropy(np.array([1.0, 0.0])) == 0.0
    assert entropy(np.full(4, 0.25)) == pytest.approx(math.log(4))
