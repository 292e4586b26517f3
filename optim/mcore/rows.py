"""Where the rows of a pack are, and how rows of like length go through one call of a kernel.

Attention within rows of one length is one batched call, but real rows have dozens of lengths, and with short ones the
calls cost more than what they compute. So rows that follow each other in a pack share a call in a `Strip`: they are
padded on the right to its longest. That is exact under a causal mask. No row sees the padding behind it, what the
padding itself yields is dropped, and its gradients are zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

CALL_TOKENS = 64
"""A strip holds at most so many tokens of padding: about what another call would cost instead (bench_engine.py)."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """`num_rows` rows of `length` tokens each, padding included."""

    num_rows: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens, padding included."""
        return self.num_rows * self.length


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How the T tokens of a pack lie among the P ≥ T tokens of its strips.

    `token_P` (P,) int64 has the token of the pack at each place, at padding the last one of its row; `place_T` (T,)
    int64 each token's place.
    """

    token_P: Tensor
    place_T: Tensor

    def spread(self, x_T: Tensor) -> Tensor:
        """(T, …) → (P, …). Gradients of the padding are taken to be zeros."""
        apply: Callable[..., Tensor] = _Spread.apply
        return apply(x_T, self)

    def collect(self, x_P: Tensor) -> Tensor:
        """(P, …) → (T, …)."""
        apply: Callable[..., Tensor] = _Collect.apply
        return apply(x_P, self)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_T: Tensor, padding: Padding) -> Tensor:
        ctx.padding = padding
        return x_T.index_select(0, padding.token_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.padding.place_T), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_P: Tensor, padding: Padding) -> Tensor:
        ctx.padding, ctx.shape = padding, x_P.shape
        return x_P.index_select(0, padding.place_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].new_zeros(ctx.shape).index_copy_(0, ctx.padding.place_T, grads[0]), None


@dataclass(kw_only=True)
class PackedRows(PackedSeqParams):  # type: ignore[misc]
    """Where the rows of a pack of T tokens are: what either kind of attention has to know.

    `starts_B`, (rows + 1,) int32, has each row's first token and then T; `positions_T`, (T,) int64, each token's place
    in its row. `strips` are the kernel calls that go through all rows in their order, and `padding` how they hold the
    pack's tokens; None where all their rows are full.
    """

    longest: int
    starts_B: Tensor
    positions_T: Tensor
    strips: tuple[Strip, ...]
    padding: Padding | None

    @staticmethod
    def of(lengths: Sequence[int], positions_T: Tensor) -> PackedRows:
        """Rows of these lengths, in this order."""
        device = positions_T.device
        starts_B = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        strips = _strips(lengths)
        padding = None
        if sum(strip.num_tokens for strip in strips) > sum(lengths):
            padding = _padding(lengths, strips, device)
        return PackedRows(
            qkv_format="thd",
            longest=max(lengths),
            starts_B=starts_B.to(device),
            positions_T=positions_T,
            strips=strips,
            padding=padding,
        )


def _strips(lengths: Sequence[int]) -> tuple[Strip, ...]:
    """Strips of rows that follow each other: one more row joins while it is no longer and the padding stays small."""
    strips = []
    length = num_rows = padding = 0
    for row in lengths:
        padding += length - row
        if num_rows and (row > length or padding > CALL_TOKENS):
            strips.append(Strip(num_rows=num_rows, length=length))
            num_rows = 0
        if not num_rows:
            length, padding = row, 0
        num_rows += 1
    return (*strips, Strip(num_rows=num_rows, length=length))


def _padding(lengths: Sequence[int], strips: Sequence[Strip], device: torch.device) -> Padding:
    """In numpy, whose shapes may depend on values where a plan's tensors have none."""
    length_B = np.array(lengths)
    room_B = np.repeat([strip.length for strip in strips], [strip.num_rows for strip in strips])
    row_P = np.repeat(np.arange(len(room_B)), room_B)
    position_P = np.arange(len(row_P)) - (room_B.cumsum() - room_B)[row_P]
    token_P = (length_B.cumsum() - length_B)[row_P] + np.minimum(position_P, length_B[row_P] - 1)
    (place_T,) = np.nonzero(position_P < length_B[row_P])
    return Padding(token_P=torch.tensor(token_P, device=device), place_T=torch.tensor(place_T, device=device))
