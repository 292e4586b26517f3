"""What the solver carries from step to step, apart from the two copies that the backend holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optim.data_weights import DataWeightState, initial_state


@dataclass(frozen=True, kw_only=True)
class SolverState:
    """The state after `step` steps.

    `average_D` is the mean of the `num_averaged` iterates of p since averaging began, `tokens_D` the target tokens
    drawn from each domain so far; (D,) float64. `pending` holds the gradients in p since λ last moved.
    """

    step: int
    data_weights: DataWeightState
    average_D: Tensor
    num_averaged: int
    tokens_D: Tensor
    pending: tuple[Tensor, ...] = ()

    @staticmethod
    def initial(prior_D: Tensor, start_D: Tensor | None = None, *, floor: float = 0.0) -> SolverState:
        """Before the first step: the weights are the prior, or `start_D`, and nothing has been drawn."""
        return SolverState(
            step=0,
            data_weights=initial_state(prior_D, start_D, floor=floor),
            average_D=(prior_D if start_D is None else start_D).double(),
            num_averaged=0,
            tokens_D=torch.zeros_like(prior_D, dtype=torch.float64),
        )

    def to_json(self) -> dict[str, Any]:
        """As values of JSON, whose numbers keep every bit of a float64."""
        logits = self.data_weights
        return {
            "step": self.step,
            "data_weights": {
                "logits_D": logits.logits_D.tolist(),
                "first_D": logits.first_D.tolist(),
                "second_D": logits.second_D.tolist(),
                "start_D": logits.start_D.tolist(),
                "num_updates": logits.num_updates,
            },
            "average_D": self.average_D.tolist(),
            "num_averaged": self.num_averaged,
            "tokens_D": self.tokens_D.tolist(),
            "pending": [gradient_D.tolist() for gradient_D in self.pending],
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> SolverState:
        """The inverse of `to_json`."""
        logits = values["data_weights"]
        return SolverState(
            step=values["step"],
            data_weights=DataWeightState(
                logits_D=_vector(logits["logits_D"]),
                first_D=_vector(logits["first_D"]),
                second_D=_vector(logits["second_D"]),
                start_D=_vector(logits.get("start_D", [0.0] * len(logits["second_D"]))),
                num_updates=logits["num_updates"],
            ),
            average_D=_vector(values["average_D"]),
            num_averaged=values["num_averaged"],
            tokens_D=_vector(values["tokens_D"]),
            pending=tuple(_vector(gradient) for gradient in values["pending"]),
        )


def _vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def averaged(average_D: Tensor, num_averaged: int, new_D: Tensor) -> Tensor:
    """The running mean of the iterates after one more."""
    return average_D + (new_D - average_D) / (num_averaged + 1)
