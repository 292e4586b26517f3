"""Rotary embedding, causal attention and gated activations.

Shape letters: S positions, B rows, T tokens of a pack of rows, N query heads, K key-value heads (N = K·R), H head
width.

On a CPU, for short sequences, attention goes block by block of queries through plain batched matrix products: torch's
flash kernel is slower there (tests/bench/bench_cpu_kernels.py). Elsewhere it is torch's own: for rows of equal length,
or on GPUs that have it (`takes_whole_packs`) for all rows of a pack at once.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

MAX_BLOCK_KERNEL_LENGTH = 1024
RotaryTable = tuple[Tensor, Tensor]


def rotary_table(
    length: int, inverse_frequencies: tuple[float, ...], scale: float, dtype: torch.dtype, device: torch.device
) -> RotaryTable:
    """Cosine and sine of every angle, each (S, H/2), multiplied by `scale`."""
    rounded = max(64, 1 << (length - 1).bit_length())  # few cache entries although lengths vary
    cos, sin = _rotary_table(rounded, inverse_frequencies, scale, dtype, device)
    return cos[:length], sin[:length]


@functools.lru_cache(maxsize=32)
def _rotary_table(
    length: int, inverse_frequencies: tuple[float, ...], scale: float, dtype: torch.dtype, device: torch.device
) -> RotaryTable:
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, torch.tensor(inverse_frequencies, dtype=torch.float32, device=device))
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate the two halves of the last dimension of x (…, S, H) by the angles of `table`."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """`rotate` without temporaries; out and x must not overlap."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)


def takes_whole_packs(
    capability: tuple[int, int] | None, dtype: torch.dtype, head_width: int, softcap: float | None
) -> bool:
    """Whether `packed_attention` can run on a device of this CUDA `capability` (None: no NVIDIA GPU).

    The limits are those of FlashAttention 2, which torch calls: Ampere or newer, half precision, heads of at most 256
    in multiples of 8, no soft cap (github.com/Dao-AILab/flash-attention, csrc/flash_attn/flash_api.cpp).
    """
    runs = capability is not None and capability >= (8, 0) and dtype in (torch.bfloat16, torch.float16)
    return (
        runs and softcap is None and head_width % 8 == 0 and head_width <= 256 and variable_length_kernel() is not None
    )


def gpu_capability() -> tuple[int, int] | None:
    """The CUDA capability of this process's GPU; None without one of NVIDIA's."""
    has_nvidia = torch.version.cuda is not None and torch.cuda.is_available()
    return torch.cuda.get_device_capability() if has_nvidia else None


@functools.cache
def variable_length_kernel() -> Callable[..., Tensor] | None:
    """torch's `varlen_attn`, if this torch has it with windows and grouped heads; importing it takes seconds."""
    try:
        kernel: Callable[..., Tensor] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:  # torch < 2.10
        return None
    return kernel if {"scale", "window_size", "enable_gqa"} <= inspect.signature(kernel).parameters.keys() else None


def packed_attention(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    *,
    starts_B: Tensor,
    longest: int,
    table: RotaryTable | None,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """`causal_attention` within every row of a pack, (T, N·H), in one call; only where `takes_whole_packs`.

    Row b is tokens `starts_B[b]` to `starts_B[b + 1]`, so `starts_B` is (rows + 1,) int32 and ends with T; no row has
    more than `longest`. `table` has the angles of each token of the pack: cosine and sine, (T, H/2).
    """
    kernel = variable_length_kernel()
    assert kernel is not None
    if table is not None:
        cos_T1H, sin_T1H = (x[:, None] for x in table)
        q_TNH, k_TKH = (rotate(x, (cos_T1H, sin_T1H)) for x in (q_TNH, k_TKH))
    keys_back = -1 if window is None or window >= longest else window - 1  # the kernel does not count the query itself
    grouped = k_TKH.shape[1] != q_TNH.shape[1]
    out_TNH = kernel(
        q_TNH,
        k_TKH,
        v_TKH,
        starts_B,
        starts_B,
        longest,
        longest,
        scale=scale,
        window_size=(keys_back, 0),
        enable_gqa=grouped,
    )
    return out_TNH.flatten(1)


def causal_attention(
    q_SBNH: Tensor,
    k_SBKH: Tensor,
    v_SBKH: Tensor,
    *,
    table: RotaryTable | None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax(scale · rotate(q) rotate(k)ᵀ + causal mask) v, (S, B, N·H).

    `window` limits how many positions back a query sees, itself included. `softcap` c bends scores to
    c · tanh(score / c).
    """
    length, _, _, width = q_SBNH.shape
    if window is not None and window >= length:
        window = None
    is_plain = window is None and softcap is None
    if is_plain and q_SBNH.device.type == "cpu" and length <= MAX_BLOCK_KERNEL_LENGTH:
        block = 64 if width < 64 else 128
        apply: Callable[..., Tensor] = _BlockCausalAttention.apply
        return apply(q_SBNH, k_SBKH, v_SBKH, table, scale, block)
    return _torch_attention(q_SBNH, k_SBKH, v_SBKH, table=table, scale=scale, window=window, softcap=softcap)


def _torch_attention(
    q_SBNH: Tensor,
    k_SBKH: Tensor,
    v_SBKH: Tensor,
    *,
    table: RotaryTable | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    length, batch, heads, width = q_SBNH.shape
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q_SBNH, k_SBKH, v_SBKH))
    if table is not None:
        q, k = rotate(q, table), rotate(k, table)
    mask = None if window is None and softcap is None else _causal_mask(length, window, q.device)
    if softcap is None:
        grouped = k.shape[1] != heads
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
    else:
        assert mask is not None
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
        scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
        scores = scores.masked_fill(~mask, float("-inf"))
        out = scores.softmax(dim=-1, dtype=torch.float32 if scores.dtype == torch.bfloat16 else None).to(q.dtype) @ v
    return out.permute(2, 0, 1, 3).reshape(length, batch, heads * width)


def _causal_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """(S, S) bool: may query i see key j."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


class _BlockCausalAttention(torch.autograd.Function):
    """Causal attention over blocks of queries: block [i, j) meets keys [0, j) only, so half the products are saved.

    A key-value head is never repeated: its R query heads are stacked along the rows of one product. The
    probabilities (about S²/2 a head) are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, q_SBNH: Tensor, k_SBKH: Tensor, v_SBKH: Tensor, table: RotaryTable | None, scale: float, block: int
    ) -> Tensor:
        length, batch, heads, width = q_SBNH.shape
        groups = k_SBKH.shape[2]
        q = _heads_first(q_SBNH, table).view(batch * groups, heads // groups, length, width)
        k = _heads_first(k_SBKH, table).view(batch * groups, length, width)
        v = _heads_first(v_SBKH, None).view(batch * groups, length, width)
        future = torch.full((block, block), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
        out_SBNH = torch.empty_like(q_SBNH, memory_format=torch.contiguous_format)
        out_BNSH = out_SBNH.permute(1, 2, 0, 3)
        blocks = []
        for start in range(0, length, block):
            stop = min(start + block, length)
            rows = stop - start
            scores = torch.bmm(_stack_queries(q[:, :, start:stop]), k[:, :stop].transpose(1, 2)).mul_(scale)
            scores.view(batch * groups, -1, rows, stop)[..., start:].add_(future[:rows, :rows])
            probabilities = torch.softmax(scores, dim=-1)
            out_BNSH[:, :, start:stop] = torch.bmm(probabilities, v[:, :stop]).view(batch, heads, rows, width)
            blocks.append(probabilities)
        ctx.save_for_backward(q, k, v, *blocks)
        ctx.shape, ctx.table, ctx.scale, ctx.block = (length, batch, heads, width), table, scale, block
        return out_SBNH.view(length, batch, heads * width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *blocks = ctx.saved_tensors
        length, batch, heads, width = ctx.shape
        grad_out = grads[0].view(length, batch, heads, width).permute(1, 2, 0, 3)
        grad_out = grad_out.reshape(k.shape[0], -1, length, width)  # like q: one row of heads for each key-value head
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for probabilities, start in zip(blocks, range(0, length, ctx.block), strict=True):
            stop = min(start + ctx.block, length)
            grad_rows, q_rows = _stack_queries(grad_out[:, :, start:stop]), _stack_queries(q[:, :, start:stop])
            grad_v[:, :stop].baddbmm_(probabilities.transpose(1, 2), grad_rows)
            grad_probabilities = torch.bmm(grad_rows, v[:, :stop].transpose(1, 2))
            grad_scores = _softmax_backward(grad_probabilities, probabilities).mul_(ctx.scale)
            grad_q[:, :, start:stop] = torch.bmm(grad_scores, k[:, :stop]).view(k.shape[0], -1, stop - start, width)
            grad_k[:, :stop].baddbmm_(grad_scores.transpose(1, 2), q_rows)
        inverse = None if ctx.table is None else (ctx.table[0], -ctx.table[1])
        return (
            _positions_first(grad_q.view(batch, heads, length, width), inverse),
            _positions_first(grad_k.view(batch, -1, length, width), inverse),
            _positions_first(grad_v.view(batch, -1, length, width), None),
            None,
            None,
            None,
        )


def _softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """Gradient of the scores from that of their softmax: p ⊙ (g − Σ p g), in one pass."""
    return torch.ops.aten._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)  # type: ignore[no-any-return]  # noqa: SLF001


def _stack_queries(x_GRSH: Tensor) -> Tensor:
    """(B·K, R, rows, H) → (B·K, R·rows, H)."""
    return x_GRSH.reshape(x_GRSH.shape[0], -1, x_GRSH.shape[-1])


def _heads_first(x_SBNH: Tensor, table: RotaryTable | None) -> Tensor:
    """Rotated, contiguous (B, N, S, H)."""
    x_BNSH = x_SBNH.permute(1, 2, 0, 3)
    if table is None:
        return x_BNSH.contiguous()
    out = torch.empty(x_BNSH.shape, dtype=x_BNSH.dtype, device=x_BNSH.device)
    _rotate_into(out, x_BNSH, *table)
    return out


def _positions_first(x_BNSH: Tensor, table: RotaryTable | None) -> Tensor:
    """Rotated, contiguous (S, B, N, H)."""
    batch, heads, length, width = x_BNSH.shape
    out_SBNH = torch.empty(length, batch, heads, width, dtype=x_BNSH.dtype, device=x_BNSH.device)
    if table is None:
        out_SBNH.permute(1, 2, 0, 3).copy_(x_BNSH)
    else:
        _rotate_into(out_SBNH.permute(1, 2, 0, 3), x_BNSH, *table)
    return out_SBNH


Activation = Literal["silu", "gelu_tanh"]


def gated_activation(gate_up: Tensor, kind: Activation) -> Tensor:
    """act(gate) · up of (…, 2·F) with the gate first, (…, F). Only the input is kept for the backward pass."""
    apply: Callable[..., Tensor] = _GatedActivation.apply
    return apply(gate_up, kind)


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, kind: Activation) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.kind = kind
        gate, up = gate_up.chunk(2, dim=-1)
        return _activate(gate, kind).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grads[0], _activate(gate, ctx.kind), out=grad_up)
        grad_activated = grads[0] * up
        if ctx.kind == "silu":
            torch.ops.aten.silu_backward.grad_input(grad_activated, gate, grad_input=grad_gate)
        else:
            torch.ops.aten.gelu_backward.grad_input(grad_activated, gate, approximate="tanh", grad_input=grad_gate)
        return grad_gate_up, None


def _activate(gate: Tensor, kind: Activation) -> Tensor:
    """A new tensor."""
    return functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
