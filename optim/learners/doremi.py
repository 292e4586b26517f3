"""DoReMi: weigh a domain by how much of its loss a model could still lose. Source: arXiv 2305.10429, algorithm 1.

A reference is trained on the prior mixture first, then a proxy on weights that climb its clipped excess loss over the
reference (group DRO). No target takes part. As against the paper: the excess is clipped by row, not by token; p moves
after the proxy's update rather than before; its smoothing is `floor`, and not fed back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optim.backend import Backend, Copy, Term
from optim.batch import StepData
from optim.learners.learner import StepResult, compute_tokens, data_tokens, inclusion
from optim.objective import centred, domain_mean_losses, train_token_weights


@dataclass(frozen=True, kw_only=True)
class DoReMi:
    """u is the reference and trains in the first `reference_steps` steps, w is the proxy and trains after them."""

    reference_steps: int
    uses_aux = True

    def step(
        self,
        backend: Backend,
        data: StepData,
        weights_D: Tensor,
        *,
        prior_D: Tensor,
        step: int,
        learning_rate: float,
    ) -> StepResult:
        """The reference's step, or the proxy's, whose gradient in p is −max(ℓ(w) − ℓ(u), 0)."""
        if step < self.reference_steps:
            return self._train_reference(backend, data, prior_D, learning_rate)
        return self._train_proxy(backend, data, weights_D, learning_rate)

    def _train_reference(self, backend: Backend, data: StepData, prior_D: Tensor, learning_rate: float) -> StepResult:
        train_B = train_token_weights(data.train, prior_D, data.inclusion_D.double())
        (loss_B,) = backend.forward_backward([Term(copy=Copy.AUX, batch=data.train, token_weight_B=train_B.float())])
        return StepResult(
            weight_grad_D=torch.zeros_like(prior_D, dtype=torch.float64),
            tokens_D=data_tokens(data, prior_D.numel()),
            compute_tokens=compute_tokens(data.train),
            aux_train_loss=float(train_B @ loss_B),
            aux_update=backend.update(Copy.AUX, learning_rate=learning_rate),
        )

    def _train_proxy(self, backend: Backend, data: StepData, weights_D: Tensor, learning_rate: float) -> StepResult:
        num_domains = weights_D.numel()
        train_B = train_token_weights(data.train, weights_D, data.inclusion_D.double())
        (loss_w_B,) = backend.forward_backward(
            [Term(copy=Copy.MODEL, batch=data.train, token_weight_B=train_B.float())]
        )
        loss_u_B = backend.losses(Copy.AUX, data.train)
        gap_D, tokens_D = domain_mean_losses(loss_w_B - loss_u_B, data.train, num_domains)
        excess_D, _ = domain_mean_losses((loss_w_B - loss_u_B).clamp_min(0.0), data.train, num_domains)
        return StepResult(
            weight_grad_D=-centred(excess_D, inclusion(data, tokens_D)),
            tokens_D=data_tokens(data, num_domains),
            compute_tokens=compute_tokens(data.train, forward_only=(data.train,)),
            gap_D=gap_D,
            train_loss=float(train_B @ loss_w_B),
            aux_train_loss=float(train_B @ loss_u_B),
            model_update=backend.update(Copy.MODEL, learning_rate=learning_rate),
        )
