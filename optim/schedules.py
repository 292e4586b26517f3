"""Scalars as functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up to `peak`, then constant or a half cosine down to `final_fraction · peak` at `num_steps`.

    At `restart` all begins anew: the steps before it and those from it on are trainings of their own.
    """

    peak: float
    num_steps: int
    warmup_steps: int = 0
    shape: Literal["constant", "cosine"] = "cosine"
    final_fraction: float = 0.1
    restart: int = 0

    def at(self, step: int) -> float:
        """The learning rate of `step` in 0..num_steps-1."""
        first, last = (self.restart, self.num_steps) if step >= self.restart else (0, self.restart)
        return self._in_one(step - first, last - first)

    def _in_one(self, step: int, num_steps: int) -> float:
        """That of `step` of a training of `num_steps` steps."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * cosine)
