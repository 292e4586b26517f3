"""What a training step is fed.

Shape letters used throughout `optim`: B sequences of a batch, S target positions, V vocabulary, D domains, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B token sequences, right-padded to a common length.

    `tokens_BS` is (B, S+1) int64: positions 0..S-1 are the input, 1..S the targets. `mask_BS` is (B, S) float32,
    1 where the target counts and 0 on padding; a row may be masked everywhere. `domain_B` is (B,) int64, the
    domain of each row (-1: a row of the target set). `row_weight_B` is (B,) float32, the in-domain weight v_i,
    of mean 1 over the domain.
    """

    tokens_BS: Tensor
    mask_BS: Tensor
    domain_B: Tensor
    row_weight_B: Tensor

    @property
    def num_rows(self) -> int:
        """Number of sequences B."""
        return self.tokens_BS.shape[0]

    @property
    def num_targets_B(self) -> Tensor:
        """Target tokens of each row, (B,) float32."""
        return self.mask_BS.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class StepData:
    """Everything one step draws.

    `train` is seen by w and by u alike. `inclusion_D` is (D,) float32: the reciprocal of the probability with which
    the sampler put each domain into this batch, 0 for a domain that is not in it (all 1 when every domain is).
    """

    train: Batch
    target: Batch
    inclusion_D: Tensor


class BatchSource(Protocol):
    """Draws the data of a step as a pure function of the step number: the same on every rank and after a resume."""

    @property
    def domains(self) -> Sequence[str]:
        """Names of the D domains, in the order of every (D,) tensor."""

    def at(self, step: int) -> StepData:
        """The data of `step` ≥ 0."""


def concatenate(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches in one, padded to the longest."""
    width = max(batch.mask_BS.shape[1] for batch in batches)
    pad = torch.nn.functional.pad
    return Batch(
        tokens_BS=torch.cat([pad(b.tokens_BS, (0, width + 1 - b.tokens_BS.shape[1])) for b in batches]),
        mask_BS=torch.cat([pad(b.mask_BS, (0, width - b.mask_BS.shape[1])) for b in batches]),
        domain_B=torch.cat([b.domain_B for b in batches]),
        row_weight_B=torch.cat([b.row_weight_B for b in batches]),
    )
