"""A straight line through the parameters of one copy, along which its losses are probed. Shared by every backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Line:
    """θ(s) = θ₀ + s·v/‖v‖ for this rank's part of the active block of one copy.

    `norm` is ‖v‖ over the whole model, so that ∂ℓ/∂s · `norm` is ⟨∇ℓ, v⟩; where it is 0, θ stays at θ₀.
    """

    def __init__(self, parameters: list[Tensor], direction: list[Tensor], norm: float) -> None:
        self.norm = norm
        self._parameters = parameters
        self._direction = direction
        self._start = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def move(self, distance: float) -> None:
        """Put the parameters at s = `distance`, whatever s was before; 0 is θ₀ bit for bit."""
        if not self._parameters:  # a pipeline stage without a part of the block
            return
        torch._foreach_copy_(self._parameters, self._start)
        if distance and self.norm:
            torch._foreach_add_(self._parameters, self._direction, alpha=distance / self.norm)


def check_precision(dtype: torch.dtype) -> None:
    """Refuse parameters in which a small distance is rounded away.

    Raises:
        ValueError: `dtype` has less than float32's precision.
    """
    if torch.finfo(dtype).bits < 32:
        raise ValueError(
            f"losses along a line need parameters of float32 or more, these are {dtype}, which rounds small distances "
            "away; use float32, or a method that probes no line"
        )


@contextmanager
def open_line(parameters: list[Tensor], direction: list[Tensor], norm: float) -> Iterator[Line]:
    """A line whose parameters are back at θ₀, bit for bit, however the context is left."""
    line = Line(parameters, direction, norm)
    try:
        yield line
    finally:
        line.move(0.0)
