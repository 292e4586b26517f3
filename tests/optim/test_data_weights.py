"""λ's optimizers against independent computations, and the options that bound the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.data_weights import (
    SHRINKAGE,
    DataWeightSettings,
    capped,
    initial_state,
    on_path,
    reachable_logit_range,
    tilt,
    update,
    weights,
)
from optim.objective import logit_grad

PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def random_grads(count=30):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_starts_at_the_prior():
    torch.testing.assert_close(weights(initial_state(PRIOR).logits_D), PRIOR)


@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_starts_elsewhere_where_asked(floor):
    start = torch.tensor([0.6, 0.3, 0.05, 0.05], dtype=torch.float64)
    torch.testing.assert_close(weights(initial_state(PRIOR, start, floor=floor).logits_D, floor), start)
    lifted = weights(initial_state(PRIOR, torch.tensor([1.0, 0, 0, 0]).double(), floor=floor).logits_D, floor)
    assert (lifted > floor).all()
    assert torch.equal(initial_state(PRIOR).start_D, torch.zeros(4).double())


def test_dual_averaging_forgets_where_it_started():
    """The same gradients from two starts: what is left of λ₀ − log(prior) is k₀/(k + k₀), and the rest is equal."""
    settings = DataWeightSettings(optimizer="dual_averaging", learning_rate=2.5)
    start = torch.tensor([0.01, 0.01, 0.01, 0.97], dtype=torch.float64)
    cold, warm = initial_state(PRIOR), initial_state(PRIOR, start)
    ahead = warm.logits_D - PRIOR.double().log()
    for age, grad in enumerate(random_grads(), start=1):
        cold, warm = update(cold, grad, PRIOR, settings), update(warm, grad, PRIOR, settings)
        left = SHRINKAGE / (age + SHRINKAGE) * ahead
        apart = warm.logits_D - cold.logits_D - left
        torch.testing.assert_close(apart - apart.mean(), torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_exponentiated_gradient_multiplies_by_exp_of_the_gradient():
    settings = DataWeightSettings(learning_rate=0.3)
    state, expected = initial_state(PRIOR), PRIOR.clone()
    for grad in random_grads():
        state = update(state, grad, PRIOR, settings)
        expected = expected * torch.exp(-0.3 * grad)
        expected = expected / expected.sum()
    torch.testing.assert_close(weights(state.logits_D), expected, rtol=1e-12, atol=0)


def test_scaled_gradient_is_in_units_of_the_mean_square_so_far():
    settings = DataWeightSettings(optimizer="eg", learning_rate=0.3)
    state, logits, seen = initial_state(PRIOR), PRIOR.log().numpy(), []
    for grad in random_grads():
        state = update(state, grad, PRIOR, settings)
        seen.append(grad.numpy() - grad.numpy().mean())
        logits = logits - 0.3 * seen[-1] / np.sqrt(np.mean(np.square(seen)))
    expected = torch.softmax(torch.from_numpy(logits), 0)
    torch.testing.assert_close(weights(state.logits_D), expected, rtol=1e-9, atol=0)


def test_dual_averaging_tilts_the_prior_by_the_mean_gradient_in_units_of_the_usual_one():
    settings = DataWeightSettings(optimizer="dual_averaging", learning_rate=2.5)
    state, seen = initial_state(PRIOR), []
    for grad in random_grads():
        state = update(state, grad, PRIOR, settings)
        seen.append(grad.numpy() - grad.numpy().mean())
        sigma = np.sqrt(np.mean(np.square(seen)))
        expected = PRIOR.numpy() * np.exp(-2.5 * np.sum(seen, 0) / ((len(seen) + SHRINKAGE) * sigma))
        torch.testing.assert_close(weights(state.logits_D), torch.from_numpy(expected / expected.sum()))
    factor = tilt(settings, state)
    assert factor == pytest.approx(2.5 * len(seen) / (len(seen) + SHRINKAGE) / sigma)
    centred = (state.logits_D - PRIOR.log()).numpy()
    np.testing.assert_allclose(centred - centred.mean(), -factor * np.mean(seen, 0), rtol=1e-9)
    assert tilt(DataWeightSettings(), state) is None


def test_dual_averaging_counts_early_and_late_gradients_alike():
    grads = random_grads(100)
    found = []
    for order in (range(100), reversed(range(100))):
        state = initial_state(PRIOR)
        for place in order:
            state = update(
                state, grads[place], PRIOR, DataWeightSettings(optimizer="dual_averaging", learning_rate=2.5)
            )
        found.append(weights(state.logits_D))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("optimizer", ["eg", "dual_averaging"])
def test_scaled_gradient_does_not_depend_on_the_units_of_the_losses(optimizer):
    settings = DataWeightSettings(optimizer=optimizer, learning_rate=0.3, prior_pull=0.05)
    found = []
    for unit in (1.0, 1e-3):
        state = initial_state(PRIOR)
        for grad in random_grads():
            state = update(state, unit * grad + 5.0, PRIOR, settings)
        found.append(weights(state.logits_D))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0)


def test_adam_equals_torch_adam_on_the_logits():
    settings = DataWeightSettings(optimizer="adam", learning_rate=0.05, betas=(0.9, 0.99), eps=1e-12)
    state = initial_state(PRIOR)
    variable = PRIOR.log().requires_grad_()
    witness = torch.optim.Adam([variable], lr=0.05, betas=(0.9, 0.99), eps=1e-12)
    for grad in random_grads():
        state = update(state, grad, PRIOR, settings)
        variable.grad = logit_grad(grad, torch.softmax(variable.detach(), 0))
        witness.step()
    torch.testing.assert_close(weights(state.logits_D), torch.softmax(variable.detach(), 0), rtol=1e-9, atol=1e-12)


def test_pull_settles_where_it_balances_the_gradient():
    """The fixed point of λ ← (1−ρ)(λ − η·g) + ρ·log π is, up to a constant, log π − (1−ρ)·η/ρ·g."""
    settings = DataWeightSettings(learning_rate=0.2, prior_pull=0.05)
    grad = torch.tensor([0.3, -0.2, 0.1, -0.4], dtype=torch.float64)
    state = initial_state(PRIOR)
    for _ in range(500):
        state = update(state, grad, PRIOR, settings)
    expected = torch.softmax(PRIOR.log() - 0.95 * 0.2 / 0.05 * grad, 0)
    torch.testing.assert_close(weights(state.logits_D), expected, rtol=1e-9, atol=0)


def test_no_gradient_leaves_the_weights_where_they_are():
    for optimizer in ("unscaled_eg", "eg", "dual_averaging", "adam"):
        state = initial_state(PRIOR)
        for _ in range(5):
            state = update(state, torch.zeros(4, dtype=torch.float64), PRIOR, DataWeightSettings(optimizer=optimizer))
        torch.testing.assert_close(weights(state.logits_D), PRIOR)


def test_floor_bounds_every_weight():
    logits = torch.tensor([50.0, 0.0, -50.0, -80.0], dtype=torch.float64)
    p = weights(logits, floor=0.02)
    assert p.min() >= 0.02
    assert float(p.sum()) == pytest.approx(1.0)


def test_reach_of_adam_is_what_it_can_travel():
    settings = DataWeightSettings(optimizer="adam", learning_rate=0.1)
    state = initial_state(torch.full((2,), 0.5).double())
    for _ in range(40):
        state = update(state, torch.tensor([-1.0, 1.0]).double(), torch.full((2,), 0.5).double(), settings)
    travelled = float((state.logits_D[0] - state.logits_D[1]) / 2)
    assert travelled <= reachable_logit_range(settings, 40) * (1 + 1e-9)
    assert reachable_logit_range(DataWeightSettings(), 40) == math.inf


def test_the_path_goes_from_the_prior_through_the_weights():
    learned = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    torch.testing.assert_close(on_path(PRIOR, learned, 0.0), PRIOR)
    torch.testing.assert_close(on_path(PRIOR, learned, 1.0), learned)
    beyond = learned**1.5 / PRIOR**0.5
    torch.testing.assert_close(on_path(PRIOR, learned, 1.5), beyond / beyond.sum())


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_caps_hold_and_what_is_below_them_keeps_its_proportions(values, seed):
    p = torch.tensor(values, dtype=torch.float64)
    p = p / p.sum()
    cap = torch.from_numpy(np.random.default_rng(seed).uniform(1 / len(values), 1.0, len(values)))
    found = capped(p, cap)
    assert float(found.sum()) == pytest.approx(1)
    assert bool((found <= cap * (1 + 1e-9)).all())
    free = found < cap * (1 - 1e-9)
    ratio = (found / p)[free]
    if len(ratio):  # nearest in KL divergence: one factor for all that are free, none that is full had a smaller one
        assert float(ratio.max() - ratio.min()) == pytest.approx(0, abs=1e-9 * float(ratio.max()))
        assert bool(((found / p)[~free] <= float(ratio.max()) * (1 + 1e-9)).all())


def test_weights_below_their_caps_are_left_alone_and_caps_that_leave_a_gap_are_refused():
    assert torch.equal(capped(PRIOR, torch.full((4,), 0.5)), PRIOR)
    all_ = torch.full((10,), 0.1 * (1 - 1e-12), dtype=torch.float64)  # the budget is all that the caps allow
    torch.testing.assert_close(capped(torch.linspace(1, 19, 10, dtype=torch.float64) / 100, all_), all_)
    with pytest.raises(ValueError, match=r"the caps add up to 0\.800"):
        capped(PRIOR, torch.full((4,), 0.2))


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"prior_pull": 1.0}, {"floor": -0.1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataWeightSettings(**wrong)
