"""Weigh a domain by what a model of the target thinks of it: RHO-loss, and the loss of a validation language model.

RHO-loss (arXiv 2206.07137): reducible is what a model of the mixture loses on a domain and one of held-out target rows
does not. The loss of the target's model alone is the perplexity filter of CCNet (arXiv 1911.00359). Both were made to
pick rows; here the scores of a domain are averaged, by the rule by which all weights move: exponentiated gradient with
a pull κ to the prior and rate η has its fixed point at p ∝ prior·exp(η(1 − κ)/κ · mean score), in units of the
usual score where the steps are (`data_weights`), the mean being over about the last 1/κ steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optim.backend import Backend, Copy, Term
from optim.batch import StepData
from optim.learners.learner import StepResult, compute_tokens, data_tokens, inclusion
from optim.objective import centred, domain_mean_losses, target_token_weights, train_token_weights


@dataclass(frozen=True, kw_only=True)
class Rho:
    """w trains on the prior mixture, u on the target; both all along, where the paper trains u to its end first."""

    uses_aux = True
    reference_steps = 0

    def step(
        self,
        backend: Backend,
        data: StepData,
        weights_D: Tensor,
        *,
        prior_D: Tensor,
        step: int,  # noqa: ARG002
        learning_rate: float,
    ) -> StepResult:
        """Move w along ∇L2(prior) and u along ∇L1; the gradient in p is −(ℓ(w) − ℓ(u))."""
        num_domains = weights_D.numel()
        train_B = train_token_weights(data.train, prior_D, data.inclusion_D.double())
        target_B = target_token_weights(data.target)
        loss_w_B, _ = backend.forward_backward(
            [
                Term(copy=Copy.MODEL, batch=data.train, token_weight_B=train_B.float()),
                Term(copy=Copy.AUX, batch=data.target, token_weight_B=target_B.float()),
            ]
        )
        loss_u_B = backend.losses(Copy.AUX, data.train)
        gap_D, tokens_D = domain_mean_losses(loss_w_B - loss_u_B, data.train, num_domains)
        return StepResult(
            weight_grad_D=-centred(gap_D, inclusion(data, tokens_D)),
            tokens_D=data_tokens(data, num_domains),
            compute_tokens=compute_tokens(data.train, data.target, forward_only=(data.train,)),
            gap_D=gap_D,
            train_loss=float(train_B @ loss_w_B),
            aux_train_loss=float(train_B @ loss_u_B),
            model_update=backend.update(Copy.MODEL, learning_rate=learning_rate),
            aux_update=backend.update(Copy.AUX, learning_rate=learning_rate),
        )


@dataclass(frozen=True, kw_only=True)
class ValidationLm:
    """w trains on the target alone."""

    uses_aux = False
    reference_steps = 0

    def step(
        self,
        backend: Backend,
        data: StepData,
        weights_D: Tensor,
        *,
        prior_D: Tensor,
        step: int,  # noqa: ARG002
        learning_rate: float,
    ) -> StepResult:
        """Move w along ∇L1; the gradient in p is ℓ(w)."""
        num_domains = weights_D.numel()
        target_B = target_token_weights(data.target)
        (val_sum_B,) = backend.forward_backward(
            [Term(copy=Copy.MODEL, batch=data.target, token_weight_B=target_B.float())],
        )
        loss_B = backend.losses(Copy.MODEL, data.train)
        loss_D, tokens_D = domain_mean_losses(loss_B, data.train, num_domains)
        return StepResult(
            weight_grad_D=centred(loss_D, inclusion(data, tokens_D)),
            tokens_D=data_tokens(data, num_domains),
            compute_tokens=compute_tokens(data.target, forward_only=(data.train,)),
            val_loss=float(target_B @ val_sum_B),
            train_loss=float(train_token_weights(data.train, prior_D, data.inclusion_D.double()) @ loss_B),
            model_update=backend.update(Copy.MODEL, learning_rate=learning_rate),
        )
