"""A bilevel step on real instruction rows against the authors' procedure, written plainly on transformers and torch.

Theirs: micro-batches of 8 rows in input order, padded to the longest; AdamW whose moments stay once they are there.
Same rows, same model shape. CPU time of one thread, best rounds; peak of the bytes that live in a step.
Run: python tests/bench/bench_authors.py [SHAPE …]
Needs the instruction data (CURATOR_DATA, default ../shared/data).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from bench_engine import ROWS, SHAPES, best_of, config_of, data_folder, instruction_rows, open_engine, padded_batch
from torch import Tensor
from transformers import AutoModelForCausalLM

from optim import pretrained
from optim.backend import Copy, Term
from optim.batch import Batch
from optim.blocks import Block
from optim.mcore.dry_run import LiveBytes
from optim.objective import target_token_weights, train_token_weights

PENALTY, NUM_DOMAINS, BLOCKS = 10.0, 2, 4


class AuthorsProcedure:
    """ScaleBiO's two models and optimizers. `layerwise`: a quarter of the layers trains at a time, and the edges."""

    def __init__(self, config: dict[str, object], target: list[list[int]], train: list[list[int]], *, layerwise: bool):
        settings = pretrained.model_config(config)
        self._models = [AutoModelForCausalLM.from_config(settings) for _ in Copy]
        self._optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4) for model in self._models]
        self._target, self._train = list(padded_groups(target)), list(padded_groups(train))
        self._layerwise = layerwise

    def choose(self, block: int) -> None:
        """Train the block-th quarter of the layers next."""
        for model in self._models:
            layers = model.model.layers
            chosen = quarter(block, len(layers))
            for index, layer in enumerate(layers):
                layer.requires_grad_(not self._layerwise or index in chosen)

    def step(self) -> None:
        """w on the target and on the sources, u on the sources, and both updates."""
        model, aux = self._models
        for groups, copy, weight in (
            (self._target, model, 1.0),
            (self._train, model, PENALTY),
            (self._train, aux, 1.0),
        ):
            for tokens, mask, labels in groups:
                loss = copy(input_ids=tokens, attention_mask=mask, labels=labels).loss
                (weight * loss / len(groups)).backward()
        for copy, optimizer in zip(self._models, self._optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(copy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def padded_groups(rows: list[list[int]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token ids, attention mask and labels of 8 rows each, padded to their longest."""
    for start in range(0, len(rows), ROWS):
        group = [torch.tensor(row[:-1]) for row in rows[start : start + ROWS]]
        tokens = torch.nn.utils.rnn.pad_sequence(group, batch_first=True)
        length = torch.tensor([len(row) for row in group])
        mask = torch.arange(tokens.shape[1]) < length[:, None]
        yield tokens, mask.long(), tokens.masked_fill(~mask, -100)


def quarter(block: int, num_layers: int) -> range:
    """Layers of the block-th quarter."""
    return range(block * num_layers // BLOCKS, (block + 1) * num_layers // BLOCKS)


def our_terms(target: list[list[int]], train: list[list[int]]) -> list[Term]:
    """The same rows for the engine."""
    goal, source = padded_batch(target), padded_batch(train)
    domains = torch.arange(len(train)) % NUM_DOMAINS
    source = Batch(
        tokens_BS=source.tokens_BS, mask_BS=source.mask_BS, domain_B=domains, row_weight_B=source.row_weight_B
    )
    uniform = torch.full((NUM_DOMAINS,), 1 / NUM_DOMAINS, dtype=torch.float64)
    weight_B = train_token_weights(source, uniform, torch.ones_like(uniform))
    return [
        Term(copy=Copy.MODEL, batch=goal, token_weight_B=target_token_weights(goal).float()),
        Term(copy=Copy.MODEL, batch=source, token_weight_B=(PENALTY * weight_B).float()),
        Term(copy=Copy.AUX, batch=source, token_weight_B=weight_B.float()),
    ]


Opened = tuple[Callable[[int], None], Callable[[], None]]


def open_ours(
    stack: ExitStack, config: dict[str, object], rows: tuple[list[list[int]], list[list[int]]], *, edges: bool
) -> Opened:
    """How to choose a block, and a step."""
    backend = open_engine(stack, config)
    terms = our_terms(*rows)
    num_layers = int(str(config["num_hidden_layers"]))

    def choose(block: int) -> None:
        backend.set_block(Block(layers=frozenset(quarter(block, num_layers)), edges=edges))

    def step() -> None:
        backend.forward_backward(terms)
        for copy in Copy:
            backend.update(copy, learning_rate=1e-4)

    return choose, step


def measured(opened: Opened, rounds: int) -> float:
    """CPU seconds of a step, on average over the blocks."""
    choose, step = opened
    seconds = 0.0
    for block in range(BLOCKS):
        choose(block)
        seconds += best_of({"step": step}, rounds)["step"] / BLOCKS
    return seconds


def peak_bytes(make: Callable[[ExitStack], Opened]) -> int:
    """Most bytes that live in a step once every block has had its turn; models and optimizers included."""
    with LiveBytes() as live, ExitStack() as stack:
        choose, step = make(stack)
        for block in range(BLOCKS):
            choose(block)
            step()
        live.restart()
        choose(0)
        step()
        return live.peak


def bench(shape: str, rounds: int = 2) -> None:
    """Times and peaks of both procedures at one size."""
    config = config_of(shape) | {"vocab_size": 4096}
    texts = instruction_rows(data_folder(), 48)
    rows = texts[:16], texts[16:]

    def theirs(layerwise: bool) -> Opened:
        procedure = AuthorsProcedure(config, *rows, layerwise=layerwise)
        return procedure.choose, procedure.step

    seconds = {layerwise: measured(theirs(layerwise), rounds) for layerwise in (False, True)}
    peak = {layerwise: peak_bytes(lambda _, chosen=layerwise: theirs(chosen)) for layerwise in (False, True)}
    for edges in (False, True):
        with ExitStack() as stack:
            ours = measured(open_ours(stack, config, rows, edges=edges), rounds)
        our_peak = peak_bytes(lambda stack, chosen=edges: open_ours(stack, config, rows, edges=chosen))
        print(
            f"bilevel step {shape}, a quarter of the layers, edges {'always' if edges else 'frozen'}: "
            f"{seconds[False] / ours:.2f}x the authors' procedure with all layers, {seconds[True] / ours:.2f}x "
            f"layer by layer; peak {our_peak / peak[False]:.2f} and {our_peak / peak[True]:.2f} of theirs "
            f"({our_peak / 2**20:.0f} MiB)",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if data_folder().is_dir():
        for chosen in sys.argv[1:] or [shape for shape in SHAPES if shape != "47M"]:
            bench(chosen)
    else:
        print(f"the authors' procedure: left out, there is no {data_folder()}")
