"""λ's optimizers against independent computations, and the options that bound the weights."""

from __future__ import annotations

import math

import pytest
import torch

from optim.data_weights import DataWeightSettings, initial_state, reachable_logit_range, update, weights
from optim.objective import logit_grad

PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def random_grads(count=30):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_starts_at_the_prior():
    torch.testing.assert_close(weights(initial_state(PRIOR).logits_D), PRIOR)


def test_exponentiated_gradient_multiplies_by_exp_of_the_gradient():
    settings = DataWeightSettings(learning_rate=0.3)
    state, expected = initial_state(PRIOR), PRIOR.clone()
    for grad in random_grads():
        state = update(state, grad, PRIOR, settings)
        expected = expected * torch.exp(-0.3 * grad)
        expected = expected / expected.sum()
    torch.testing.assert_close(weights(state.logits_D), expected, rtol=1e-12, atol=0)


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
    for optimizer in ("eg", "adam"):
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


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"prior_pull": 1.0}, {"floor": -0.1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataWeightSettings(**wrong)
