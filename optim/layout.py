"""How the workers share a model: a value checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optim.errors import LayoutError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the parallel axes; the world is their product.

    Axis order (fastest first) is tensor, data, pipeline, as in Megatron-Core. `sequence_parallel` has the tensor axis
    share the positions, too, where layers are not split by heads or width: less memory, the same communication.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
            if getattr(self, name) < 1:
                raise LayoutError(f"{name}={getattr(self, name)} is not a number of workers", hint="use 1 or more")
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise LayoutError(
                "sequence_parallel shares positions over the tensor axis", hint="set tensor_parallel above 1"
            )

    @property
    def world_size(self) -> int:
        """Number of worker processes."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    def __str__(self) -> str:
        sequence = " SP" if self.sequence_parallel else ""
        return f"TP={self.tensor_parallel} PP={self.pipeline_parallel} DP={self.data_parallel}{sequence}"


UNSUPPORTED = {
    "context_parallel": "context parallelism",
    "expert_parallel": "expert parallelism",
    "virtual_pipeline_parallel": "virtual pipeline parallelism",
    "fp8": "fp8",
}
"""Settings of Megatron-Core that would be computed wrongly or bring nothing here, and are refused by name."""


def unsupported(key: str, value: object) -> str | None:
    """What is not supported and what is, if the setting `key`, also by Megatron-Core's own name, asks for it."""
    name = key.replace("_model_", "_").removesuffix("_size")
    if name == "fp8" or value == "fp8":
        return f"{UNSUPPORTED['fp8']} is not supported; dtype may be float32 or bfloat16"
    if name in UNSUPPORTED:
        axes = "tensor_parallel, pipeline_parallel and data_parallel"
        return f"{UNSUPPORTED[name]} is not supported; split a model with {axes}"
    return None


def check_layout_fits_model(layout: Layout, hf_config: Mapping[str, Any]) -> None:
    """Check that heads, feed-forward width and layers divide among the workers.

    Raises:
        LayoutError: naming the axis, the model's number and the sizes that would be allowed.
    """
    heads = int(hf_config.get("num_attention_heads") or hf_config["n_head"])
    layers = int(hf_config.get("num_hidden_layers") or hf_config["n_layer"])
    hidden = int(hf_config.get("hidden_size") or hf_config["n_embd"])
    groups = int(hf_config.get("num_key_value_heads") or heads)
    width = int(hf_config.get("intermediate_size") or hf_config.get("n_inner") or 4 * hidden)
    tensor, pipeline = layout.tensor_parallel, layout.pipeline_parallel
    splits = [t for t in _divisors(math.gcd(heads, width)) if groups % t == 0 or t % groups == 0]
    if tensor not in splits:
        raise LayoutError(
            f"tensor_parallel={tensor} cannot split a model with {heads} attention heads, {groups} key-value "
            f"heads and a feed-forward width of {width}",
            hint=f"this model allows {_listed(splits)}",
        )
    if layers % pipeline:
        raise LayoutError(
            f"pipeline_parallel={pipeline} cannot split {layers} layers into equal stages",
            hint=f"this model allows {_listed(_divisors(layers))}",
        )


def check_layout_fits_machine(layout: Layout, *, num_devices: int, device: str) -> None:
    """Check that this machine can run `layout.world_size` workers on `num_devices` devices of kind `device`.

    A GPU runs one worker. CPU workers may outnumber the cores (tests of a layout do), but not more than four to one.

    Raises:
        LayoutError: with the world asked for and the largest one allowed.
    """
    limit = num_devices if device == "cuda" else 4 * num_devices
    if layout.world_size > limit:
        unit = f"{num_devices} GPUs" if device == "cuda" else f"{num_devices} CPU cores (at most 4 workers a core)"
        raise LayoutError(
            f"{layout} needs {layout.world_size} workers, but this machine has {unit}",
            hint=f"choose sizes whose product is at most {limit}",
        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
