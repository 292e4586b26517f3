"""Each verdict is reached by the record that deserves it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optim.diagnostics import StepRecord, entropy, judge, summarize


def make_records(weights_TD, val_loss_T):
    return [
        StepRecord(
            step=t,
            weights=list(map(float, p)),
            average_weights=list(map(float, p)),
            weight_grads=[-0.5, 0.5],
            gaps=[-0.5, 0.5],
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
    values = {"warmup_steps": 10, "num_updates": 90, "reachable_range": reachable_range} | changes
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
    values = {"warmup_steps": 10, "num_updates": 90, "reachable_range": math.inf}
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
        for mean in (0.0, 2.0)
    ]
    found = [
        summarize(records, warmup_steps=0, num_updates=100, reachable_range=1.0).signal_to_noise
        for records in (noise, signal)
    ]
    assert found[0] < 3
    assert found[1] > 8


def test_entropy_is_between_zero_and_log_d():
    assert entropy(np.array([1.0, 0.0])) == 0.0
    assert entropy(np.full(4, 0.25)) == pytest.approx(math.log(4))
