"""SEAL: the penalty form of the bilevel problem without its second copy. Source: arXiv 2410.07471.

SEAL takes the lower level's least value for a constant and leaves its copy out. That saves a pass, and lets a domain
gain weight because its text is predictable rather than because it helps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optim.backend import Backend, Copy, Term
from optim.batch import StepData
from optim.learners.learner import StepResult, compute_tokens, data_tokens, inclusion
from optim.objective import centred, domain_mean_losses, target_token_weights, train_token_weights


@dataclass(frozen=True, kw_only=True)
class Seal:
    """min_{λ,w} L1(w) + α·L2(λ,w); `penalty` is α."""

    penalty: float = 1.0
    uses_aux = False
    reference_steps = 0

    def __post_init__(self) -> None:
        if self.penalty <= 0:
            raise ValueError(f"penalty={self.penalty} must be above 0")

    def step(
        self,
        backend: Backend,
        data: StepData,
        weights_D: Tensor,
        *,
        prior_D: Tensor,  # noqa: ARG002
        step: int,  # noqa: ARG002
        learning_rate: float,
    ) -> StepResult:
        """Move w along ∇[L1 + α·L2]; the gradient in p is α·ℓ(w)."""
        num_domains = weights_D.numel()
        train_B = train_token_weights(data.train, weights_D, data.inclusion_D.double())
        target_B = target_token_weights(data.target)
        val_sum_B, loss_B = backend.forward_backward(
            [
                Term(copy=Copy.MODEL, batch=data.target, token_weight_B=target_B.float()),
                Term(copy=Copy.MODEL, batch=data.train, token_weight_B=(self.penalty * train_B).float()),
            ]
        )
        update = backend.update(Copy.MODEL, learning_rate=learning_rate)
        loss_D, tokens_D = domain_mean_losses(loss_B, data.train, num_domains)
        return StepResult(
            weight_grad_D=centred(self.penalty * loss_D, inclusion(data, tokens_D)),
            tokens_D=data_tokens(data, num_domains),
            compute_tokens=compute_tokens(data.target, data.train),
            val_loss=float(target_B @ val_sum_B),
            train_loss=float(train_B @ loss_B),
            model_update=update,
        )
