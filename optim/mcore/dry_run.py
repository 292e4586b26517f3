"""The real schedule, decoders and optimizer on tensors without memory, and what they would hold.

Any rank of any world runs in this process: torch's fake process group answers every collective, fake tensors have
shapes and storages but no bytes, and `LiveBytes` counts the storages that live.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from optim import pretrained
from optim.backend import AdamWSettings, Copy
from optim.block_adamw import BlockAdamW
from optim.blocks import Block
from optim.errors import LayoutError
from optim.layout import Layout, check_layout_fits_model
from optim.mcore import head, kernels, parallel
from optim.mcore.block import set_active
from optim.mcore.config import DecoderConfig, choose_attention, decoder_config
from optim.mcore.device import import_megatron, megatron_on_this_device, megatron_warnings_dropped, pick_device
from optim.mcore.head import Targets
from optim.mcore.model import Decoder, layer_of
from optim.mcore.parallel import ProcessGroups
from optim.mcore.rows import PackedRows
from optim.mcore.schedule import MicroBatch, TwoCopies, run_schedule
from optim.planner import ModelSize, RankBytes, Setup

_PLANNED_GPU = (8, 0)
"""The CUDA capability that a plan for GPUs assumes: Ampere or newer."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations within it made and that still live, fake or real.

    `peak` is the most since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._size_of: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def restart(self) -> None:
        """Look for a new peak from here on."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 - the storage itself; its Python objects come and go
        if key not in self._size_of:
            self._size_of[key] = storage.nbytes()
            self.now += self._size_of[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._size_of.pop(key, 0)


def model_size(hf_config: Mapping[str, Any]) -> ModelSize:
    """Parameters of the model, counted on the real modules; a tied embedding once."""
    config = _config(hf_config, Setup(layout=Layout()))
    with _fake_world(Layout(), rank=0, device="cuda") as groups, megatron_warnings_dropped():
        named = Decoder(config, groups).named_global_parameters()
    edges = sum(parameter.numel() for name, parameter in named.items() if layer_of(name) is None)
    return ModelSize(
        num_parameters=sum(parameter.numel() for parameter in named.values()),
        num_edge_parameters=edges,
        num_layers=int(config.num_layers),
    )


def measure(hf_config: Mapping[str, Any], setup: Setup) -> tuple[RankBytes, ...]:
    """What the ranks hold: of each kind of stage (first, second, last) the last tensor rank, which pads the vocabulary.

    Raises:
        LayoutError: if the layout does not fit the model, or a torch.distributed world is in use in this process.
    """
    check_layout_fits_model(setup.layout, pretrained.model_config(hf_config).to_dict())
    num_stages = setup.layout.pipeline_parallel
    stages = sorted({0, min(1, num_stages - 1), num_stages - 1})
    return tuple(_measure_stage(hf_config, setup, stage) for stage in stages)


def _measure_stage(hf_config: Mapping[str, Any], setup: Setup, stage: int) -> RankBytes:
    """The bytes of one stage under whichever block needs most there."""
    layout = setup.layout
    rank = stage * layout.tensor_parallel * layout.data_parallel + layout.tensor_parallel - 1
    config = _config(hf_config, setup)
    with _fake_world(layout, rank=rank, device=setup.device) as groups, LiveBytes() as live:
        engine = _Engine(config, setup, groups, live)
        return max((engine.measure(block) for block in _blocks(engine, setup)), key=lambda found: found.total)


def _blocks(engine: _Engine, setup: Setup) -> list[Block]:
    """Blocks of which one needs most on this stage: layers from its lowest one up, then those below it."""
    num_layers, first = engine.num_layers, engine.first_layer
    order = [*range(first, num_layers), *reversed(range(first))]
    size = setup.block_size or num_layers
    if size == num_layers or setup.edges != "sampled":
        return [Block(layers=frozenset(order[:size]), edges=setup.edges != "frozen")]
    return [Block(layers=frozenset(order[:size]), edges=False), Block(layers=frozenset(order[: size - 1]), edges=True)]


class _Engine:
    """Both copies of a stage, made within a `LiveBytes`."""

    def __init__(self, config: DecoderConfig, setup: Setup, groups: ProcessGroups, live: LiveBytes) -> None:
        self._setup, self._groups, self._live, self._tied = setup, groups, live, config.tied
        with megatron_warnings_dropped():
            self._decoders = {copy: Decoder(config, groups) for copy in Copy}
        self._copies = TwoCopies(self._decoders)
        self.num_layers = int(config.num_layers)
        self.first_layer = self._decoders[Copy.MODEL].first_layer
        self._micro_batches = [
            _pack(copy, setup) for copy in (Copy.MODEL, *[Copy.AUX] * (setup.layout.pipeline_parallel + 1))
        ]

    def measure(self, block: Block) -> RankBytes:
        """One step of `block` after it has been trained, and every other block too if moments are kept."""
        settings = AdamWSettings(moments_on_switch="drop")
        if self._setup.moments == "keep":
            settings = AdamWSettings(moments_on_switch="keep")
        optimizers = {copy: BlockAdamW(settings) for copy in Copy}
        if self._setup.moments == "keep":
            everything = Block(layers=frozenset(range(self.num_layers)), edges=self._setup.edges != "frozen")
            self._remember(everything, optimizers)
        self._remember(block, optimizers)
        return self._step(optimizers)

    def _remember(self, block: Block, optimizers: Mapping[Copy, BlockAdamW]) -> None:
        """Make `block` active and its states, which come with the first update."""
        for copy, decoder in self._decoders.items():
            optimizers[copy].activate(set_active(decoder, block))
            optimizers[copy].update(0.0)

    def _step(self, optimizers: Mapping[Copy, BlockAdamW]) -> RankBytes:
        states = [state for optimizer in optimizers.values() for _, state, _ in optimizer.states()]
        weights = [p for decoder in self._decoders.values() for p in decoder.parameters()]
        active = {copy: optimizer.active for copy, optimizer in optimizers.items()}
        held = {
            "weights": _bytes_of(weights),
            "gradients": _bytes_of(p for parameters in active.values() for p in parameters.values()),
            "moments": _bytes_of(moment for state in states for moment in (state.first, state.second)),
            "masters": _bytes_of(state.master for state in states if state.master is not None),
        }
        self._live.restart()
        run_schedule(self._copies, self._micro_batches, forward_only=False)
        forward_backward = self._live.peak
        self._live.restart()
        for copy, parameters in active.items():
            parallel.sync_gradients(parameters, self._groups, tied=self._tied)  # type: ignore[arg-type]
            optimizers[copy].update(0.0, grad_scale=0.5)
            for parameter in parameters.values():
                parameter.grad = None
        return RankBytes(
            stage=self._groups.stage,
            **held,
            activations=forward_backward - sum(held.values()),
            update=self._live.peak - sum(held.values()),
            host=self._offloaded(active),
        )

    def _offloaded(self, active: Mapping[Copy, Mapping[str, Tensor]]) -> int:
        """Bytes of the states of all blocks but the active one, in the CPU's memory."""
        if self._setup.moments != "offload":
            return 0
        num_elements = sum(
            parameter.numel()
            for copy, decoder in self._decoders.items()
            for name, parameter in decoder.named_global_parameters().items()
            if name not in active[copy] and (self._setup.edges != "frozen" or layer_of(name) is not None)
        )
        return num_elements * (12 if self._setup.dtype == "bfloat16" else 8)


def _bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _config(hf_config: Mapping[str, Any], setup: Setup) -> DecoderConfig:
    hf = pretrained.model_config(hf_config)
    dtype = pretrained.torch_dtype(setup.dtype, allowed=("float32", "bfloat16"))
    config = decoder_config(hf, setup.layout, dtype, recompute=setup.recompute)
    choose_attention(config, _PLANNED_GPU if setup.device == "cuda" else None)
    config.variable_seq_lengths = False  # stages tell each other their shapes as data, which fake tensors have none of
    return config


def _pack(copy: Copy, setup: Setup) -> MicroBatch:
    """A full micro-batch of full rows."""
    length = setup.sequence_length
    num_rows = max(1, setup.micro_batch_tokens // length)
    num_tokens = num_rows * length
    filling = -num_tokens % setup.layout.tensor_parallel if setup.layout.sequence_parallel else 0
    device = pick_device()
    token_T = torch.zeros(num_tokens + filling, dtype=torch.int64, device=device)
    positions_T = token_T.clone()
    return MicroBatch(
        copy=copy,
        inputs_T=token_T,
        targets=Targets(token_T.clone(), torch.ones(num_tokens + filling, device=device)),
        positions_T=positions_T,
        mask_T=torch.ones(num_tokens + filling, device=device),
        length_B=torch.full((num_rows,), length, device=device),
        rows=PackedRows.of([length] * num_rows + [filling] * (filling > 0), positions_T),
        slots_B=torch.arange(num_rows),
        num_tokens=num_tokens,
    )


@contextmanager
def _fake_world(layout: Layout, *, rank: int, device: str) -> Iterator[ProcessGroups]:
    """Be `rank` of `layout` for the time being, every tensor made within being fake."""
    if dist.is_initialized():
        raise LayoutError(
            "a plan needs a process without a torch.distributed world", hint="make it before the run starts"
        )
    import_megatron()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        with (
            megatron_on_this_device(),
            parallel.model_parallel(layout) as groups,
            _kernels_of(device),
            FakeTensorMode(),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message="When using .* CUDA_DEVICE_MAX_CONNECTIONS")  # nothing is sent
            yield groups
    finally:
        dist.destroy_process_group()


@contextmanager
def _kernels_of(device: str) -> Iterator[None]:
    """The attention and the chunks of logits that `device` would use, and no table of fake tensors left behind."""
    longest, chunks = kernels.MAX_BLOCK_KERNEL_LENGTH, head.CHUNK_ELEMENTS
    kernels._rotary_table.cache_clear()  # noqa: SLF001
    if device == "cuda":
        kernels.MAX_BLOCK_KERNEL_LENGTH = 0
        head.CHUNK_ELEMENTS = dict.fromkeys(chunks, chunks["cuda"])
    try:
        yield
    finally:
        kernels.MAX_BLOCK_KERNEL_LENGTH, head.CHUNK_ELEMENTS = longest, chunks
        kernels._rotary_table.cache_clear()  # noqa: SLF001
