"""SAMA: one-step implicit differentiation through an adaptive optimizer. Source: arXiv 2310.05674.

The hypergradient −∂(∇L2)/∂p · v, v = (∂u/∂g)·∇L1, with the base Jacobian taken for the identity and the optimizer's own
Jacobian ∂u/∂g for the diagonal lr/(√v̂ + eps): AdamW's moments are held. The finite difference goes over a distance of
0.01, as in DARTS (arXiv 1806.09055). Left out: the nudge of w along v that the paper adds to its step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optim.backend import Backend
from optim.batch import StepData
from optim.learners.alignment import aligned_step
from optim.learners.learner import StepResult


@dataclass(frozen=True, kw_only=True)
class Sama:
    """w trains on the mixture alone; `distance` is the step of the finite difference, in the norm of w."""

    distance: float = 0.01
    uses_aux = False
    reference_steps = 0

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
        """Move w along ∇L2; the gradient in p is −⟨∇ℓ_d(w), v⟩, v AdamW's step on ∇L1(w) alone."""
        return aligned_step(
            backend,
            data,
            weights_D,
            learning_rate=learning_rate,
            distance=self.distance,
            preconditioned=True,
            scale=learning_rate,
        )
