from dataclasses import replace

import pytest
import torch

from optim.backend import AdamWSettings
from optim.block_adamw import BlockAdamW, clip_factor

SETTINGS = AdamWSettings(betas=(0.9, 0.99), weight_decay=0.1)


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(7, 3, generator=generator).to(dtype).requires_grad_() for n in ("a", "b")}


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in params.values():
        parameter.grad = torch.randn(7, 3, generator=generator).to(parameter.dtype)


def torch_adamw(params, lr):
    return torch.optim.AdamW(params, lr=lr, betas=SETTINGS.betas, eps=SETTINGS.eps, weight_decay=SETTINGS.weight_decay)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_updates_equal_torch_adamw(dtype, tolerance):
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer, witness = BlockAdamW(SETTINGS), torch_adamw(theirs.values(), lr=3e-3)
    optimizer.activate(ours)
    for step in range(30):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.update(3e-3)
        witness.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


def test_grad_scale_multiplies_the_gradients():
    scaled, plain = parameters(), parameters()
    for params, scale in ((scaled, 0.25), (plain, 1.0)):
        optimizer = BlockAdamW(AdamWSettings(eps=1.0))
        optimizer.activate(params)
        give_gradients(params, 0)
        for parameter in params.values():
            parameter.grad *= 1.0 if scale != 1.0 else 0.25
        optimizer.update(0.1, grad_scale=scale)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("grad_norm", "max_norm", "expected"), [(10.0, 1.0, 0.1), (0.5, 1.0, 1.0), (10.0, 0.0, 1.0), (0.0, 1.0, 1.0)]
)
def test_clip_factor_bounds_the_norm(grad_norm, max_norm, expected):
    assert clip_factor(grad_norm, max_norm) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("policy", ["keep", "offload"])
def test_a_block_that_returns_continues_with_its_moments(policy):
    ours, theirs = parameters(), parameters()
    optimizer = BlockAdamW(AdamWSettings(betas=SETTINGS.betas, weight_decay=0.1, moments_on_switch=policy))
    witness = torch_adamw([theirs["a"]], lr=1e-2)
    for step, active in enumerate(["a", "a", "b", "a"]):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.activate({active: ours[active]})
        optimizer.update(1e-2)
        if active == "a":
            witness.step()
    torch.testing.assert_close(ours["a"], theirs["a"], rtol=1e-6, atol=1e-6)


def test_a_block_that_returns_starts_anew_when_moments_are_dropped():
    ours, theirs = parameters(), parameters()
    optimizer = BlockAdamW(SETTINGS)
    for step, active in enumerate(["a", "b", "a"]):
        give_gradients(ours, step)
        optimizer.activate({active: ours[active]})
        optimizer.update(1e-2)
    for step in (0, 2):
        give_gradients(theirs, step)
        torch_adamw([theirs["a"]], lr=1e-2).step()
    torch.testing.assert_close(ours["a"], theirs["a"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("policy", "num_kept"), [("drop", 0), ("keep", 1), ("offload", 1)])
def test_moments_exist_for_the_active_block_and_what_the_policy_keeps(policy, num_kept):
    params = parameters()
    optimizer = BlockAdamW(AdamWSettings(moments_on_switch=policy))
    for name in ("a", "b"):
        optimizer.activate({name: params[name]})
        optimizer.update(1e-3)
    places = {name: place for name, _, place in optimizer.states()}
    assert places.pop("b") == "active"
    assert list(places.values()) == ["parked"] * num_kept


def test_a_block_that_never_trained_has_no_moments():
    optimizer = BlockAdamW(SETTINGS)
    optimizer.activate(parameters())
    assert list(optimizer.states()) == []


@pytest.mark.parametrize("policy", ["drop", "keep", "offload"])
def test_restored_states_go_on_as_if_nothing_had_happened(policy):
    settings = AdamWSettings(weight_decay=0.1, moments_on_switch=policy)
    params = parameters()
    optimizer = BlockAdamW(settings)
    trained = []
    for step, active in enumerate(["a", "b", "a", "b", "a"]):
        if step == 3:
            copy = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
            resumed = BlockAdamW(settings)
            for name, state, place in optimizer.states():
                resumed.restore(
                    name,
                    replace(state, first=state.first.clone(), second=state.second.clone()),
                    parked=place == "parked",
                )
            trained = [(optimizer, params), (resumed, copy)]
        for one, group in trained or [(optimizer, params)]:
            one.activate({active: group[active]})
            give_gradients(group, step)
            one.update(1e-2)
    assert len(trained) == 2
    for name in params:
        assert torch.equal(params[name], copy[name])


def test_low_precision_parameters_move_by_a_float32_master_copy():
    params, exact = parameters(torch.bfloat16), parameters(torch.bfloat16)
    exact = {name: p.detach().float().requires_grad_() for name, p in exact.items()}
    for group in (params, exact):
        optimizer = BlockAdamW(AdamWSettings())
        optimizer.activate(group)
        for _ in range(50):
            for parameter in group.values():
                parameter.grad = torch.ones_like(parameter)
            optimizer.update(1e-4)  # each step is below half of bfloat16's spacing
    for name, parameter in params.items():
        torch.testing.assert_close(parameter, exact[name].bfloat16(), rtol=0, atol=0)


def test_an_absent_gradient_counts_as_zero():
    params = parameters()
    before = params["a"].detach().clone()
    optimizer = BlockAdamW(AdamWSettings())
    optimizer.activate(params)
    optimizer.update(1e-2)
    assert torch.equal(params["a"], before)
