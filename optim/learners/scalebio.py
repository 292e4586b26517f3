"""ScaleBiO: the penalty form of the bilevel problem, with two copies. Source: arXiv 2406.19976, algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optim.backend import Backend, Copy, Term
from optim.batch import StepData
from optim.learners.learner import StepResult, compute_tokens, data_tokens, inclusion
from optim.objective import domain_mean_losses, target_token_weights, train_token_weights, weight_grad


@dataclass(frozen=True, kw_only=True)
class ScaleBiO:
    """min_{λ,w} max_u L1(w) + α·(L2(λ,w) − L2(λ,u)); `penalty` is α.

    Every `branch_steps` steps w starts again from where u is (0: never, as in the paper). Far from convergence, w,
    which also learns from the target, runs ahead of u, and ℓ_d(w) − ℓ_d(u) then says how fast domain d is being
    learned rather than how much it helps; within a short branch it says the latter. Nor can w get to know the target
    by heart.
    """

    penalty: float = 1.0
    branch_steps: int = 0
    uses_aux = True
    reference_steps = 0

    def __post_init__(self) -> None:
        if self.penalty <= 0:
            raise ValueError(f"penalty={self.penalty} must be above 0")
        if self.branch_steps < 0:
            raise ValueError(f"branch_steps={self.branch_steps} must not be negative")

    def step(
        self,
        backend: Backend,
        data: StepData,
        weights_D: Tensor,
        *,
        prior_D: Tensor,  # noqa: ARG002
        step: int,
        learning_rate: float,
    ) -> StepResult:
        """Move w along ∇[L1 + α·L2] and u along ∇L2 on the same training batch; the gradient in p is α·(ℓ(w) − ℓ(u)).

        Both updates use AdamW with the same learning rate; AdamW is invariant to the scale α brings into w's gradient.
        """
        if self.branch_steps and step % self.branch_steps == 0:
            backend.restart(Copy.MODEL)
        num_domains = weights_D.numel()
        train_B = train_token_weights(data.train, weights_D, data.inclusion_D.double())
        target_B = target_token_weights(data.target)
        val_sum_B, loss_w_B, loss_u_B = backend.forward_backward(
            [
                Term(copy=Copy.MODEL, batch=data.target, token_weight_B=target_B.float()),
                Term(copy=Copy.MODEL, batch=data.train, token_weight_B=(self.penalty * train_B).float()),
                Term(copy=Copy.AUX, batch=data.train, token_weight_B=train_B.float()),
            ]
        )
        model_update = backend.update(Copy.MODEL, learning_rate=learning_rate)
        aux_update = backend.update(Copy.AUX, learning_rate=learning_rate)
        loss_w_D, tokens_D = domain_mean_losses(loss_w_B, data.train, num_domains)
        loss_u_D, _ = domain_mean_losses(loss_u_B, data.train, num_domains)
        return StepResult(
            weight_grad_D=weight_grad(loss_w_D, loss_u_D, self.penalty, inclusion(data, tokens_D)),
            tokens_D=data_tokens(data, num_domains),
            compute_tokens=compute_tokens(data.target, data.train, data.train),
            gap_D=loss_w_D - loss_u_D,
            val_loss=float(target_B @ val_sum_B),
            train_loss=float(train_B @ loss_w_B),
            aux_train_loss=float(train_B @ loss_u_B),
            model_update=model_update,
            aux_update=aux_update,
        )
