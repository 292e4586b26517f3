"""Initial weights that do not depend on the layout: every tensor from its own generator."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_INTO_RESIDUAL = ("o_proj", "down_proj", "c_proj")
"""Matrices whose outputs are added to the residual stream."""


def initial_tensor(
    name: str, shape: tuple[int, ...], *, seed: int, num_layers: int, norm_offset: bool = False
) -> Tensor:
    """The full initial tensor of the Hugging Face parameter `name`, float32 on the CPU.

    Matrices and embeddings are N(0, 1/width of their input), so that what leaves them is of the size of what goes in
    at every width; those that add to the residual stream are smaller by √(2·layers), as in GPT-2 (Radford et al.
    2019, section 2.3). A fixed .02, what transformers does, is four times too small for a model of width 128
    (optim/EXPERIMENTS.md). Norm weights are 1 (0 where the family adds 1 itself, `norm_offset`), biases 0.
    The generator is seeded by (seed, name).
    """
    is_norm = "norm" in name.rsplit(".", 2)[-2] or ".ln_" in name
    if is_norm and name.endswith("weight"):
        return torch.zeros(shape) if norm_offset else torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.empty(shape).normal_(0.0, _std(name, shape, num_layers), generator=generator)


def _std(name: str, shape: tuple[int, ...], num_layers: int) -> float:
    is_transposed = ".h." in name  # GPT-2 keeps its layers' matrices as (in, out)
    std = 1 / math.sqrt(shape[0] if is_transposed else shape[-1])
    return std / math.sqrt(2 * num_layers) if any(part in name for part in _INTO_RESIDUAL) else std
