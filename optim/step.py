"""One step of ScaleBiO: three forward-backward passes, two optimizer updates, and the gradient in the data weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optim.backend import Backend, Copy, Term, UpdateReport
from optim.batch import StepData
from optim.objective import domain_mean_losses, target_token_weights, train_token_weights, weight_grad


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step saw, before its updates.

    `weight_grad_D` is ∂/∂p, `gap_D` = ℓ(w) − ℓ(u) and `tokens_D` the target tokens of each domain, all (D,) float64;
    losses in nats per token.
    """

    weight_grad_D: Tensor
    gap_D: Tensor
    tokens_D: Tensor
    val_loss: float
    train_loss: float
    aux_train_loss: float
    model_update: UpdateReport
    aux_update: UpdateReport


def bilevel_step(
    backend: Backend, data: StepData, weights_D: Tensor, *, penalty: float, learning_rate: float
) -> StepResult:
    """Move w along ∇[L1 + α·L2] and u along ∇L2 on the same training batch, and report g_p.

    Both updates use AdamW with the same learning rate; AdamW is invariant to the scale α brings into w's gradient.
    Collective: every rank, with equal arguments.
    """
    num_domains = weights_D.numel()
    inclusion_D = data.inclusion_D.double()
    train_B = train_token_weights(data.train, weights_D, inclusion_D)
    target_B = target_token_weights(data.target)
    val_sum_B, loss_w_B, loss_u_B = backend.forward_backward(
        [
            Term(copy=Copy.MODEL, batch=data.target, token_weight_B=target_B.float()),
            Term(copy=Copy.MODEL, batch=data.train, token_weight_B=(penalty * train_B).float()),
            Term(copy=Copy.AUX, batch=data.train, token_weight_B=train_B.float()),
        ]
    )
    model_update = backend.update(Copy.MODEL, learning_rate=learning_rate)
    aux_update = backend.update(Copy.AUX, learning_rate=learning_rate)
    loss_w_D, tokens_D = domain_mean_losses(loss_w_B, data.train, num_domains)
    loss_u_D, _ = domain_mean_losses(loss_u_B, data.train, num_domains)
    present_D = torch.where(tokens_D > 0, inclusion_D, 0.0)
    return StepResult(
        weight_grad_D=weight_grad(loss_w_D, loss_u_D, penalty, present_D),
        gap_D=loss_w_D - loss_u_D,
        tokens_D=data_tokens(data, num_domains),
        val_loss=float(target_B @ val_sum_B),
        train_loss=float(train_B @ loss_w_B),
        aux_train_loss=float(train_B @ loss_u_B),
        model_update=model_update,
        aux_update=aux_update,
    )


def data_tokens(data: StepData, num_domains: int) -> Tensor:
    """Target tokens of each domain in the training batch, (D,) float64."""
    tokens_D = torch.zeros(num_domains, dtype=torch.float64)
    return tokens_D.index_add_(0, data.train.domain_B, data.train.num_targets_B.double())
