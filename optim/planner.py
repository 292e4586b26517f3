"""How much memory a run will take on each device, before there is a device: values, and the choice of a layout.

The bytes come from a dry run of the real engine (`optim.mcore.dry_run`); nothing here imports torch by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from optim.blocks import EdgePolicy
from optim.errors import LayoutError
from optim.layout import Layout, check_layout_fits_model

GIB = 2**30
RESERVE_GIB = 2.0
"""Left on a GPU to the driver's context, the communication library and fragmentation: assumed, never measured here."""
_MAX_TENSOR_PARALLEL = 8
_LEAST_BLOCK = 2

PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama-3-8b": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        },
        "qwen2.5-32b": {
            "model_type": "qwen2",
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
        },
        "yi-34b": {
            "model_type": "llama",
            "hidden_size": 7168,
            "intermediate_size": 20480,
            "num_hidden_layers": 60,
            "num_attention_heads": 56,
            "num_key_value_heads": 8,
            "vocab_size": 64000,
            "max_position_embeddings": 4096,
            "rope_theta": 5000000.0,
            "tie_word_embeddings": False,
        },
    }
)
"""Configurations of models that were published, so that they can be planned for without a download."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that memory depends on, beside the model.

    `block_size` layers train at a time (0: all). A micro-batch is a pack of rows of `sequence_length` tokens, as many
    as `micro_batch_tokens` holds. `device` is where the plan is for: on "cpu" short rows take our own attention kernel,
    which keeps the probabilities.
    """

    layout: Layout
    block_size: int = 0
    edges: EdgePolicy = "always"
    moments: Literal["drop", "keep", "offload"] = "drop"
    sequence_length: int = 2048
    micro_batch_tokens: int = 2048
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    recompute: bool = False
    device: Literal["cpu", "cuda"] = "cuda"

    def __post_init__(self) -> None:
        if self.block_size < 0 or min(self.sequence_length, self.micro_batch_tokens) < 1:
            raise LayoutError("block_size must be 0 or more, sequence_length and micro_batch_tokens 1 or more")

    @property
    def reserve_gib(self) -> float:
        """What a device must have left: `RESERVE_GIB` on a GPU, nothing on a CPU."""
        return RESERVE_GIB if self.device == "cuda" else 0.0

    def __str__(self) -> str:
        layers = f"blocks of {self.block_size} layers" if self.block_size else "all layers"
        again = ", recompute" if self.recompute else ""
        return f"{self.layout}, {layers}, edges {self.edges}, {self.dtype}{again}"


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Bytes on one device, for the block that needs most there.

    `weights`, `gradients`, `moments` and `masters` are of both copies together: w's and u's gradients live at the same
    time. `moments` are Adam's, with those of blocks that were left if they stay on the device; `masters` are the
    float32 copies of what trains in bfloat16. `activations` and `update` are the most that lives beside these in a
    forward-backward pass (rotary tables and communication buffers included) and in an update. `host` is what is
    offloaded to the CPU's memory.
    """

    stage: int
    weights: int
    gradients: int
    moments: int
    masters: int
    activations: int
    update: int
    host: int = 0

    @property
    def total(self) -> int:
        """The most that lives at any time of a step."""
        held = self.weights + self.gradients + self.moments + self.masters
        return held + max(self.activations, self.update)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Parameters of a model: all of them, and of embedding, final norm and head alone."""

    num_parameters: int
    num_edge_parameters: int
    num_layers: int

    def num_active(self, setup: Setup) -> int:
        """Parameters that train at a time, at most."""
        layers = min(setup.block_size or self.num_layers, self.num_layers)
        in_layers = (self.num_parameters - self.num_edge_parameters) * layers // self.num_layers
        return in_layers + (0 if setup.edges == "frozen" else self.num_edge_parameters)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a setup takes. `ranks` has one entry for each kind of pipeline stage; `memory_gib` is a device's."""

    size: ModelSize
    setup: Setup
    ranks: tuple[RankBytes, ...]
    memory_gib: float | None = None

    @property
    def worst(self) -> RankBytes:
        """The rank that needs most."""
        return max(self.ranks, key=lambda rank: rank.total)

    @property
    def room_gib(self) -> float:
        """GiB that a device has for a run; without end if no memory was given."""
        return math.inf if self.memory_gib is None else max(0.0, self.memory_gib - self.setup.reserve_gib)

    @property
    def fits(self) -> bool:
        """Whether every rank leaves the reserve free; True if no memory was given."""
        return self.worst.total <= self.room_gib * GIB

    def flops_per_token(self) -> float:
        """Estimate of the operations on one token, forward and backward, of one copy.

        2·N forward, 2·N for the gradients of the inputs, 2·N_active for those of the weights, and 2·N more with
        recomputation. Attention scores are left out, and the backward pass is taken to reach the lowest layer.
        """
        size, again = self.size.num_parameters, 1 if self.setup.recompute else 0
        return float((4 + 2 * again) * size + 2 * self.size.num_active(self.setup))

    def seconds(self, tokens: int, *, flops: float) -> float:
        """Estimate of the time for `tokens` through one copy, on devices that do `flops` operations a second each."""
        return tokens * self.flops_per_token() / (flops * self.setup.layout.world_size)


def plan(hf_config: Mapping[str, Any], setup: Setup, *, memory_gib: float | None = None) -> Plan:
    """Measure `setup` in a dry run: any world in this process, without its memory. Takes seconds to a minute.

    Raises:
        LayoutError: if the layout or the block does not fit the model, or a torch.distributed world is in use here.
        ModelError: if the model's family is not supported.
        MissingExtraError: if the train extra is not installed.
    """
    from optim.launch import check_train_extra

    check_train_extra()
    from optim.mcore import dry_run

    size = dry_run.model_size(hf_config)
    return _measured(hf_config, size, setup, memory_gib)


def check_fits(made: Plan) -> None:
    """Check that every device has room.

    Raises:
        LayoutError: saying how much is needed, how much there is, and what would need less.
    """
    if not made.fits:
        raise LayoutError(
            f"{made.setup} needs {made.worst.total / GIB:.1f} GiB on stage {made.worst.stage}, but a device "
            f"of {made.memory_gib:g} GiB has {made.room_gib:g} after a reserve of {made.setup.reserve_gib:g}",
            hint=_advice(made.setup),
        )


def propose(
    hf_config: Mapping[str, Any],
    *,
    num_devices: int,
    memory_gib: float,
    block_size: int | None = None,
    edges: EdgePolicy = "always",
    moments: Literal["drop", "keep", "offload"] = "drop",
    sequence_length: int = 2048,
    micro_batch_tokens: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    device: Literal["cpu", "cuda"] = "cuda",
    on_setup: Callable[[Setup], None] = lambda _: None,
) -> Plan:
    """The setup expected to be fastest among those that fit `num_devices` devices of `memory_gib` each.

    The rule, in this order: the smallest TP·PP that fits at all (the rest is DP, which talks least), with the shorter
    pipeline of two equal ones; without recomputation if that fits; the largest block of all layers, 32, 16, 8, 4, 2.
    Tensor parallelism stays within 8 devices and always comes with sequence parallelism. `block_size` fixes the block.
    `on_setup` is told what is measured next, which takes up to minutes for a large model.

    Raises:
        LayoutError: if nothing fits; names the layout that came closest.
    """
    from optim.launch import check_train_extra

    if num_devices < 1 or memory_gib <= 0:
        raise LayoutError("a proposal needs at least 1 device and memory above 0")
    check_train_extra()
    from optim.mcore import dry_run

    size = dry_run.model_size(hf_config)
    first = Setup(
        layout=Layout(),
        block_size=min(_LEAST_BLOCK, size.num_layers) if block_size is None else block_size,
        edges=edges,
        moments=moments,
        sequence_length=sequence_length,
        micro_batch_tokens=micro_batch_tokens or sequence_length,
        dtype=dtype,
        device=device,
    )
    closest: Plan | None = None
    for layout in layouts(hf_config, num_devices):
        base = replace(first, layout=layout)
        if least_bytes(size, base) > (memory_gib - base.reserve_gib) * GIB:
            continue
        for recompute in (False, True):
            wanted = replace(base, recompute=recompute)
            on_setup(wanted)
            made = _measured(hf_config, size, wanted, memory_gib)
            if made.fits:
                return made if block_size is not None else _with_largest_block(hf_config, made, on_setup)
            closest = made if closest is None or made.worst.total < closest.worst.total else closest
    if closest is not None:
        check_fits(closest)
    raise LayoutError(
        f"the weights of two copies of {size.num_parameters / 1e9:.1f} B parameters do not fit "
        f"{num_devices} devices of {memory_gib:g} GiB in any layout that divides the model",
        hint="use more devices or a smaller model",
    )


def layouts(hf_config: Mapping[str, Any], num_devices: int) -> Iterator[Layout]:
    """Layouts of exactly `num_devices` that divide the model, smallest TP·PP first, then the shortest pipeline."""
    pairs = [
        (tensor, pipeline)
        for tensor in range(1, min(num_devices, _MAX_TENSOR_PARALLEL) + 1)
        for pipeline in range(1, num_devices // tensor + 1)
        if num_devices % (tensor * pipeline) == 0
    ]
    for tensor, pipeline in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[1])):
        layout = Layout(
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            data_parallel=num_devices // (tensor * pipeline),
            sequence_parallel=tensor > 1,
        )
        try:
            check_layout_fits_model(layout, hf_config)
        except LayoutError:
            continue
        yield layout


def least_bytes(size: ModelSize, setup: Setup) -> float:
    """A bound from below on the fullest rank: the weights of both copies, shared out evenly."""
    width = 2 if setup.dtype == "bfloat16" else 4
    return 2 * width * size.num_parameters / (setup.layout.tensor_parallel * setup.layout.pipeline_parallel)


def _with_largest_block(hf_config: Mapping[str, Any], fitting: Plan, on_setup: Callable[[Setup], None]) -> Plan:
    """`fitting` with the largest block that fits too."""
    size = fitting.size
    for block in (0, 32, 16, 8, 4):
        if block < size.num_layers:
            wanted = replace(fitting.setup, block_size=block)
            on_setup(wanted)
            made = _measured(hf_config, size, wanted, fitting.memory_gib)
            if made.fits:
                return made
    return fitting


def _measured(hf_config: Mapping[str, Any], size: ModelSize, setup: Setup, memory_gib: float | None) -> Plan:
    from optim.mcore import dry_run

    if setup.block_size > size.num_layers:
        raise LayoutError(f"block size {setup.block_size} is outside 0..{size.num_layers}, the layers of the model")
    return Plan(size=size, setup=setup, ranks=dry_run.measure(hf_config, setup), memory_gib=memory_gib)


def _advice(setup: Setup) -> str:
    ways = []
    if not setup.recompute:
        ways.append("recompute")
    if setup.layout.tensor_parallel > 1 and not setup.layout.sequence_parallel:
        ways.append("sequence_parallel")
    return f"use {', '.join([*ways, 'a smaller block or more tensor- and pipeline-parallel devices'])}"
