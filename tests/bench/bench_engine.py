"""A training step of the engine against transformers, and a bilevel step against its own parts.

One thread, CPU time, best rounds of one process.
Run: python tests/bench/bench_engine.py [limit] [step] [bilevel] [packs] [profile]
`packs` needs the instruction data (CURATOR_DATA, default ../shared/data) and is left out where that is absent.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import torch
from transformers import AutoModelForCausalLM

from curator.tokens import train_tokenizer
from optim import pretrained
from optim.backend import AdamWSettings, Copy, ModelSource, Term
from optim.batch import Batch
from optim.blocks import Block
from optim.layout import Layout
from optim.mcore.backend import McoreBackend, mcore_backend
from optim.mcore.device import fast_float32_matmul

LENGTH, ROWS = 256, 8
SHAPES = {  # hidden, layers, heads, key-value heads, feed-forward, vocabulary
    "2M": (128, 6, 4, 4, 344, 4096),
    "10M": (256, 8, 4, 2, 688, 8192),
    "47M": (512, 10, 8, 4, 1376, 16384),
}


def config_of(shape: str) -> dict[str, object]:
    """A llama of that size with its own output head."""
    hidden, layers, heads, groups, width, vocabulary = SHAPES[shape]
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": width,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def best_of(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of the best round of each, the works taking turns, after one round that does not count."""
    best = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if number:
                best[name] = min(best[name], time.process_time() - started)
    return best


def full_batch(vocabulary: int, rows: int = ROWS, length: int = LENGTH) -> Batch:
    """Random tokens, every row of full length."""
    return Batch(
        tokens_BS=torch.randint(0, vocabulary, (rows, length + 1)),
        mask_BS=torch.ones(rows, length),
        domain_B=torch.zeros(rows, dtype=torch.int64),
        row_weight_B=torch.ones(rows),
    )


def engine_step(backend: McoreBackend, terms: list[Term]) -> Callable[[], None]:
    """Forward, backward and an update of every copy in `terms`."""

    def step() -> None:
        backend.forward_backward(terms)
        for copy in {term.copy for term in terms}:
            backend.update(copy, learning_rate=1e-4)

    return step


def transformers_step(config: dict[str, object], batch: Batch, dtype: torch.dtype) -> Callable[[], None]:
    """The same step as a user of transformers writes it."""
    model = AutoModelForCausalLM.from_config(pretrained.model_config(config)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(input_ids=batch.tokens_BS, labels=batch.tokens_BS).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def open_engine(stack: ExitStack, config: dict[str, object], dtype: str = "float32") -> McoreBackend:
    """A backend in this process that lives as long as `stack`."""
    source = ModelSource(hf_config=config)
    opened = mcore_backend(
        source, layout=Layout(), optimizer=AdamWSettings(), micro_batch_tokens=ROWS * LENGTH, dtype=dtype
    )
    return stack.enter_context(opened)


def term(copy: Copy, batch: Batch) -> Term:
    """Every target token counts alike."""
    return Term(copy=copy, batch=batch, token_weight_B=torch.full((batch.num_rows,), 1e-4))


def bench_step(rounds: int = 5) -> None:
    """A plain step of 8 × 256 tokens: ours, transformers as it comes, and with our matrix product setting.

    All four take part in every round, so that a machine whose speed drifts does not favour one; ratios are those of a
    round, their median and range.
    """
    for shape in SHAPES:
        config = config_of(shape)
        batch = full_batch(int(str(config["vocab_size"])))
        theirs = transformers_step(config, batch, torch.float32)
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            found = best_of({"as it comes": theirs}, 2)
            with ExitStack() as stack:
                ours = engine_step(open_engine(stack, config), [term(Copy.MODEL, batch)])
                stack.enter_context(fast_float32_matmul())
                found |= best_of({"ours": ours, "same setting": theirs}, 2)
            with ExitStack() as stack:
                ours = engine_step(open_engine(stack, config, "bfloat16"), [term(Copy.MODEL, batch)])
                found |= best_of({"bfloat16": ours}, 2)
            for name, spent in found.items():
                seconds.setdefault(name, []).append(spent)
        print(
            f"plain step {shape}: {ratios(seconds, 'as it comes', 'ours')} transformers as it comes, "
            f"{ratios(seconds, 'same setting', 'ours')} with the same matmul setting, bfloat16 "
            f"{ratios(seconds, 'as it comes', 'bfloat16')} its float32 "
            f"({ROWS * LENGTH / min(seconds['ours']):,.0f} tokens/CPU-s)",
            flush=True,
        )


def ratios(seconds: Mapping[str, list[float]], theirs: str, ours: str) -> str:
    """Median, lowest and highest of the ratios of the rounds."""
    found = sorted(a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True))
    return f"{found[len(found) // 2]:.2f}x ({found[0]:.2f}-{found[-1]:.2f})"


def bench_bilevel(rounds: int = 3) -> None:
    """A bilevel step, with all and with a quarter of the layers active, against a plain step with all of them."""
    for shape in ("2M", "10M"):
        config = config_of(shape)
        layers = int(str(config["num_hidden_layers"]))
        batch = full_batch(int(str(config["vocab_size"])))
        terms = [term(Copy.MODEL, batch), term(Copy.MODEL, batch), term(Copy.AUX, batch)]
        with ExitStack() as stack:
            backend = open_engine(stack, config)
            works = {"plain": engine_step(backend, terms[:1]), "bilevel": engine_step(backend, terms)}
            found = best_of(works, rounds)
            quarters = []
            for start in range(0, layers, max(1, layers // 4)):
                block = frozenset(range(start, min(layers, start + max(1, layers // 4))))
                backend.set_block(Block(layers=block, edges=False))
                quarters.append(best_of({"quarter": works["bilevel"]}, rounds)["quarter"])
        print(
            f"bilevel step {shape}: all layers {found['bilevel'] / (3 * found['plain']):.2f} of three plain steps; a "
            f"quarter active, embedding and head frozen, {sum(quarters) / len(quarters) / found['plain']:.2f} plain "
            f"steps on average over the quarters ({min(quarters) / found['plain']:.2f} the highest layers)",
            flush=True,
        )


def data_folder() -> Path:
    """Where the instruction data should be."""
    return Path(os.environ.get("CURATOR_DATA") or Path(__file__).parents[3] / "shared" / "data") / "instruct"


def instruction_rows(folder: Path, count: int) -> list[list[int]]:
    """Token ids of real instruction rows, two sources in turn, each cut at 512."""
    frames = [pl.read_parquet(folder / f"{name}.parquet").head(count) for name in ("gsm8k", "flan_cot")]
    sources = [(frame["instruction"] + "\n" + frame["response"]).to_list() for frame in frames]
    texts = [text for pair in zip(*sources, strict=True) for text in pair][:count]
    tokenizer = train_tokenizer(texts, 4096)
    return [ids[:513].tolist() for ids in tokenizer.encode(texts)]


def padded_batch(rows: list[list[int]]) -> Batch:
    """The rows, padded to their longest."""
    width = max(map(len, rows))
    tokens_BS = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens_BS[i, : len(row)] = torch.tensor(row)
    length_B = torch.tensor([len(row) - 1 for row in rows])
    return Batch(
        tokens_BS=tokens_BS,
        mask_BS=(torch.arange(width - 1) < length_B[:, None]).float(),
        domain_B=torch.zeros(len(rows), dtype=torch.int64),
        row_weight_B=torch.ones(len(rows)),
    )


def bench_packs(rounds: int = 3) -> None:
    """Real instruction rows in packs, against groups of 8 in input order in which padding is computed like tokens."""
    folder = data_folder()
    if not folder.is_dir():
        print(f"real instruction rows: left out, there is no {folder}")
        return
    rows = instruction_rows(folder, 64)
    packed = [term(Copy.MODEL, padded_batch(rows))]
    padded = []
    for start in range(0, len(rows), ROWS):
        batch = padded_batch(rows[start : start + ROWS])
        whole = Batch(
            tokens_BS=batch.tokens_BS,
            mask_BS=torch.ones_like(batch.mask_BS),
            domain_B=batch.domain_B,
            row_weight_B=batch.row_weight_B,
        )
        padded.append(term(Copy.MODEL, whole))
    real = sum(len(row) - 1 for row in rows)
    wasted = 1 - real / sum(t.batch.mask_BS.numel() for t in padded)
    for shape in ("2M", "10M"):
        config = config_of(shape) | {"vocab_size": 4096}
        with ExitStack() as stack:
            backend = open_engine(stack, config)
            found = best_of({"packs": engine_step(backend, packed), "padded": engine_step(backend, padded)}, rounds)
        print(
            f"real instruction rows {shape}: packs {found['padded'] / found['packs']:.2f}x padding in input order "
            f"(of which {wasted:.0%} is padding), {real / found['packs']:,.0f} real tokens/CPU-s",
            flush=True,
        )


KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::linear", "mkldnn"),
    "attention": ("aten::bmm", "aten::baddbmm", "softmax"),
    "collectives": ("c10d", "gloo"),
}


def bench_profile() -> None:
    """Where the CPU time of a plain step goes, by torch's profiler; the rest is in no operation of torch."""
    for shape in ("2M", "10M"):
        config = config_of(shape)
        batch = full_batch(int(str(config["vocab_size"])))
        terms = [term(Copy.MODEL, batch)]
        with ExitStack() as stack:
            backend = open_engine(stack, config)
            engine_step(backend, terms)()
            started = time.process_time()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                backend.forward_backward(terms)
                passes = time.process_time() - started
            started = time.process_time()
            backend.update(Copy.MODEL, learning_rate=1e-4)
            update = time.process_time() - started
        seconds = dict.fromkeys([*KINDS, "elementwise and copies"], 0.0) | {"clipping and AdamW": update}
        for event in profiler.key_averages():
            kind = next((name for name, keys in KINDS.items() if any(key in event.key for key in keys)), None)
            seconds[kind or "elementwise and copies"] += event.self_cpu_time_total / 1e6
        total = passes + update
        told = ", ".join(f"{name} {part / total:.0%}" for name, part in seconds.items())
        print(f"profile of a plain step {shape}: {told}, Python and the rest {1 - sum(seconds.values()) / total:.0%}")


def bench_limit() -> None:
    """What the matrix product setting gains on this machine: the bound of any gain over torch as it comes."""
    for rows, inner, columns in ((2048, 256, 688), (2048, 512, 1376), (2048, 688, 256)):
        left, right = torch.randn(rows, inner), torch.randn(columns, inner)
        works = {"product": lambda left=left, right=right: [torch.nn.functional.linear(left, right) for _ in range(20)]}
        as_it_comes = best_of(works, 5)["product"]
        with fast_float32_matmul():
            ours = best_of(works, 5)["product"]
        speed = 20 * 2 * rows * inner * columns / 1e9
        print(
            f"matrix product {rows}x{inner}x{columns}: {as_it_comes / ours:.2f}x torch as it comes "
            f"({speed / ours:.0f} against {speed / as_it_comes:.0f} GFLOP/s)",
            flush=True,
        )


BENCHES = {
    "limit": bench_limit,
    "step": bench_step,
    "bilevel": bench_bilevel,
    "packs": bench_packs,
    "profile": bench_profile,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for chosen in sys.argv[1:] or BENCHES:
        BENCHES[chosen]()
