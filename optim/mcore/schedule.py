"""The terms of both copies in one pipeline schedule.

w's and u's micro-batches follow each other through the stages without a gap, so a step has one pipeline bubble
instead of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from optim.backend import Copy, Term
from optim.batch import Batch
from optim.mcore.device import megatron_warnings_dropped
from optim.mcore.model import Decoder
from optim.mcore.parallel import ProcessGroups


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that go through one copy together.

    `tokens_BS` is (b, s+1), `mask_BS` (b, s), `token_weight_B` (b,) as in `Term`. `slots_B` says where the rows'
    losses go among those of all terms.
    """

    copy: Copy
    tokens_BS: Tensor
    mask_BS: Tensor
    token_weight_B: Tensor
    slots_B: Tensor


class TwoCopies(torch.nn.Module):
    """This stage of w and of u, as the one module that a schedule drives."""

    def __init__(self, decoders: Mapping[Copy, Decoder]) -> None:
        super().__init__()
        self.decoders = dict(decoders)  # the schedule needs no module registration
        self.config = decoders[Copy.MODEL].config
        self.model_type = decoders[Copy.MODEL].model_type
        self._input: Any = None

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Keep the previous stage's output for the copy that the next forward pass names."""
        self._input = input_tensor

    def forward(self, copy: Copy, tokens_BS: Tensor) -> Tensor:
        """Token losses (b, s) on the last stage, hidden states on the others."""
        decoder = self.decoders[copy]
        decoder.set_input_tensor(self._input)
        inputs_BS, labels_BS = tokens_BS[:, :-1], tokens_BS[:, 1:].contiguous()
        positions_BS = torch.arange(inputs_BS.shape[1], device=tokens_BS.device).expand_as(inputs_BS)
        out: Tensor = decoder(inputs_BS, positions_BS, None, labels=labels_BS)
        return out


def split_terms(
    terms: Sequence[Term], groups: ProcessGroups, *, micro_batch_rows: int, device: torch.device
) -> list[MicroBatch]:
    """This data-parallel rank's micro-batches of `terms`.

    Rows are dealt out by length, so that ranks get equal work and rows of a micro-batch are of like length; each
    micro-batch is cut to its longest row. No row is padded in: a rank with fewer rows has fewer micro-batches.
    """
    micro_batches = []
    first_slot = 0
    for term in terms:
        length_B = _lengths(term.batch.mask_BS)
        order_B = torch.argsort(length_B, descending=True, stable=True)
        mine_B = order_B[groups.data_rank :: groups.data_size]
        for rows_B in torch.split(mine_B, micro_batch_rows) if len(mine_B) else ():
            length = max(1, int(length_B[rows_B].max()))
            micro_batches.append(
                MicroBatch(
                    copy=term.copy,
                    tokens_BS=term.batch.tokens_BS[rows_B, : length + 1].to(device),
                    mask_BS=term.batch.mask_BS[rows_B, :length].to(device),
                    token_weight_B=term.token_weight_B[rows_B].to(device),
                    slots_B=first_slot + rows_B,
                )
            )
        first_slot += term.batch.num_rows
    return micro_batches


def _lengths(mask_BS: Tensor) -> Tensor:
    """Positions up to each row's last counted target, (B,) int64."""
    position_S = torch.arange(1, mask_BS.shape[1] + 1)
    return ((mask_BS > 0) * position_S).amax(dim=1)


def run_schedule(copies: TwoCopies, micro_batches: Sequence[MicroBatch], *, forward_only: bool) -> list[Tensor]:
    """Run `micro_batches` forward, and backward unless `forward_only`, adding to the gradients.

    Returns:
        On the last stage each micro-batch's summed token losses, (b,) float64; elsewhere nothing.

    Collective: every rank of one replica, with the same micro-batches.
    """
    losses: list[Tensor] = []

    def forward_step(micro_batches: Iterator[MicroBatch], copies: TwoCopies) -> tuple[Tensor, Callable[..., Any]]:
        micro_batch = next(micro_batches)

        def weighted_loss(loss_BS: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            counted_BS = torch.where(micro_batch.mask_BS > 0, loss_BS * micro_batch.mask_BS, 0.0)
            loss_B = counted_BS.sum(dim=1, dtype=torch.float64)
            losses.append(loss_B.detach())
            num_tokens = torch.ones((), dtype=torch.int, device=loss_B.device)  # of no consequence: nothing is divided
            return (loss_B * micro_batch.token_weight_B).sum(), num_tokens, {}

        return copies(micro_batch.copy, micro_batch.tokens_BS), weighted_loss

    if micro_batches:
        rows, width = micro_batches[0].mask_BS.shape
        with megatron_warnings_dropped():
            get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iter(micro_batches),
                model=copies,
                num_microbatches=len(micro_batches),
                seq_length=width,
                micro_batch_size=rows,
                forward_only=forward_only,
            )
    return losses


def gather_losses(
    losses: Sequence[Tensor],
    micro_batches: Sequence[MicroBatch],
    num_slots: int,
    groups: ProcessGroups,
    device: torch.device,
) -> Tensor:
    """Row losses of all terms, (slots,) float64 on the CPU, on every rank.

    Collective: every rank of the world. Exact: each slot is added to zeros only.
    """
    total = torch.zeros(num_slots, dtype=torch.float64, device=device)
    for loss_B, micro_batch in zip(losses, micro_batches, strict=False):  # no losses but on the last stage
        total[micro_batch.slots_B.to(device)] = loss_B
    if groups.data_size > 1:
        dist.all_reduce(total, group=groups.data)
    if groups.num_stages > 1:
        dist.all_reduce(total, group=groups.pipeline)
    return total.cpu()


def evaluation_term(copy: Copy, batch: Batch) -> Term:
    """`batch` through `copy`, every row counted alike."""
    return Term(copy=copy, batch=batch, token_weight_B=torch.ones(batch.num_rows))
