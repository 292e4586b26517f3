"""The fused head against torch's own linear layer and cross entropy, in float64."""

import pytest
import torch
from torch.nn import functional

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from optim.mcore import head
from optim.mcore.head import HeadShard, Targets, token_losses

TOKENS, WIDTH, VOCABULARY, PADDED = 203, 8, 50, 56


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(PADDED, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    token_weight = torch.rand(TOKENS, generator=generator) * (torch.arange(TOKENS) % 3 > 0)
    return hidden, weight, Targets(labels, token_weight)


def shard(softcap=None):
    return HeadShard(first_label=0, vocab_size=VOCABULARY, softcap=softcap, group=None)


def by_torch(hidden, weight, targets, softcap):
    logits = functional.linear(hidden, weight)[:, :VOCABULARY]
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    losses = functional.cross_entropy(logits, targets.labels_T, reduction="none")
    return losses.detach(), (losses * targets.token_weight_T).sum()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("elements", [1, 70 * PADDED, 10**6])  # 64 tokens at the least, 70, all
def test_losses_and_gradients_equal_torchs(monkeypatch, softcap, elements):
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", elements)
    hidden, weight, targets = case()
    losses, total = token_losses(hidden, weight, targets, shard(softcap))
    expected_losses, expected_total = by_torch(hidden, weight, targets, softcap)
    torch.testing.assert_close((losses, total), (expected_losses, expected_total), rtol=1e-12, atol=1e-12)
    assert not losses.requires_grad
    expected = torch.autograd.grad(3 * expected_total, (hidden, weight))
    found = torch.autograd.grad(3 * total, (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, targets = case()
    with torch.no_grad():
        losses, total = token_losses(hidden, weight, targets, shard())
    assert not total.requires_grad
    frozen = weight.detach()
    again, total = token_losses(hidden, frozen, targets, shard())
    assert torch.equal(again, losses)
    total.backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_bfloat16_is_as_close_as_one_product_would_be(monkeypatch):
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 1)
    exact = case()
    losses, total = by_torch(*exact, None)
    wanted = torch.autograd.grad(total, exact[:2])
    hidden, weight, targets = case(torch.bfloat16)
    found_losses, total = token_losses(hidden, weight, targets, shard())
    assert found_losses.dtype == torch.float32
    torch.testing.assert_close(found_losses.double(), losses, rtol=0.02, atol=0.05)
    for gradient, expected in zip(torch.autograd.grad(total, (hidden, weight)), wanted, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - expected).norm() < 0.02 * expected.norm()
