"""Data Sampler: stratified, seeded batches out of the token cache.

A row longer than a sequence is cut into consecutive windows; a window is what gets drawn. Every domain goes through
its windows in an order of its own, a new permutation each epoch, so that the token mean over its draws is the domain's
loss. Everything is a function of (seed, step): the same on every rank, after a resume, and in every layout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curator.tokens import TokenCache
from optim.batch import Batch, StepData

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Sizes of a step's draws; `rows_per_domain` sequences from each of at most `domains_per_step` domains."""

    sequence_length: int
    rows_per_domain: int
    domains_per_step: int
    target_rows: int
    seed: int


class Sampler:
    """A `BatchSource` over a corpus and a target cache."""

    def __init__(self, corpus: TokenCache, target: TokenCache, settings: SamplerSettings) -> None:
        self._settings = settings
        self._domains = corpus.domains
        self._corpus = _Windows(corpus, settings.sequence_length, f"{settings.seed}:corpus")
        self._target = _Windows(target, settings.sequence_length, f"{settings.seed}:target")

    @property
    def domains(self) -> Sequence[str]:
        """Names of the domains, in the order of every (D,) tensor."""
        return self._domains

    def epochs_at(self, step: int) -> NDArray[np.float64]:
        """Passes over each domain's windows after `step` steps, (D,), were every domain in every step."""
        draws = step * self._settings.rows_per_domain
        return draws / self._corpus.num_windows

    def at(self, step: int) -> StepData:
        """The data of `step`."""
        chosen, inclusion = self._domains_at(step)
        first = step * self._settings.rows_per_domain
        draws = range(first, first + self._settings.rows_per_domain)
        windows = np.concatenate([self._corpus.draw(int(d), draws) for d in chosen])
        labels = np.repeat(chosen, self._settings.rows_per_domain)
        first = step * self._settings.target_rows
        target = self._target.draw(0, range(first, first + self._settings.target_rows))
        return StepData(
            train=self._corpus.batch(windows, labels),
            target=self._target.batch(target, np.full(len(target), -1)),
            inclusion_D=torch.from_numpy(inclusion),
        )

    def _domains_at(self, step: int) -> tuple[Indices, NDArray[np.float32]]:
        """Domains in a step, and π⁻¹ of each: a uniform subset where there are more domains than fit a step."""
        count, limit = len(self._domains), self._settings.domains_per_step
        if count <= limit:
            return np.arange(count), np.ones(count, dtype=np.float32)
        rng = _generator(self._settings.seed, "domains", step)
        chosen = np.sort(rng.choice(count, size=limit, replace=False))
        inclusion = np.zeros(count, dtype=np.float32)
        inclusion[chosen] = count / limit
        return chosen, inclusion


class _Windows:
    """The windows of a cache, grouped by domain; each is (row start, target count)."""

    def __init__(self, cache: TokenCache, sequence_length: int, salt: str) -> None:
        targets = cache.num_targets
        per_row = -(-targets // sequence_length)
        row = np.repeat(np.arange(cache.num_rows), per_row)
        within = np.arange(len(row)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
        order = np.argsort(cache.domain[row], kind="stable")
        start = cache.start[row] + within * sequence_length
        length = np.minimum(sequence_length, targets[row] - within * sequence_length)
        self._tokens = cache.tokens
        self._start, self._length = start[order], length[order]
        self._salt = salt
        self.num_windows = np.bincount(cache.domain[row], minlength=len(cache.domains))
        self._first = np.cumsum(self.num_windows) - self.num_windows
        self._permutations: OrderedDict[tuple[int, int], Indices] = OrderedDict()

    def draw(self, domain: int, draws: range) -> Indices:
        """The windows of a domain at these places in its endless sequence of epochs."""
        size = int(self.num_windows[domain])
        picked = [self._permutation(domain, j // size, size)[j % size] for j in draws]
        return np.array(picked, dtype=np.int64) + int(self._first[domain])

    def batch(self, windows: Indices, labels: Indices) -> Batch:
        """These windows, padded to the longest of them."""
        starts, lengths = self._start[windows], self._length[windows]
        width = int(lengths.max())
        tokens = np.zeros((len(windows), width + 1), dtype=np.int64)
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            tokens[i, : length + 1] = self._tokens[start : start + length + 1]
        mask = np.arange(width) < lengths[:, None]
        return Batch(
            tokens_BS=torch.from_numpy(tokens),
            mask_BS=torch.from_numpy(mask.astype(np.float32)),
            domain_B=torch.from_numpy(labels.astype(np.int64)),
            row_weight_B=torch.ones(len(windows)),
        )

    def _permutation(self, domain: int, epoch: int, size: int) -> Indices:
        """The order of an epoch; the last few are kept."""
        key = (domain, epoch)
        if key not in self._permutations:
            self._permutations[key] = _generator(self._salt, domain, epoch).permutation(size)
            if len(self._permutations) > 2 * len(self.num_windows):
                self._permutations.popitem(last=False)
        self._permutations.move_to_end(key)
        return self._permutations[key]


def _generator(*key: Any) -> np.random.Generator:
    """A generator that is a function of its key alone."""
    return np.random.default_rng(list(":".join(map(str, key)).encode()))
