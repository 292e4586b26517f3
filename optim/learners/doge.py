"""DoGE: weigh a domain by how its gradient aligns with the target's. Source: arXiv 2310.15393.

The paper moves p ∝ p·exp(η·W/μ) with W_d = ⟨∇ℓ_d, ∇ℓ_target⟩, which is exponentiated gradient; the rate of the data
weights stands for η/μ here. Its alignments come from one backward pass a domain, ours from two forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optim.backend import Backend
from optim.batch import StepData
from optim.learners.alignment import aligned_step
from optim.learners.learner import StepResult


@dataclass(frozen=True, kw_only=True)
class Doge:
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
        """Move w along ∇L2; the gradient in p is −⟨∇ℓ_d(w), ∇L1(w)⟩."""
        return aligned_step(
            backend,
            data,
            weights_D,
            learning_rate=learning_rate,
            distance=self.distance,
            preconditioned=False,
            scale=1.0,
        )
