"""Output head and cross entropy in one, by chunks of tokens: the logits of a whole pack never exist.

Every token's weight in the objective is known before the forward pass, so the gradients are formed right there, while a
chunk of logits is still in the cache: nothing of vocabulary size is kept for the backward pass or computed twice.
Shapes: T tokens, V vocabulary rows of this tensor rank, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits that exist at a time; the GPU's figure is a guess, nothing was measured on one."""
_LEAST_TOKENS = 64


@dataclass(frozen=True)
class Targets:
    """What each token should predict, `labels_T` (T,) int64, and the weight of its loss, `token_weight_T` (T,)."""

    labels_T: Tensor
    token_weight_T: Tensor


@dataclass(frozen=True, kw_only=True)
class HeadShard:
    """This tensor rank's part of the vocabulary: `first_label` and on, of `vocab_size` in all (the rest is padding)."""

    first_label: int
    vocab_size: int
    softcap: float | None
    group: dist.ProcessGroup | None


def token_losses(hidden_TD: Tensor, weight_VD: Tensor, targets: Targets, shard: HeadShard) -> tuple[Tensor, Tensor]:
    """Cross entropy of softmax(hidden · weightᵀ) at the labels.

    `shard.softcap` c bends logits to c · tanh(logit / c). With a group, each tensor rank's gradient of `hidden_TD` is
    its part of a sum.

    Returns:
        (T,) losses in nats, float32, without a graph, and their weighted sum, a scalar that carries the gradients.
    """
    wants = torch.is_grad_enabled()
    losses_T, total = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_TD, weight_VD, targets, shard, wants and hidden_TD.requires_grad, wants and weight_VD.requires_grad
    )
    return losses_T, total


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets: Targets,
        shard: HeadShard,
        wants_hidden: bool,
        wants_weight: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden_TD.dtype, torch.float32)
        losses_T = torch.empty(len(hidden_TD), dtype=exact, device=hidden_TD.device)
        grad_hidden_TD = torch.empty_like(hidden_TD) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if wants_weight else None
        rows = max(_LEAST_TOKENS, CHUNK_ELEMENTS[hidden_TD.device.type] // len(weight_VD))
        for start in range(0, len(hidden_TD), rows):
            chunk = slice(start, start + rows)
            hidden_CD, weight_C = hidden_TD[chunk], targets.token_weight_T[chunk].to(exact)
            logits_CV = functional.linear(hidden_CD, weight_VD).to(exact)
            slope_CV = _bend(logits_CV, shard.softcap)
            labels_C, is_here_C = _local_labels(targets.labels_T[chunk], shard, len(weight_VD))
            losses_T[chunk], sum_C = _losses(logits_CV, labels_C, is_here_C, shard)
            if grad_hidden_TD is None and grad_weight_VD is None:
                continue
            grad_CV = logits_CV.mul_((weight_C / sum_C)[:, None])  # exp(logit − largest) until here
            grad_CV.scatter_add_(1, labels_C[:, None], torch.where(is_here_C, -weight_C, 0.0)[:, None])
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            grad_CV = grad_CV.to(hidden_CD.dtype)
            if grad_hidden_TD is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_TD[chunk])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_CV, hidden_CD)
        ctx.grad_hidden, ctx.grad_weight = grad_hidden_TD, grad_weight_VD
        ctx.dtype = weight_VD.dtype
        ctx.mark_non_differentiable(losses_T)
        return losses_T, (losses_T * targets.token_weight_T).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (ctx.grad_hidden, ctx.grad_weight)
        ctx.grad_hidden = ctx.grad_weight = None
        of_hidden, of_weight = (None if kept is None else kept.mul_(grad).to(ctx.dtype) for kept in grads)
        return of_hidden, of_weight, None, None, None, None


def _bend(logits_CV: Tensor, softcap: float | None) -> Tensor | None:
    """Bend the logits in place; their derivative in what they were."""
    if softcap is None:
        return None
    logits_CV.div_(softcap).tanh_()
    slope_CV = 1.0 - logits_CV.square()
    logits_CV.mul_(softcap)
    return slope_CV


def _local_labels(labels_C: Tensor, shard: HeadShard, num_rows: int) -> tuple[Tensor, Tensor]:
    """Row of each label in this shard (any row if it is elsewhere), and whether it is here."""
    local_C = labels_C - shard.first_label
    is_here_C = (local_C >= 0) & (local_C < num_rows)
    return local_C.clamp(0, num_rows - 1), is_here_C


def _losses(logits_CV: Tensor, labels_C: Tensor, is_here_C: Tensor, shard: HeadShard) -> tuple[Tensor, Tensor]:
    """Losses, and the softmax's denominator; `logits_CV` becomes its numerator, exp(logit − largest)."""
    logits_CV[:, max(0, shard.vocab_size - shard.first_label) :] = float("-inf")
    largest_C = logits_CV.amax(dim=1)
    if shard.group is not None:
        dist.all_reduce(largest_C, op=dist.ReduceOp.MAX, group=shard.group)
    logits_CV.sub_(largest_C[:, None])
    target_C = torch.where(is_here_C, logits_CV.gather(1, labels_C[:, None])[:, 0], 0.0)
    sums_2C = torch.stack((target_C, logits_CV.exp_().sum(dim=1)))
    if shard.group is not None:
        dist.all_reduce(sums_2C, group=shard.group)
    return sums_2C[1].log() - sums_2C[0], sums_2C[1]


def _add_product(total_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """total += gradᵀ · hidden, the sum over chunks in float32 whatever the dtype of the factors."""
    if grad_CV.dtype == total_VD.dtype:
        total_VD.addmm_(grad_CV.t(), hidden_CD)
    else:
        total_VD.add_(grad_CV.t() @ hidden_CD)
