"""Leak guard: rows of the lake that also stand in the target.

Such rows would get the highest weights, and a model trained on them would look better than it is. A text is compared
by its words (see `curator.words`). Let G(x) be the set of the sequences of 13 words in x, without those that stand in
more than 10 target rows: they belong to a template. A row r of the lake leaks if, for some target row t, it has the
words of t, or |G(r) ∩ G(t)| ≥ |G(t)| / 2; or if |G(r) ∩ ⋃G(t)| ≥ |G(r)| / 2. A smaller overlap is reported only:
boilerplate and quotations are no leak. Rows of fewer than 13 words leak when they are equal.

Sets are compared by 64-bit hashes. 13-grams: Brown et al. 2020 (arXiv 2005.14165), appendix C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator.words import HashedWords, Hashes

NGRAM = 13
"""Words of a sequence that is compared."""
MOST_OWNERS = 10
"""Target rows beyond which a sequence that they share says nothing of any of them (as in Brown et al.)."""
SHARE = 0.5
"""Share of the sequences of a row of the lake, or of one of the target, from which on the first leaks."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """What was found in a lake of `num_rows` rows.

    `num_exact` and `num_near` rows leak, by domain in `by_domain`; `num_overlapping` more share a sequence of 13 words
    with the target and do not. `examples` are sample ids of leaking rows. `kept` says what became of those.
    """

    num_rows: int = 0
    num_exact: int = 0
    num_near: int = 0
    num_overlapping: int = 0
    by_domain: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    kept: bool = False

    @property
    def num_leaks(self) -> int:
        """Rows that leak."""
        return self.num_exact + self.num_near

    @property
    def share(self) -> float:
        """Share of the lake's rows that leak."""
        return self.num_leaks / self.num_rows if self.num_rows else 0.0

    def to_json(self) -> dict[str, Any]:
        """As values of JSON, with the share."""
        return asdict(self) | {"num_leaks": self.num_leaks, "share": self.share}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> LeakReport:
        """The inverse of `to_json`."""
        return LeakReport(**{name: value for name, value in values.items() if name not in ("num_leaks", "share")})

    def __str__(self) -> str:
        if not self.num_leaks:
            return "no row of the lake stands in the target"
        most = sorted(self.by_domain.items(), key=lambda item: -item[1])[:3]
        where = ", ".join(f"{name} {count:,}" for name, count in most)
        rows, stand = ("row", "stands") if self.num_leaks == 1 else ("rows", "stand")
        return (
            f"{self.num_leaks:,} {rows} of the lake ({self.share:.2%}) also {stand} in the target: {self.num_exact:,} "
            f"word for word, {self.num_near:,} nearly ({where}); {'kept' if self.kept else 'left out'}"
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
    """Finds the rows that stand in a set of target texts.

    `hit` marks the target texts that some row was equal to, or held half the sequences of.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        hashed = _Hashed(targets)
        self.hit: Flags = np.zeros(len(targets), dtype=bool)
        self._whole, self._whole_of_target = np.unique(hashed.whole, return_inverse=True)
        target, gram = _distinct(hashed.gram_row, hashed.gram)
        self._all_grams, num_owners = np.unique(gram, return_counts=True)
        self._template = self._all_grams[num_owners > MOST_OWNERS]
        kept = ~_members(gram, self._template)[0]
        target, gram = target[kept], gram[kept]
        order = np.argsort(gram, kind="stable")
        self._grams, self._first, self._num_owners = np.unique(gram[order], return_index=True, return_counts=True)
        self._owners = target[order]  # of gram g: from _first[g], _num_owners[g] of them
        self._size = np.bincount(target, minlength=len(targets))

    def find(self, texts: Sequence[str]) -> Found:
        """What of `texts` stands in the target."""
        hashed = _Hashed(texts)
        count = len(texts)
        exact, place = _members(hashed.whole, self._whole)
        seen = np.zeros(len(self._whole), dtype=bool)
        seen[place[exact]] = True
        self.hit |= seen[self._whole_of_target]
        matched, _ = _members(hashed.gram, self._all_grams)
        overlapping = np.bincount(hashed.gram_row[matched], minlength=count) > 0
        near = self._near(hashed, overlapping) & ~exact
        return Found(exact=exact, near=near, overlapping=overlapping & ~exact & ~near)

    def _near(self, hashed: _Hashed, overlapping: Flags) -> Flags:
        """Which of the `overlapping` rows, (B,), are nearly a target row; marks those in `hit`."""
        of_interest = overlapping[hashed.gram_row]
        row, gram = _distinct(hashed.gram_row[of_interest], hashed.gram[of_interest])
        kept = ~_members(gram, self._template)[0]
        row, gram = row[kept], gram[kept]
        matched, place = _members(gram, self._grams)
        num_grams = np.bincount(row, minlength=len(overlapping))
        near = np.bincount(row[matched], minlength=len(overlapping)) >= SHARE * num_grams
        row, place = row[matched], place[matched]
        last = np.cumsum(np.bincount(row, minlength=len(overlapping)))
        for r in np.flatnonzero(overlapping):  # one by one: a boilerplate's sequences have very many owners
            held = self._num_held(place[last[r - 1] if r else 0 : last[r]])
            whole = (held > 0) & (held >= SHARE * self._size)
            self.hit |= whole
            near[r] |= whole.any()
        return near & overlapping

    def _num_held(self, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of these sequences each target text has, (number of targets,)."""
        count = self._num_owners[place]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        owners = self._owners[np.repeat(self._first[place], count) + within]
        return np.bincount(owners, minlength=len(self._size))


class LeakCounter:
    """Adds up a `LeakReport` over the batches of a lake."""

    _MOST_EXAMPLES = 20

    def __init__(self, targets: Sequence[str], domains: Sequence[str], *, keep: bool = False) -> None:
        self._guard = LeakGuard(targets)
        self._keep = keep
        self._domains = domains
        self._counts = np.zeros(len(domains), dtype=np.int64)
        self._totals = np.zeros(4, dtype=np.int64)
        self._examples: list[str] = []

    def excluded(self, sample_id: Any, texts: Sequence[str], domain: NDArray[np.int32]) -> Flags:
        """The rows of a batch that are to be left out; counts all that leak."""
        found = self._guard.find(texts)
        self._totals += [len(texts), found.exact.sum(), found.near.sum(), found.overlapping.sum()]
        self._counts += np.bincount(domain[found.leaks], minlength=len(self._domains))
        room = self._MOST_EXAMPLES - len(self._examples)
        self._examples += [str(sample_id[int(i)]) for i in np.flatnonzero(found.leaks)[:room]]
        return found.leaks & (not self._keep)

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
            kept=self._keep,
        )


class _Hashed:
    """The words of some texts as 64-bit hashes: of each whole text, and of every sequence of `NGRAM` words."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = HashedWords(texts)
        self.whole = words.whole()
        self.gram, self.gram_row = words.sequences(NGRAM)


def _distinct(row: NDArray[np.int64], gram: Hashes) -> tuple[NDArray[np.int64], Hashes]:
    """The pairs that differ, sorted by row."""
    order = np.lexsort((gram, row))
    row, gram = row[order], gram[order]
    is_new = np.ones(len(row), dtype=bool)
    is_new[1:] = (row[1:] != row[:-1]) | (gram[1:] != gram[:-1])
    return row[is_new], gram[is_new]


def _members(values: Hashes, among: Hashes) -> tuple[Flags, NDArray[np.int64]]:
    """Which `values` are in the sorted `among`, and where."""
    if not len(among):
        return np.zeros(len(values), dtype=bool), np.zeros(len(values), dtype=np.int64)
    place = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return among[place] == values, place
