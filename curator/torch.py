"""Training by row weights in plain torch: a sampler, and a loss that each row has its weight in.

No trainer reads a column of weights, so rows are either drawn by them (`WeightedSampler`) or weighed in the loss
(`WeightedCollator` and `weighted_loss`), not both. Both give every domain its share of the gradient; drawing spends no
computation on rows of little weight, weighing sees every row. Weights are the column `sample_weight` of a published
lake, or those of the rows' domains out of `curator export --format torch` (`row_weights`).

With transformers' Trainer, the rows' weights in the column `sample_weight`:

    class WeightedTrainer(Trainer):
        def compute_loss(self, model, inputs, **settings):
            weights = inputs.pop("sample_weight")
            self.compute_loss_func = lambda outputs, labels, num_items_in_batch: weighted_loss(
                outputs.logits, labels, weights, num_items_in_batch
            )
            return super().compute_loss(model, inputs, **settings)

    WeightedTrainer(..., data_collator=WeightedCollator(collator), args=TrainingArguments(remove_unused_columns=False))

and to draw instead, `_get_train_sampler` returns a `WeightedSampler` of one rank, since the Trainer shards it itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from curator.errors import ConfigError
from curator.files import read_object

_BLOCK = 1 << 16
_ROUNDS = 6
_OFFSETS = 1 << 20


def row_weights(path: str | Path, domains: Sequence[str]) -> NDArray[np.float64]:
    """The weight (N,) of each row by its domain, out of a file of `curator export --format torch`.

    Raises:
        ConfigError: the file cannot be read, or does not know a domain.
    """
    weights = read_object(Path(path), "weights", '{"row_weights": {domain: weight}}').get("row_weights")
    if not isinstance(weights, dict):
        raise ConfigError(f"weights file {path} has no row_weights", hint="write it with curator export --format torch")
    names, place_N = np.unique(np.asarray(domains, dtype=np.str_), return_inverse=True)
    for name in names:
        if name not in weights:
            raise ConfigError(
                f"weights file {path} does not know domain {str(name)!r}", hint=f"it has {', '.join(weights)}"
            )
    return np.array([weights[name] for name in names], dtype=np.float64)[place_N]


class WeightedSampler(torch.utils.data.Sampler[int]):
    """Row numbers in proportion to their weights, in an order of its own every epoch.

    Of `num_draws` draws a row of weight w gets num_draws·w/Σw, rounded up or down at random with exactly that expected
    value, so equal weights give every row once. `torch.utils.data.WeightedRandomSampler` draws with replacement, which
    leaves out a third of such rows, and takes at most 2²⁴ of them. Rows of weight 0 are never drawn.

    Every draw is a function of (seed, epoch, its place in the epoch): the same for any number of ranks, of which rank r
    takes the places r, r + world_size, …; up to world_size − 1 last places are nobody's. Memory: 8 bytes a row.

    Args:
        weights_N: (N,) weights, at least 0, of any scale.
        num_draws: draws of an epoch over all ranks; N if None.
        seed: of the order, and of how draws are rounded.
        rank: this process among those that share an epoch.
        world_size: how many those are.

    Raises:
        ConfigError: weights that are none, or sizes that do not fit.
    """

    def __init__(
        self,
        weights_N: ArrayLike,
        *,
        num_draws: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        weights = np.asarray(weights_N, dtype=np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise ConfigError(
                "row weights must be one finite number of at least 0 for each row, not all 0",
                hint="rows without a weight get 0",
            )
        self._num_draws = len(weights) if num_draws is None else num_draws
        if not 0 <= rank < world_size <= self._num_draws:
            raise ConfigError(
                f"rank {rank} of {world_size} with {self._num_draws} draws an epoch: ranks go from 0 to "
                "world_size − 1, and each must get a draw"
            )
        self._cumulative_N = np.cumsum(weights)
        self._last = int(np.flatnonzero(weights)[-1])
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._epoch = self._position = 0

    def __len__(self) -> int:
        """Draws of this rank in an epoch."""
        return self._num_draws // self._world_size

    def set_epoch(self, epoch: int) -> None:
        """Begin that epoch; nothing is changed if it has begun already, so that a resumed one goes on."""
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where all ranks are: the epoch, and the draws of it that all of them together have had.

        A DataLoader with workers asks ahead of training. With one, set `position` to the rows that were trained on.
        """
        return {"seed": self._seed, "num_draws": self._num_draws, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a sampler of the same weights was, with any number of ranks.

        Raises:
            ConfigError: it had another seed or number of draws.
        """
        for name in ("seed", "num_draws"):
            if state[name] != self.state_dict()[name]:
                raise ConfigError(
                    f"the state is of a sampler with {name}={state[name]}, this one has {self.state_dict()[name]}",
                    hint="make it with the same weights and settings",
                )
        self._epoch, self._position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[int]:
        """The rest of the epoch; after its end comes the next one."""
        end = self._num_draws - (self._num_draws - self._position) % self._world_size
        while self._position < end:
            stop = min(end, self._position + _BLOCK * self._world_size)
            places = np.arange(self._position + self._rank, stop, self._world_size, dtype=np.uint64)
            for row in self._rows(places).tolist():
                self._position += self._world_size
                yield row
            self._position = max(self._position, stop)
        self._epoch, self._position = self._epoch + 1, 0

    def _rows(self, places: NDArray[np.uint64]) -> NDArray[np.intp]:
        """The rows at these places of the epoch: evenly spaced points of the cumulative weights, in random order."""
        keys = np.random.default_rng((self._seed, self._epoch)).integers(2**63, size=_ROUNDS + 1, dtype=np.uint64)
        offset = int(keys[-1]) % _OFFSETS / _OFFSETS  # few digits, so that place + offset is exact
        points = (_permuted(places, self._num_draws, keys[:-1]) + offset) * (self._cumulative_N[-1] / self._num_draws)
        rows: NDArray[np.intp] = np.searchsorted(self._cumulative_N, points, side="right")
        return np.minimum(rows, self._last)


def _permuted(places: NDArray[np.uint64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The places under a permutation of range(size) that the keys choose, without holding it.

    A Feistel network over the next even number of bits, followed until it is below `size` again (cycle walking).
    """
    half = np.uint64(max(1, math.ceil((size - 1).bit_length() / 2)))
    mask = np.uint64((1 << int(half)) - 1)

    def once(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        return (left << half) | right

    found = once(places)
    while (outside := found >= size).any():
        found[outside] = once(found[outside])
    return found


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 64 bits. Source: the finalizer of splitmix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class WeightedCollator:
    """A collator that keeps the rows' weights: what `collator` makes of the rest, and `sample_weight` (B,) beside it.

    Args:
        collator: makes a batch out of rows without the weight.
        column: the rows' key that has the weight.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Any], *, column: str = "sample_weight") -> None:
        self._collator = collator
        self._column = column

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """A batch of the rows.

        Raises:
            ConfigError: a row without a weight.
        """
        if any(row.get(self._column) is None for row in rows):
            raise ConfigError(
                f"a row has no {self._column!r}",
                hint="with transformers' Trainer set remove_unused_columns=False, "
                "or name the column that has the weights",
            )
        batch = self._collator([{name: row[name] for name in row if name != self._column} for row in rows])
        batch["sample_weight"] = torch.tensor([float(row[self._column]) for row in rows])
        return batch


def weighted_loss(
    logits_BSV: torch.Tensor,
    labels_BS: torch.Tensor,
    weight_B: torch.Tensor,
    num_items: torch.Tensor | int | None = None,
    *,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Σ_b w_b·(summed loss of row b) / number of target tokens, for causal language models.

    Weights with the mean 1 keep the scale of the loss, and so the learning rate; equal ones give the plain mean over
    tokens. The divisor has no weights in it, so that parts of a batch add up to the whole.

    Args:
        logits_BSV: (B, S, V) logits; those at s predict the label at s + 1.
        labels_BS: (B, S) labels, `ignore_index` where there is nothing to predict.
        weight_B: (B,) row weights.
        num_items: target tokens of the whole batch, over accumulated steps and ranks; those of this part if None.
        ignore_index: the label that is not counted.
    """
    targets_BS = labels_BS[:, 1:]
    loss_BS = torch.nn.functional.cross_entropy(
        logits_BSV[:, :-1].float().transpose(1, 2), targets_BS, reduction="none", ignore_index=ignore_index
    )
    total = (loss_BS.sum(dim=1) * weight_B).sum()
    return total / (num_items if num_items is not None else (targets_BS != ignore_index).sum())
