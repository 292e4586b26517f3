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
from torch.nn import functional

from optim.backend import Copy, Term
from optim.batch import Batch
from optim.mcore.device import megatron_warnings_dropped
from optim.mcore.head import Targets
from optim.mcore.model import Decoder
from optim.mcore.parallel import ProcessGroups
from optim.mcore.rows import PackedRows


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A pack: b whole rows of t tokens in all, one after the other, that go through one copy together.

    `inputs_T` and `positions_T` are (t,) int64, positions from 0 in every row; `mask_T` (t,) as in `Batch`; `targets`
    has the labels and each token's weight in the objective. `length_B` (b,) int64, longest first, sums to `num_tokens`,
    and what t has beyond fills the pack up. `rows` says the same to the attention. `slots_B` says where the rows'
    losses go among those of all terms.
    """

    copy: Copy
    inputs_T: Tensor
    targets: Targets
    positions_T: Tensor
    mask_T: Tensor
    length_B: Tensor
    rows: PackedRows
    slots_B: Tensor
    num_tokens: int


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

    def forward(self, micro_batch: MicroBatch) -> Any:
        """Token losses (t,) and their weighted sum on the last stage, hidden states on the others."""
        decoder = self.decoders[micro_batch.copy]
        decoder.set_input_tensor(self._input)
        return decoder(
            micro_batch.inputs_T[None],
            micro_batch.positions_T[None],
            None,
            labels=micro_batch.targets,
            packed_seq_params=micro_batch.rows,
        )


def split_terms(
    terms: Sequence[Term], groups: ProcessGroups, *, micro_batch_tokens: int, multiple: int, device: torch.device
) -> list[MicroBatch]:
    """This data-parallel rank's micro-batches of `terms`.

    Rows are dealt out by length, so that ranks get equal work, and packed. A row counts up to its last counted target;
    one without any is left out, its loss is 0. Packs are filled up to a `multiple` of tokens.
    """
    micro_batches: list[MicroBatch] = []
    first_slot = 0
    for term in terms:
        length_B = _lengths(term.batch.mask_BS)
        order_B = torch.argsort(length_B, descending=True, stable=True)
        mine_B = order_B[groups.data_rank :: groups.data_size]
        packs = _packs(mine_B[length_B[mine_B] > 0].tolist(), length_B.tolist(), micro_batch_tokens)
        micro_batches += [
            _micro_batch(term, torch.tensor(pack), length_B, first_slot, multiple, device) for pack in packs
        ]
        first_slot += term.batch.num_rows
    return micro_batches


def _packs(rows: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """`rows`, longest first, in packs of at most `capacity` tokens, first fit; a longer row is a pack of its own."""
    packs: list[list[int]] = []
    room: list[int] = []
    for row in rows:
        place = next((i for i, free in enumerate(room) if lengths[row] <= free), None)
        if place is None:
            packs.append([row])
            room.append(capacity - lengths[row])
        else:
            packs[place].append(row)
            room[place] -= lengths[row]
    return packs


def _micro_batch(
    term: Term, pack_B: Tensor, length_B: Tensor, first_slot: int, multiple: int, device: torch.device
) -> MicroBatch:
    length_B = length_B[pack_B]
    within_BS = torch.arange(int(length_B[0])) < length_B[:, None]
    row_T, position_T = within_BS.nonzero(as_tuple=True)
    row_T = pack_B[row_T]
    tokens_BS = term.batch.tokens_BS
    filling = -len(row_T) % multiple

    def filled(values_T: Tensor) -> Tensor:
        return functional.pad(values_T, (0, filling)).to(device)

    mask_T = term.batch.mask_BS[row_T, position_T]
    positions_T = filled(position_T)
    lengths = [*length_B.tolist(), filling] if filling else length_B.tolist()
    return MicroBatch(
        copy=term.copy,
        inputs_T=filled(tokens_BS[row_T, position_T]),
        targets=Targets(filled(tokens_BS[row_T, position_T + 1]), filled(term.token_weight_B[row_T] * mask_T)),
        positions_T=positions_T,
        mask_T=filled(mask_T),
        length_B=length_B.to(device),
        rows=PackedRows.of(lengths, positions_T),
        num_tokens=len(row_T),
        slots_B=first_slot + pack_B,
    )


def _lengths(mask_BS: Tensor) -> Tensor:
    """Positions up to each row's last counted target, (B,) int64."""
    position_S = torch.arange(1, mask_BS.shape[1] + 1)
    return ((mask_BS > 0) * position_S).amax(dim=1)


def run_schedule(
    copies: TwoCopies, micro_batches: Sequence[MicroBatch], *, forward_only: bool, by_token: bool = False
) -> list[Tensor]:
    """Run `micro_batches` forward, and backward unless `forward_only`, adding to the gradients.

    Returns:
        On the last stage each micro-batch's token losses summed by row, (b,) float64, or `by_token` each of them,
        (num_tokens,) float64, 0 where masked; elsewhere nothing.

    Collective: every rank of one replica, with the same micro-batches.
    """
    losses: list[Tensor] = []

    def forward_step(micro_batches: Iterator[MicroBatch], copies: TwoCopies) -> tuple[Any, Callable[..., Any]]:
        micro_batch = next(micro_batches)

        def weighted_loss(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            loss_T, total = found
            counted_T = torch.where(micro_batch.mask_T > 0, loss_T * micro_batch.mask_T, 0.0)
            counted_T = counted_T[: micro_batch.num_tokens].detach().double()
            losses.append(
                counted_T if by_token else torch.segment_reduce(counted_T, "sum", lengths=micro_batch.length_B)
            )
            num_tokens = torch.ones((), dtype=torch.int, device=total.device)  # of no consequence: nothing is divided
            return total, num_tokens, {}

        return copies(micro_batch), weighted_loss

    if micro_batches:
        with megatron_warnings_dropped():
            get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iter(micro_batches),
                model=copies,
                num_microbatches=len(micro_batches),
                seq_length=len(micro_batches[0].mask_T),
                micro_batch_size=1,
                forward_only=forward_only,
            )
    return losses


def gather_losses(
    losses: Sequence[Tensor],
    micro_batches: Sequence[MicroBatch],
    shape: tuple[int, ...],
    groups: ProcessGroups,
    device: torch.device,
) -> Tensor:
    """What `run_schedule` found, float64 on the CPU, on every rank: (slots,), or by token of one term (B, S).

    Collective: every rank of the world. Exact: each place is added to zeros only.
    """
    total = torch.zeros(shape, dtype=torch.float64, device=device)
    for found, micro_batch in zip(losses, micro_batches, strict=False):  # no losses but on the last stage
        slots_B = micro_batch.slots_B.to(device)
        if len(shape) == 1:
            total[slots_B] = found
        else:
            row_T = slots_B.repeat_interleave(micro_batch.length_B)
            total[row_T, micro_batch.positions_T[: micro_batch.num_tokens]] = found
    if groups.data_size > 1:
        dist.all_reduce(total, group=groups.data)
    if groups.num_stages > 1:
        dist.all_reduce(total, group=groups.pipeline)
    return total.cpu()


def evaluation_term(copy: Copy, batch: Batch) -> Term:
    """`batch` through `copy`, every row counted alike."""
    return Term(copy=copy, batch=batch, token_weight_B=torch.ones(batch.num_rows))
