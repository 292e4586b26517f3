"""The closed-form gradients against autograd in float64, and the estimates against their definitions."""

from __future__ import annotations

import itertools

import pytest
import torch

from optim.batch import Batch, concatenate
from optim.objective import domain_mean_losses, logit_grad, target_token_weights, train_token_weights, weight_grad


def make_batch(domain, lengths, *, row_weight=None):
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).float()
    return Batch(
        tokens_BS=torch.zeros(len(lengths), width + 1, dtype=torch.int64),
        mask_BS=mask,
        domain_B=torch.tensor(domain),
        row_weight_B=torch.tensor(row_weight or [1.0] * len(lengths)),
    )


def test_weight_grad_and_logit_grad_equal_autograd():
    generator = torch.Generator().manual_seed(0)
    loss_w, loss_u, logits = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    ones = torch.ones(6, dtype=torch.float64)
    for penalty, floor in itertools.product((0.5, 10.0), (0.0, 0.05)):
        variable = logits.clone().requires_grad_()
        softmax = torch.softmax(variable, 0)
        p = floor + (1 - 6 * floor) * softmax
        value = penalty * p @ (loss_w - loss_u)
        (expected,) = torch.autograd.grad(value, variable)
        found = logit_grad(weight_grad(loss_w, loss_u, penalty, ones), torch.softmax(logits, 0), floor)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert abs(found.sum()) < 1e-12


def test_train_token_weights_add_up_to_the_weighted_domain_means():
    batch = make_batch([0, 0, 1, 2], [3, 5, 4, 2], row_weight=[0.5, 1.5, 1.0, 1.0])
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    loss_sum = torch.tensor([3.0, 7.0, 2.0, 5.0], dtype=torch.float64)
    mean, tokens = domain_mean_losses(loss_sum, batch, 3)
    by_hand = torch.tensor([(0.5 * 3 + 1.5 * 7) / (0.5 * 3 + 1.5 * 5), 2 / 4, 5 / 2], dtype=torch.float64)
    torch.testing.assert_close(mean, by_hand)
    torch.testing.assert_close(tokens, torch.tensor([9.0, 4.0, 2.0], dtype=torch.float64))
    weights = train_token_weights(batch, p, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(weights @ loss_sum, p @ by_hand)


def test_padding_does_not_change_the_weights():
    batch = make_batch([0, 1], [3, 2])
    padded = concatenate([batch, make_batch([1], [9])])
    p, ones = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(train_token_weights(batch, p, ones)[0], train_token_weights(padded, p, ones)[0])
    assert padded.mask_BS.shape == (3, 9)
    assert padded.num_targets_B.tolist() == [3, 2, 9]


def test_fully_masked_rows_count_for_nothing_and_give_no_nan():
    batch = make_batch([0, 1, 1], [2, 3, 1])
    batch.mask_BS[0] = 0
    batch.mask_BS[2] = 0
    weights = train_token_weights(batch, torch.tensor([0.4, 0.6]).double(), torch.ones(2).double())
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.2, 0.0], dtype=torch.float64))
    mean, tokens = domain_mean_losses(torch.tensor([0.0, 6.0, 0.0]), batch, 2)
    assert mean.tolist() == [0.0, 2.0]
    assert tokens.tolist() == [0.0, 3.0]
    assert target_token_weights(batch).tolist() == pytest.approx([0.0, 1 / 3, 0.0])


def test_subset_of_domains_is_an_unbiased_estimate():
    """Averaged over every subset of 2 of 4 domains, with π⁻¹ = 2, the loss is that of all domains.

    So is the gradient, up to a constant and a factor: a step's level has a part of each domain's own score in it.
    """
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    loss_w, loss_u = torch.tensor([[1.0, 3.0, 2.0, 5.0], [2.0, 1.0, 2.5, 4.0]], dtype=torch.float64)
    total, grad = 0.0, torch.zeros(4, dtype=torch.float64)
    subsets = list(itertools.combinations(range(4), 2))
    for subset in subsets:
        inclusion = torch.zeros(4, dtype=torch.float64)
        inclusion[list(subset)] = 2.0
        batch = make_batch(list(subset), [3, 5])
        weights = train_token_weights(batch, p, inclusion)
        total += float(weights @ (loss_w[list(subset)] * torch.tensor([3.0, 5.0])))
        grad += weight_grad(loss_w, loss_u, 1.0, inclusion)
    assert total / len(subsets) == pytest.approx(float(p @ loss_w))
    gap = loss_w - loss_u
    torch.testing.assert_close(grad / len(subsets), (1 - 1 / 2) / (1 - 1 / 4) * (gap - gap.mean()))


def test_a_level_that_all_domains_share_moves_none_of_them():
    """Whichever domains a step has; without the level taken off the two in it would get 2·.7 and the others 0."""
    loss = torch.tensor([1.0, 3.0, 2.0, 5.0], dtype=torch.float64)
    inclusion = torch.tensor([2.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(weight_grad(loss + 0.7, loss, 10.0, inclusion), torch.zeros(4, dtype=torch.float64))
