"""What the solver carries from step to step, apart from the two copies that the backend holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optim.data_weights import DataWeightState, initial_state


@dataclass(frozen=True, kw_only=True)
class SolverState:
    """The state after `step` steps.

    `average_D` is the mean of the `num_averaged` iterates of p since averaging began, `tokens_D` the target tokens
    drawn from each domain so far; (D,) float64.
    """

    step: int
    data_weights: DataWeightState
    average_D: Tensor
    num_averaged: int
    tokens_D: Tensor

    @staticmethod
    def initial(prior_D: Tensor) -> SolverState:
        """Before the first step: the weights are the prior, nothing has been drawn."""
        return SolverState(
            step=0,
            data_weights=initial_state(prior_D),
            average_D=prior_D.double(),
            num_averaged=0,
            tokens_D=torch.zeros_like(prior_D, dtype=torch.float64),
        )


def averaged(average_D: Tensor, num_averaged: int, new_D: Tensor) -> Tensor:
    """The running mean of the iterates after one more."""
    return average_D + (new_D - average_D) / (num_averaged + 1)
