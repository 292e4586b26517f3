"""Data Sampler: stratified, seeded batches out of the token cache.

A row longer than a sequence is cut into consecutive windows; a window is what gets drawn. Every domain goes through
its windows in an order of its own, a new permutation each epoch, so that the token mean over its draws is the domain's
loss. Everything is a function of (seed, step): the same on every rank, after a resume, and in every layout.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class MixtureSampler:
    """Batches of about `tokens_per_step` target tokens in which domain d has the share p_d of the tokens.

    Every domain walks through its own windows, epoch after epoch; a window is due when the domain's share of the
    budget reaches its middle, and a step takes the windows that fell due. After t steps of T tokens a domain has had
    p_d·T·t tokens, within one window. A step in which nothing fell due takes the window that is due next; with D
    domains and windows of up to L tokens that never happens for T > D·L, and otherwise puts a domain ahead by at most
    p_d·D·L more.

    Nothing is drawn with replacement, so a small domain with a large weight is repeated as often as its weight makes
    it. Equal seeds visit the windows of a domain in the same order, whatever the weights; a weight of 0 draws none.

    Args:
        corpus: the rows.
        weights_D: p, summing to 1, in the order of the corpus's domains.
        sequence_length: L, target tokens of a window at most.
        tokens_per_step: T, at least L.
        seed: of the order of the windows.
        data_share: share of each domain's rows that there is, in (0, 1]; which ones is drawn by the seed. A training
            of n tokens on n/B of the rows repeats each domain as often as one of B tokens on all of them.
    """

    def __init__(
        self,
        corpus: TokenCache,
        weights_D: NDArray[np.float64],
        *,
        sequence_length: int,
        tokens_per_step: int,
        seed: int,
        data_share: float = 1.0,
    ) -> None:
        part = corpus if data_share == 1 else corpus.only(share_of_rows(corpus, data_share, seed, "share"))
        self._windows = _Windows(part, sequence_length, f"{seed}:mixture")
        self._weights_D = weights_D
        self._tokens_per_step = tokens_per_step
        # Domains that get less than a window a step take turns instead of all coming at once.
        spread = (np.arange(len(weights_D)) + 0.5) / len(weights_D) - 0.5
        self._late_D = sequence_length * _generator(seed, "turns").permutation(spread)

    def batches(self, num_steps: int) -> Iterator[Batch]:
        """The first `num_steps` batches; none is empty."""
        queue = [self._due(int(domain), 0, 0) for domain in np.flatnonzero(self._weights_D)]
        heapq.heapify(queue)
        for step in range(num_steps):
            picked: list[_Due] = []
            while not picked or queue[0].budget <= self._tokens_per_step * (step + 1):
                due = queue[0]
                heapq.heapreplace(queue, self._due(due.domain, due.place + 1, due.given + due.length))
                picked.append(due)
            windows = np.array([due.window for due in picked], dtype=np.int64)
            yield self._windows.batch(windows, np.array([due.domain for due in picked], dtype=np.int64))

    def _due(self, domain: int, place: int, given: int) -> _Due:
        """The `place`-th window of a domain that has had `given` tokens."""
        window = int(self._windows.draw(domain, range(place, place + 1))[0])
        length = self._windows.length(window)
        budget = (given + length / 2 + self._late_D[domain]) / self._weights_D[domain]
        return _Due(float(budget), domain, place, given, window, length)


def share_of_rows(cache: TokenCache, share: float, seed: int, purpose: str) -> Indices:
    """The places of a part of each domain's rows, at least one, ascending; another part for another purpose."""
    counts = np.bincount(cache.domain, minlength=len(cache.domains))
    wanted = np.maximum(1, np.ceil(share * counts)).astype(np.int64)
    order = _generator(seed, purpose).permutation(cache.num_rows)
    order = order[np.argsort(cache.domain[order], kind="stable")]  # by domain, random within
    place = np.arange(cache.num_rows) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < wanted[cache.domain[order]]])


class _Due(NamedTuple):
    """A window, and the tokens of the whole mixture with which it is due; ordered by those."""

    budget: float
    domain: int
    place: int
    given: int
    window: int
    length: int


class RowSet:
    """Every window of a cache once, to evaluate a model on its rows."""

    def __init__(self, cache: TokenCache, sequence_length: int) -> None:
        self._windows = _Windows(cache, sequence_length, "rows")
        self._num_rows = cache.num_rows

    def batches(self, windows_per_batch: int = 256) -> Iterator[Batch]:
        """The windows in the order of the cache."""
        for first in range(0, self.num_windows, windows_per_batch):
            windows = np.arange(first, min(self.num_windows, first + windows_per_batch))
            yield self._windows.batch(windows, np.full(len(windows), -1))

    @property
    def num_windows(self) -> int:
        """Windows of all rows."""
        return len(self._windows.row)

    @property
    def row_of_tokens(self) -> Indices:
        """The row of every target token, in the order of the batches."""
        return np.repeat(self._windows.row, self._windows.num_targets)

    def by_row(self, loss_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """The windows' summed losses added up by row, in the order of the cache's rows."""
        return np.bincount(self._windows.row, weights=loss_N, minlength=self._num_rows).astype(np.float64)


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
        self._start = start[order]
        self._length: Indices = length[order]
        self.row = row[order]
        self._salt = salt
        self.num_windows = np.bincount(cache.domain[row], minlength=len(cache.domains))
        self._first = np.cumsum(self.num_windows) - self.num_windows
        self._permutations: OrderedDict[tuple[int, int], Indices] = OrderedDict()

    def draw(self, domain: int, draws: range) -> Indices:
        """The windows of a domain at these places in its endless sequence of epochs."""
        size = int(self.num_windows[domain])
        picked = [self._permutation(domain, j // size, size)[j % size] for j in draws]
        return np.array(picked, dtype=np.int64) + int(self._first[domain])

    @property
    def num_targets(self) -> Indices:
        """Target tokens of every window."""
        return self._length

    def length(self, window: int) -> int:
        """Target tokens of a window."""
        return int(self._length[window])

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
