"""Leak guard: rows of the lake that also stand in the target.

Such rows would get the highest weights, and a model trained on them would look better than it is. A text is compared
by its words (see `curator.words`). A row leaks if it is equal to a target row, if half of its 13-word sequences stand
in the target, or if it holds half of those of one target row. A smaller overlap is reported only: boilerplate and
quotations are no leak.

13-grams: Brown et al. 2020 (arXiv 2005.14165), appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator.words import HashedWords, Hashes

NGRAM = 13
"""Words of a sequence that is compared."""
SHARE = 0.5
"""Share of a row's sequences from which on it is a near duplicate."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """What was found in a lake of `num_rows` rows.

    `num_exact` and `num_near` rows leak, by domain in `by_domain`; `num_overlapping` more share a sequence of 13 words
    with the target and do not. `examples` are sample ids of leaking rows.
    """

    num_rows: int = 0
    num_exact: int = 0
    num_near: int = 0
    num_overlapping: int = 0
    by_domain: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def num_leaks(self) -> int:
        """Rows that leak."""
        return self.num_exact + self.num_near

    @property
    def share(self) -> float:
        """Share of the lake's rows that leak."""
        return self.num_leaks / self.num_rows if self.num_rows else 0.0

    def __str__(self) -> str:
        if not self.num_leaks:
            return "no row of the lake stands in the target"
        most = sorted(self.by_domain.items(), key=lambda item: -item[1])[:3]
        where = ", ".join(f"{name} {count:,}" for name, count in most)
        return (
            f"{self.num_leaks:,} rows of the lake ({self.share:.2%}) also stand in the target: {self.num_exact:,} "
            f"word for word, {self.num_near:,} nearly ({where})"
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of some rows, (B,) each: equal to a target row, nearly so, or with some overlap but no leak."""

    exact: Flags
    near: Flags
    overlapping: Flags

    @property
    def leaks(self) -> Flags:
        """Rows that leak."""
        return self.exact | self.near


class LeakGuard:
    """Finds the rows that stand in a set of target texts; remembers in `hit` which of those were found."""

    def __init__(self, targets: Sequence[str]) -> None:
        hashed = _Hashed(targets)
        self.hit: Flags = np.zeros(len(targets), dtype=bool)
        self._whole, self._whole_owner = np.unique(hashed.whole, return_index=True)
        self._grams, first = np.unique(hashed.grams, return_index=True)
        self._owner = hashed.gram_row[first]
        self._size = np.bincount(hashed.gram_row, minlength=len(targets))

    def find(self, texts: Sequence[str]) -> Found:
        """What of `texts` stands in the target."""
        hashed = _Hashed(texts)
        count = len(texts)
        exact, place = _members(hashed.whole, self._whole)
        self.hit[self._whole_owner[place[exact]]] = True
        matched, place = _members(hashed.grams, self._grams)
        num_matched = np.bincount(hashed.gram_row[matched], minlength=count)
        num_grams = np.bincount(hashed.gram_row, minlength=count)
        near = (num_matched > 0) & (num_matched >= SHARE * num_grams)
        pairs = np.unique(np.stack([hashed.gram_row[matched], place[matched]]), axis=1)
        held = np.stack([pairs[0], self._owner[pairs[1]]])
        (row, owner), num_held = np.unique(held, axis=1, return_counts=True)
        whole_owner = num_held >= SHARE * self._size[owner]
        near[row[whole_owner]] = True
        self.hit[owner[whole_owner]] = True
        near &= ~exact
        return Found(exact=exact, near=near, overlapping=(num_matched > 0) & ~exact & ~near)


class LeakCounter:
    """Adds up a `LeakReport` over the batches of a lake."""

    _MOST_EXAMPLES = 20

    def __init__(self, targets: Sequence[str], domains: Sequence[str]) -> None:
        self.guard = LeakGuard(targets)
        self._domains = domains
        self._counts = np.zeros(len(domains), dtype=np.int64)
        self._totals = np.zeros(4, dtype=np.int64)
        self._examples: list[str] = []

    def find(self, sample_id: Any, texts: Sequence[str], domain: NDArray[np.int32]) -> Flags:
        """The rows of a batch that leak, counted."""
        found = self.guard.find(texts)
        self._totals += [len(texts), found.exact.sum(), found.near.sum(), found.overlapping.sum()]
        self._counts += np.bincount(domain[found.leaks], minlength=len(self._domains))
        room = self._MOST_EXAMPLES - len(self._examples)
        self._examples += [str(sample_id[int(i)]) for i in np.flatnonzero(found.leaks)[:room]]
        return found.leaks

    def report(self) -> LeakReport:
        """What was found so far."""
        rows, exact, near, overlapping = map(int, self._totals)
        return LeakReport(
            num_rows=rows,
            num_exact=exact,
            num_near=near,
            num_overlapping=overlapping,
            by_domain={name: int(n) for name, n in zip(self._domains, self._counts, strict=True) if n},
            examples=self._examples,
        )


class _Hashed:
    """The words of some texts as 64-bit hashes: of each whole text, and of every sequence of `NGRAM` words."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = HashedWords(texts)
        self.whole = words.whole()
        self.grams, self.gram_row = words.sequences(NGRAM)


def _members(values: Hashes, among: Hashes) -> tuple[Flags, NDArray[np.int64]]:
    """Which `values` are in the sorted `among`, and where."""
    if not len(among):
        return np.zeros(len(values), dtype=bool), np.zeros(len(values), dtype=np.int64)
    place = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return among[place] == values, place
