"""The rows that a run did not measure: a scorer is trained on those that it did, and says what to expect of the others.

The lake's text is read in batches: of a sample of its rows to count sequences, of the measured rows for their features,
and of the rest for what is expected of it. What is kept of a row is a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curator.errors import InputError, StorageError, TryAgainError, one_line, translated
from curator.features import Counter, Features, Frequencies, describe, halves, unit_hashes
from curator.progress import Progress, ProgressCallback
from curator.row_gaps import MeasuredRows
from curator.scorer import LEAST_ROWS, Judgement, Scorer, fit, held_out
from curator.tokens import TokenCache, read_tokenizer
from optim.row_gaps import Floats

if TYPE_CHECKING:
    from curator.lake import Lake

COUNTED_ROWS = 50_000
"""Rows of the lake whose sequences are counted, about."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of the training of a scorer.

    `scorer` is None if it may not be used, `refusal` then says why; `expected_N` is what it expects of the rows of the
    corpus that were not measured, 0 for the others.
    """

    scorer: Scorer | None = None
    expected_N: Floats | None = None
    judgement: Judgement | None = None
    refusal: str | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """For the run's record."""
        return {"is_usable": self.scorer is not None, "refusal": self.refusal} | (
            asdict(self.judgement) if self.judgement else {}
        )


def score_unmeasured(
    lake: Lake,
    corpus: TokenCache,
    target: TokenCache,
    measured: MeasuredRows,
    sharpness: float,
    on_progress: ProgressCallback,
) -> Scored:
    """Train a scorer on the measured rows of `corpus`, and use it on the others if it may be.

    What was measured stands without it: a lake whose text cannot be read any more is told as a refusal.
    """
    num_measured = len(measured.places)
    if num_measured < LEAST_ROWS:
        return Scored(refusal=f"{num_measured:,} measured rows are fewer than the {LEAST_ROWS} that a scorer needs")
    try:
        with translated():
            return _Training(lake, corpus, target, on_progress).run(measured, sharpness)
    except (InputError, StorageError, TryAgainError) as error:
        return Scored(refusal=f"the text for a scorer could not be read ({one_line(error)})")
    finally:
        lake.release()


class _Training:
    """One training of a scorer."""

    def __init__(self, lake: Lake, corpus: TokenCache, target: TokenCache, on_progress: ProgressCallback) -> None:
        self._lake = lake
        self._corpus = corpus
        self._target = target
        self._tell = on_progress
        self._ids = corpus.sample_ids()

    def run(self, measured: MeasuredRows, sharpness: float) -> Scored:
        places, frequencies = measured.places, self._frequencies()
        features, is_held_R = self._features(places, frequencies)
        scorer, judgement = fit(
            features,
            measured.gaps,
            is_held_R=is_held_R,
            domain_R=np.asarray(self._corpus.domain)[places],
            tokens_R=np.asarray(self._corpus.num_targets)[places],
            domains=self._corpus.domains,
            frequencies=frequencies,
            sharpness=sharpness,
        )
        if judgement.refusal:
            return Scored(judgement=judgement, refusal=judgement.refusal)
        return Scored(scorer=scorer, judgement=judgement, expected_N=self._expected(scorer, places))

    def _frequencies(self) -> Frequencies:
        counter, share = Counter(), COUNTED_ROWS / self._corpus.num_rows
        chosen = np.flatnonzero(unit_hashes(self._ids, "counted") < share)
        for _, texts in self._texts(chosen, "rows counted for the scorer"):
            counter.add_lake(texts, halves(texts))
        counter.add_target(pa.array(_texts_of(self._target), pa.string()))
        return counter.frequencies()

    def _features(self, places: Indices, frequencies: Frequencies) -> tuple[Features, NDArray[np.bool_]]:
        """Of the rows at these places, and which of them judge the scorer."""
        parts, held, found = [], [], []
        for place, texts in self._texts(places, "rows described for the scorer"):
            parts.append(describe(texts, halves(texts), frequencies))
            held.append(held_out(texts))
            found.append(place)
        order = np.argsort(np.concatenate(found))  # as `places` are
        features = Features(
            dense_NF=np.concatenate([part.dense_NF for part in parts])[order],
            hashed=np.concatenate([part.hashed for part in parts])[order],
        )
        return features, np.concatenate(held)[order]

    def _expected(self, scorer: Scorer, measured: Indices) -> Floats:
        expected_N = np.zeros(self._corpus.num_rows)
        domain_N = np.asarray(self._corpus.domain)
        others = np.setdiff1d(np.arange(self._corpus.num_rows), measured, assume_unique=True)
        for place, texts in self._texts(others, "rows scored"):
            expected_N[place] = scorer.expected(texts, domain_N[place])
        return expected_N

    def _texts(self, places: Indices, detail: str) -> Iterator[tuple[Indices, pa.Array]]:
        """(places in the corpus, texts) in batches, in any order.

        Raises:
            InputError: the lake does not have all of the rows any more.
        """
        done = 0
        for index, texts in self._lake.texts_of(self._ids.take(pa.array(places))):
            yield places[index], texts
            done += len(index)
            self._tell(Progress(stage="score", done=done, total=len(places), detail=detail))
        if done != len(places):
            raise InputError(f"{len(places) - done:,} rows of the run are not in {self._lake.url} any more")


def _texts_of(cache: TokenCache) -> list[str]:
    """The texts of a cache, as its tokenizer puts them together again."""
    ends = cache.start + cache.num_targets
    return read_tokenizer(cache.folder).decode(
        [cache.tokens[first + 1 : end] for first, end in zip(cache.start, ends, strict=True)]
    )
