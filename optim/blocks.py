"""Which part of the model trains at a step: randomized block coordinates as a function of (seed, step).

The block is the same on every rank, the same after a resume, and the same for w and u: two different blocks would
put block noise into w − u. Source: LISA, arXiv 2403.17919; ScaleBiO §3, arXiv 2406.19976.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

EdgePolicy = Literal["always", "sampled", "frozen"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """The parameters that train: `layers` (global indices) and `edges` (embedding, final norm and output head)."""

    layers: frozenset[int]
    edges: bool


def check_block(block: Block, *, num_layers: int) -> None:
    """Check that `block` is a non-empty part of a model of `num_layers` layers.

    Raises:
        ValueError: if nothing would train, or a layer does not exist.
    """
    if not block.layers and not block.edges:
        raise ValueError("a block without layers and without edges leaves nothing to train")
    outside = sorted(layer for layer in block.layers if not 0 <= layer < num_layers)
    if outside:
        raise ValueError(f"block has layer {outside[0]}, but the model's layers are 0..{num_layers - 1}")


@dataclass(frozen=True, kw_only=True)
class BlockSchedule:
    """Draws the active block.

    `size` layers train at a time (0: all of them, no block coordinates), a new draw every `period` steps. `edges`
    says when embedding, final norm and head train: `always`, `sampled` (as one more block, drawn in turn with the
    layers), or `frozen`.
    """

    num_layers: int
    size: int = 0
    period: int = 5
    edges: EdgePolicy = "always"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.size <= self.num_layers:
            raise ValueError(f"block size {self.size} is outside 0..{self.num_layers}, the layers of the model")
        if self.period < 1:
            raise ValueError(f"block period {self.period} must be at least 1 step")

    def at(self, step: int) -> Block:
        """The block of `step`."""
        if self.size == 0 or self.size == self.num_layers:
            return Block(layers=frozenset(range(self.num_layers)), edges=self.edges != "frozen")
        rng = random.Random(f"block:{self.seed}:{step // self.period}")  # noqa: S311 - not for secrets
        if self.edges != "sampled":
            return Block(layers=frozenset(rng.sample(range(self.num_layers), self.size)), edges=self.edges == "always")
        drawn = rng.sample(range(self.num_layers + 1), self.size)
        return Block(layers=frozenset(d for d in drawn if d < self.num_layers), edges=self.num_layers in drawn)
