"""The CPU engine against transformers and torch as they come, in one run on one thread.

Prints ratios: the float32 matrix product with and without `fast_float32_matmul`, the block attention kernel against
torch's SDPA (forward + backward, the product setting on for both), and one bilevel step of the `tiny` preset against
the plain torch backend on transformers' modules. Run: python tests/bench/bench_cpu_kernels.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from optim.backend import AdamWSettings, Backend, Copy, ModelSource, Term
from optim.batch import Batch
from optim.layout import Layout
from optim.local import LocalBackend
from optim.mcore.backend import mcore_backend
from optim.mcore.device import fast_float32_matmul
from optim.mcore.kernels import causal_attention, rotary_table, rotate
from optim.presets import preset


def best_seconds(work: Callable[[], object], rounds: int = 7) -> float:
    """CPU seconds of the best of several rounds, after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def bench_matmul() -> None:
    """768 × 768 products, the size of a small model's layer."""
    x, w = torch.randn(2048, 768), torch.randn(768, 768)
    plain = best_seconds(lambda: x @ w.t())
    with fast_float32_matmul() as is_on:
        fast = best_seconds(lambda: x @ w.t())
    print(f"float32 matmul: {plain / fast:.2f}x torch's default (setting {'on' if is_on else 'left off here'})")


def bench_attention(length: int) -> None:
    """8 query and 2 key-value heads of width 64, 4096 positions in all; rotary embedding included in both."""
    rows, heads, groups, width = 4096 // length, 8, 2, 64
    q = torch.randn(length, rows, heads, width, requires_grad=True)
    k, v = (torch.randn(length, rows, groups, width, requires_grad=True) for _ in range(2))
    inverse = tuple((10000.0 ** (-torch.arange(0, width, 2) / width)).tolist())
    table = rotary_table(length, inverse, 1.0, torch.float32, torch.device("cpu"))

    def ours() -> None:
        causal_attention(q, k, v, table=table, scale=width**-0.5).sum().backward()

    def sdpa() -> None:
        turned = [x.permute(1, 2, 0, 3) for x in (q, k, v)]
        out = functional.scaled_dot_product_attention(
            rotate(turned[0], table), rotate(turned[1], table), turned[2], is_causal=True, enable_gqa=True
        )
        out.sum().backward()

    with fast_float32_matmul():
        print(f"attention at {length} positions: {best_seconds(sdpa) / best_seconds(ours):.2f}x torch's SDPA")


def bench_step() -> None:
    """Target, train and auxiliary pass plus both updates; 24 + 16 rows of 128 tokens."""
    source = ModelSource(hf_config=preset("tiny", vocab_size=2048, sequence_length=128))

    def batch(rows: int) -> Batch:
        return Batch(
            tokens_BS=torch.randint(0, 2048, (rows, 129)),
            mask_BS=torch.ones(rows, 128),
            domain_B=torch.zeros(rows, dtype=torch.int64),
            row_weight_B=torch.ones(rows),
        )

    train, target = batch(24), batch(16)
    terms = [
        Term(copy=Copy.MODEL, batch=target, token_weight_B=torch.full((16,), 1 / 2048)),
        Term(copy=Copy.MODEL, batch=train, token_weight_B=torch.full((24,), 1 / 3072)),
        Term(copy=Copy.AUX, batch=train, token_weight_B=torch.full((24,), 1 / 3072)),
    ]

    def step(backend: Backend) -> None:
        backend.forward_backward(terms)
        for copy in Copy:
            backend.update(copy, learning_rate=1e-3)

    local = LocalBackend(source, optimizer=AdamWSettings())
    plain = best_seconds(lambda: step(local), 4)
    with mcore_backend(source, layout=Layout(), optimizer=AdamWSettings(), micro_batch_tokens=2048) as backend:
        ours = best_seconds(lambda: step(backend), 4)
    tokens = (16 + 24 + 24) * 128
    print(
        f"bilevel step of `tiny`: {plain / ours:.2f}x transformers in plain torch ({tokens / ours:,.0f} tokens/CPU-s)"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bench_matmul()
    for positions in (128, 256, 512):
        bench_attention(positions)
    bench_step()
