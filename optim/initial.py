"""Initial weights that do not depend on the layout: every tensor from its own generator."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def initial_tensor(
    name: str, shape: tuple[int, ...], *, seed: int, std: float = 0.02, norm_offset: bool = False
) -> Tensor:
    """The full initial tensor of the Hugging Face parameter `name`, float32 on the CPU.

    Norm weights are 1 (0 where the family adds 1 itself, `norm_offset`), biases 0, all else N(0, std²) from a
    generator seeded by (seed, name).
    """
    is_norm = "norm" in name.rsplit(".", 2)[-2] or ".ln_" in name
    if is_norm and name.endswith("weight"):
        return torch.zeros(shape) if norm_offset else torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.empty(shape).normal_(0.0, std, generator=generator)
