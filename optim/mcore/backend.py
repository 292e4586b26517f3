"""The Megatron-Core backend: two copies of one model over tensor × pipeline × data parallel workers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from optim import pretrained
from optim.backend import AdamWSettings, BackendInfo, Copy, ModelSource, Term, UpdateReport
from optim.batch import Batch
from optim.block_adamw import AdamWState, BlockAdamW, clip_factor
from optim.blocks import Block, check_block
from optim.checkpoint import write_index, write_shards, write_synced
from optim.errors import DivergedError
from optim.layout import Layout, check_layout_fits_model
from optim.line import Line, check_precision, open_line
from optim.mcore import parallel, schedule
from optim.mcore.block import set_active
from optim.mcore.config import DecoderConfig, decoder_config
from optim.mcore.device import (
    fast_float32_matmul,
    megatron_on_this_device,
    megatron_warnings_dropped,
    pick_device,
)
from optim.mcore.model import Decoder
from optim.mcore.parallel import ProcessGroups
from optim.mcore.weights import WeightMap, over_stages


@contextmanager
def mcore_backend(
    source: ModelSource,
    *,
    layout: Layout,
    optimizer: AdamWSettings,
    micro_batch_tokens: int,
    dtype: str = "float32",
    recompute: bool = False,
) -> Iterator[McoreBackend]:
    """A running `McoreBackend`; everything it set up in this process is undone on exit.

    Uses the torch.distributed world that is there; without one, a world of this process alone. `dtype` is
    float32 or bfloat16 (then with a float32 master copy of the active block). `micro_batch_tokens` go through the model
    at a time. `recompute` saves most activations for a second forward pass of the layers that carry gradients.

    Collective: every rank, with equal arguments.

    Raises:
        LayoutError: if the layout does not divide the model or is not the size of the world.
        ModelError: if the model is of an unsupported family or its folder is not what its configuration says.
    """
    hf = pretrained.model_config(source.hf_config)
    check_layout_fits_model(layout, hf.to_dict())
    config = decoder_config(
        hf, layout, pretrained.torch_dtype(dtype, allowed=("float32", "bfloat16")), recompute=recompute
    )
    with (
        megatron_on_this_device(),
        fast_float32_matmul(),
        parallel.process_world(),
        parallel.model_parallel(layout) as groups,
    ):
        yield McoreBackend(
            source, config, groups, optimizer=optimizer, micro_batch_tokens=micro_batch_tokens, layout=layout
        )


class McoreBackend:
    """Two copies of one model on Megatron-Core (see `optim.backend.Backend`); made by `mcore_backend`.

    Every rank is given whole batches and takes its own part of them.
    """

    def __init__(
        self,
        source: ModelSource,
        config: DecoderConfig,
        groups: ProcessGroups,
        *,
        layout: Layout,
        optimizer: AdamWSettings,
        micro_batch_tokens: int,
    ) -> None:
        self._config = config
        self._groups = groups
        self._layout = layout
        self._settings = optimizer
        self._hf_config = pretrained.model_config(source.hf_config).to_json_string()
        self._micro_batch_tokens = micro_batch_tokens
        self._device = pick_device()
        self._weights = WeightMap(config, groups)
        self._decoders = {copy: self._load_decoder(source) for copy in Copy}
        self._copies = schedule.TwoCopies(self._decoders)
        self._optimizers = {copy: BlockAdamW(optimizer) for copy in Copy}
        self._active: dict[Copy, dict[str, torch.nn.Parameter]] = {}
        self._num_parameters = self._count_parameters()
        self.set_block(Block(layers=frozenset(range(config.num_layers)), edges=True))

    @property
    def info(self) -> BackendInfo:
        """What is running where."""
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return BackendInfo(
            name="megatron-core",
            num_layers=self._config.num_layers,
            num_parameters=self._num_parameters,
            layout=str(self._layout),
            device=name,
            versions={name: version(name) for name in ("torch", "transformers", "megatron-core")},
        )

    def set_block(self, block: Block) -> None:
        """Let exactly `block` train, in both copies."""
        check_block(block, num_layers=self._config.num_layers)
        for copy, decoder in self._decoders.items():
            self._active[copy] = set_active(decoder, block)
            self._optimizers[copy].activate(self._active[copy])

    def forward_backward(self, terms: Sequence[Term]) -> list[Tensor]:
        """Add the gradient of the sum of `terms`; return each term's summed token losses, (B,) float64.

        Raises:
            DivergedError: on all ranks, if a loss is not finite.
        """
        return self._run(terms, forward_only=False)

    def losses(self, copy: Copy, batch: Batch) -> Tensor:
        """Summed token losses of one copy, (B,) float64, without gradients.

        Raises:
            DivergedError: on all ranks, if a loss is not finite.
        """
        with torch.no_grad():
            return self._run([schedule.evaluation_term(copy, batch)], forward_only=True)[0]

    @torch.no_grad()
    def token_losses(self, copy: Copy, batch: Batch) -> Tensor:
        """Token losses of one copy, (B, S) float64, 0 where masked, without gradients.

        Raises:
            DivergedError: on all ranks, if a loss is not finite.
        """
        terms = [schedule.evaluation_term(copy, batch)]
        losses_BS = self._pass(terms, forward_only=True, shape=tuple(batch.mask_BS.shape))
        _check_finite(losses_BS.sum(dim=1), terms)
        return losses_BS

    def update(self, copy: Copy, *, learning_rate: float) -> UpdateReport:
        """Clip, take one AdamW step on the active block of `copy`, and clear its gradients.

        Raises:
            DivergedError: on all ranks, if the gradient norm is not finite.
        """
        norm = self._finite_norm(copy, self._complete_gradients(copy))
        factor = clip_factor(norm, self._settings.max_grad_norm)
        self._optimizers[copy].update(learning_rate, grad_scale=factor)
        self._clear_gradients(copy)
        return UpdateReport(grad_norm=norm, clipped=factor < 1.0)

    @contextmanager
    def line(self, copy: Copy, *, preconditioned: bool = False) -> Iterator[Line]:
        """The line through `copy` along its gradient (see `optim.backend.Backend.line`)."""
        check_precision(self._config.params_dtype)
        gradients = self._complete_gradients(copy)
        direction = self._optimizers[copy].precondition() if preconditioned else gradients
        self._clear_gradients(copy)
        norm = self._finite_norm(copy, direction)
        with open_line(list(self._active[copy].values()), list(direction.values()), norm) as line:
            yield line

    @torch.no_grad()
    def restart(self, copy: Copy) -> None:
        """Make `copy` equal to the other one, with its AdamW moments; nothing is communicated."""
        torch._foreach_copy_(list(self._decoders[copy].parameters()), list(self._decoders[copy.other].parameters()))
        self._optimizers[copy].adopt(self._optimizers[copy.other])

    @torch.no_grad()
    def distance(self) -> float:
        """‖w − u‖₂ over all parameters."""
        aux = self._decoders[Copy.AUX].named_global_parameters()
        differences = (w - aux[name] for name, w in self._counted_parameters())
        return parallel.global_norm(differences, self._groups)

    def parameters(self, copy: Copy) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor on the CPU) of every parameter of `copy`; exhaust it on every rank."""
        decoder = self._decoders[copy]
        local = self._weights.full_tensors(decoder, decoder.named_global_parameters())
        for name, tensor in over_stages(local, self._groups):
            yield name, tensor.clone()

    def save(self, folder: Path) -> None:
        """Write both copies and their optimizers' states, each stage its own files (see `Backend.save`)."""
        if self._groups.data_rank == 0:
            for copy, decoder in self._decoders.items():
                whole = self._weights.full_tensors(decoder, decoder.named_global_parameters())
                self._write(folder / copy, whole)
                if self._is_first_rank:
                    write_synced(folder / copy / "config.json", self._hf_config)
            self._write(folder / "optimizer", self._moments())
            ages = self._over_stages(self._ages())
            if self._is_first_rank:
                write_synced(folder / "optimizer" / pretrained.AGES, json.dumps(ages))

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, in whatever layout it did."""
        moments = pretrained.FolderTensors(folder / "optimizer")
        ages = pretrained.read_ages(folder / "optimizer")
        for copy, decoder in self._decoders.items():
            self._weights.load(decoder, pretrained.FolderTensors(folder / copy).read)
            for name, parameter in decoder.named_global_parameters().items():
                stored = self._weights.names_of(name)[0]
                age = ages.get(f"{copy}.{stored}")
                if age is not None:
                    state = self._read_state(copy, name, parameter, moments, age["step"])
                    if age["parked"] and self._settings.moments_on_switch == "offload":
                        state = state.to(torch.device("cpu"))
                    self._optimizers[copy].restore(name, state, parked=age["parked"])

    def _read_state(
        self, copy: Copy, name: str, parameter: torch.nn.Parameter, moments: pretrained.FolderTensors, step: int
    ) -> AdamWState:
        """This rank's part of the moments of a parameter."""

        def part(kind: str) -> Tensor:
            out = torch.empty_like(parameter, dtype=torch.float32, requires_grad=False)
            self._weights.fill(
                name, parameter, out, lambda stored, shape: moments.read(f"{copy}.{kind}.{stored}", shape)
            )
            return out

        has_master = f"{copy}.master.{self._weights.names_of(name)[0]}" in moments
        return AdamWState(step, part("first"), part("second"), part("master") if has_master else None)

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        """(copy.kind.tensor, full moment) of this stage; every tensor rank yields them all."""
        for copy, optimizer in self._optimizers.items():
            for name, state, _ in optimizer.states():
                for kind, moment in state.moments():
                    local = {name: moment.to(self._device)}
                    for hf_name, full in self._weights.full_tensors(self._decoders[copy], local):
                        yield f"{copy}.{kind}.{hf_name}", full

    def _ages(self) -> dict[str, dict[str, object]]:
        return {
            f"{copy}.{hf_name}": {"step": state.step, "parked": place == "parked"}
            for copy, optimizer in self._optimizers.items()
            for name, state, place in optimizer.states()
            for hf_name in self._weights.names_of(name)
        }

    def _write(self, folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write this stage's tensors; the first rank adds the index of all stages."""
        if self._groups.tensor_rank == 0:
            file_of = write_shards(folder, f"stage-{self._groups.stage:03d}", tensors)
        else:
            file_of = dict.fromkeys((name for name, _ in tensors), "")
        whole = self._over_stages(file_of)
        if self._is_first_rank:
            write_index(folder, whole)

    def _over_stages(self, local: dict[str, Any]) -> dict[str, Any]:
        """The entries of every stage of this rank's pipeline."""
        parts: list[dict[str, Any]] = [{} for _ in range(self._groups.num_stages)]
        dist.all_gather_object(parts, local, group=self._groups.pipeline)
        return {name: value for part in parts for name, value in part.items()}

    @property
    def _is_first_rank(self) -> bool:
        groups = self._groups
        return groups.tensor_rank == groups.data_rank == groups.stage == 0

    def _load_decoder(self, source: ModelSource) -> Decoder:
        with torch.random.fork_rng(devices=[]), megatron_warnings_dropped():
            decoder: Decoder = Decoder(self._config, self._groups).to(self._device)
        if source.folder is not None:
            folder = pretrained.FolderTensors(source.folder)
            self._weights.load(decoder, folder.read)
            pretrained.check_none_left(source.folder, self._left_on_every_stage(folder), tied=self._config.tied)
        else:
            initial = pretrained.InitialTensors(
                seed=source.seed, num_layers=int(self._config.num_layers), norm_offset=self._config.norm_plus_one
            )
            self._weights.load(decoder, initial.read)
        return decoder

    def _left_on_every_stage(self, folder: pretrained.FolderTensors) -> set[str]:
        """Tensors of `folder` that no stage has read."""
        unread: list[set[str]] = [set() for _ in range(self._groups.num_stages)]
        dist.all_gather_object(unread, folder.unread, group=self._groups.pipeline)
        return set.intersection(*unread)

    def _complete_gradients(self, copy: Copy) -> dict[str, Tensor]:
        """The gradients of the active block, summed over the ranks that share it; all of them on every rank."""
        active = self._active[copy]
        parallel.sync_gradients(active, self._groups, tied=self._config.tied)
        return {name: parameter.grad for name, parameter in active.items() if parameter.grad is not None}

    def _clear_gradients(self, copy: Copy) -> None:
        for parameter in self._active[copy].values():
            parameter.grad = None

    def _finite_norm(self, copy: Copy, gradients: Mapping[str, Tensor]) -> float:
        """Norm over the whole model; every rank has the same, so all raise together."""
        active, tied = self._active[copy], self._config.tied
        counted = (
            gradient
            for name, gradient in gradients.items()
            if parallel.is_counted_here(name, active[name], self._groups, tied=tied)
        )
        norm = parallel.global_norm(counted, self._groups)
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient norm of {copy} is {norm}", hint="lower its learning rate or the penalty")
        return norm

    def _run(self, terms: Sequence[Term], *, forward_only: bool) -> list[Tensor]:
        """The summed token losses of the rows of each term, (B,) float64, on every rank."""
        num_rows = [term.batch.num_rows for term in terms]
        total = self._pass(terms, forward_only=forward_only, shape=(sum(num_rows),))
        _check_finite(total, terms)
        return list(torch.split(total, num_rows))

    def _pass(self, terms: Sequence[Term], *, forward_only: bool, shape: tuple[int, ...]) -> Tensor:
        """What `terms` lose: by row of all of them, (rows,), or by token of the only one, (B, S); on every rank."""
        for term in terms:
            pretrained.check_batch(
                term.batch, vocab_size=self._config.vocab_size, max_positions=self._config.max_positions
            )
        micro_batches = schedule.split_terms(
            terms,
            self._groups,
            micro_batch_tokens=self._micro_batch_tokens,
            multiple=self._layout.tensor_parallel if self._layout.sequence_parallel else 1,
            device=self._device,
        )
        losses = schedule.run_schedule(self._copies, micro_batches, forward_only=forward_only, by_token=len(shape) == 2)
        return schedule.gather_losses(losses, micro_batches, shape, self._groups, self._device)

    def _counted_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters of w that this rank counts in sums over one whole model."""
        for name, parameter in self._decoders[Copy.MODEL].named_global_parameters().items():
            if parallel.is_counted_here(name, parameter, self._groups, tied=self._config.tied):
                yield name, parameter

    def _count_parameters(self) -> int:
        """Elements of the whole model, a tied embedding once."""
        decoder = self._decoders[Copy.MODEL]
        total = torch.tensor(self._weights.num_elements(decoder), dtype=torch.int64, device=self._device)
        dist.all_reduce(total, group=self._groups.pipeline)
        return int(total)


def _check_finite(loss_N: Tensor, terms: Sequence[Term]) -> None:
    """Every rank has the same losses, so all raise together."""
    if torch.isfinite(loss_N).all():
        return
    row = int((~torch.isfinite(loss_N)).nonzero()[0])
    value = float(loss_N[row])
    for term in terms:
        if row < term.batch.num_rows:
            raise DivergedError(
                f"the loss of row {row} under {term.copy} is {value}", hint="lower the learning rates or the penalty"
            )
        row -= term.batch.num_rows
