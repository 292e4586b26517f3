"""Whether rows that came since a run look like those it was learned on, domain by domain; no model is needed.

A run keeps what its rows look like: of a sample of each domain, the mean shares of sequences of three bytes and of
words that fall into hashed buckets (`curator.features.content`). New rows are compared with it by the Jensen–Shannon
divergence in bits, the mean of both kinds: 0 for equal distributions, 1 for such that share no bucket. Of real text,
another language lies .2 away, a language nearby or another kind of text of the same one .05 to .1.

Few rows differ from many by chance: n new rows from N by about c·(1/n + 1/N), and c is measured, on the halves into
which the run's sample can be cut: it is kept in eight groups. What counts as drift lies above three standard deviations
of that. Fewer rows differ by less than the rule says, whose divergence saturates, so that they have to differ clearly.

Where the run has a scorer, the gaps that it expects of new rows are compared with their domain's mean, too, in
standard deviations of the measured gaps.

Shapes: D domains, G groups, H buckets of both kinds, N rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from connectors.store import Store
from curator.features import NUM_HASHED, content, text_hashes, unit_hashes
from curator.files import write_atomically
from curator.progress import Progress, ProgressCallback
from curator.scorer import Scorer, places_in, read_npz
from curator.tokens import RowBatch

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.run import Run

CONTENT = "content.npz"
"""Beside a token cache, and in the folder of a run that was learned from it: what the rows of each domain look like."""
SCHEMA_VERSION = 1
SAMPLE_ROWS = 2_000
"""Rows of a domain that are looked at, about."""
NUM_GROUPS = 8
LEAST_ROWS = 100
"""Of a domain: of fewer nothing is said, since short rows then differ by less than chance would say of more."""
_DEVIATIONS = 3.0
"""Standard deviations of chance, or of a mean, that do not count as drift."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far the `num_rows` new rows of a domain that were looked at lie from the run's rows.

    `features` is the divergence beyond chance, from 0 to 1, of which `by_chance` was taken off. `gaps` is how far the
    gap that the scorer expects of them lies from the domain's mean, in standard deviations of the measured gaps and
    beyond what the mean of so few rows leaves open; positive ones help the target less. None without a scorer.
    """

    num_rows: int
    features: float
    by_chance: float
    gaps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the rows of D domains look like: sums over the rows of each group of their shares, and how many rows."""

    domains: tuple[str, ...]
    count_DG: Indices
    share_DGH: Floats

    def write(self, path: Path) -> None:
        """Write it as npz without pickled objects."""
        values = vars(self) | {"domains": np.array(self.domains, np.str_), "share_DGH": self.share_DGH.astype("f4")}
        np.savez_compressed(path, schema_version=SCHEMA_VERSION, **values)

    @staticmethod
    def read(store: Store, path: str) -> Content:
        """What `write` wrote.

        Raises:
            InputError: there is none.
            StorageError: it is damaged, or of another version of this package.
        """
        return read_npz(store, path, SCHEMA_VERSION, _from_arrays)

    def drift_of(self, texts: pa.Array, domain: str) -> Drift | None:
        """How far new rows of a domain lie from it; None if it has too few rows to tell chance."""
        place = self.domains.index(domain)
        chance = self._chance(place)
        if chance is None:
            return None
        mean, spread = chance
        num_rows, num_before = len(texts), int(self.count_DG[place].sum())
        found = divergence((content(texts) ** 2).sum(axis=0), self.share_DGH[place].sum(axis=0))
        by_chance = mean * (1 / num_rows + 1 / num_before) * (1 + _DEVIATIONS * spread)
        return Drift(num_rows=num_rows, features=max(0.0, found - by_chance), by_chance=min(by_chance, 1.0))

    def _chance(self, place: int) -> tuple[float, float] | None:
        """c of the module's docstring, and its standard deviation over the ways to halve, relative to it."""
        count_G, share_GH = self.count_DG[place], self.share_DGH[place]
        if count_G.sum() < LEAST_ROWS:
            return None
        found = []
        for others in combinations(range(1, NUM_GROUPS), NUM_GROUPS // 2 - 1):
            one, other = [0, *others], sorted(set(range(1, NUM_GROUPS)) - set(others))
            sizes = count_G[one].sum(), count_G[other].sum()
            if all(sizes):
                apart = divergence(share_GH[one].sum(axis=0), share_GH[other].sum(axis=0))
                found.append(apart / (1 / sizes[0] + 1 / sizes[1]))
        mean = float(np.mean(found)) if len(found) > 1 else 0.0
        return (mean, float(np.std(found, ddof=1)) / mean) if mean > 0 else None


class ContentCounter:
    """Adds up what rows look like, of each domain about `SAMPLE_ROWS` that are drawn by a hash of their ids."""

    def __init__(self, domains: Sequence[tuple[str, int]]) -> None:
        self._domains = tuple(name for name, _ in domains)
        self._share_D = np.array([SAMPLE_ROWS / max(1, rows) for _, rows in domains])
        self._count_DG = np.zeros((len(domains), NUM_GROUPS), np.int64)
        self._share_DGH = np.zeros((len(domains), NUM_GROUPS, 2 * NUM_HASHED))

    def watched(self, batches: Iterable[RowBatch]) -> Iterator[RowBatch]:
        """The batches as they are, of which some rows have been looked at."""
        for batch in batches:
            self._add(batch)
            yield batch

    def found(self) -> Content:
        """What was seen so far."""
        return Content(domains=self._domains, count_DG=self._count_DG, share_DGH=self._share_DGH)

    def _add(self, batch: RowBatch) -> None:
        drawn = np.flatnonzero(unit_hashes(batch.sample_id, "content") < self._share_D[batch.domain])
        if not len(drawn):
            return
        texts = pa.array([batch.text[int(i)] for i in drawn], pa.large_string())
        # Equal texts are in one group, or they would make chance look smaller than it is.
        place = batch.domain[drawn], (text_hashes(texts, "group") * NUM_GROUPS).astype(np.int64)
        np.add.at(self._count_DG, place, 1)
        np.add.at(self._share_DGH, place, content(texts) ** 2)


def divergence(one_H: Floats, other_H: Floats) -> float:
    """The Jensen–Shannon divergence of two sums of shares, in bits: the mean of that of bytes and that of words."""
    halves = zip(np.split(one_H, 2), np.split(other_H, 2), strict=True)
    return float(np.mean([_jensen_shannon(one, other) for one, other in halves]))


def find_drift(lake: Lake, run: Run, on_progress: ProgressCallback) -> dict[str, Drift]:
    """The drift of each domain of `run` that has rows which it has not seen; of at most `SAMPLE_ROWS` of them.

    Kept in the work folder for the next look at the same rows. Empty for a run of before its rows' looks were kept.
    """
    if not run.record.get("content") or run.record["snapshot_id"] == lake.snapshot_id:
        return {}
    kept = lake.workdir / "drift" / f"{run.run_id}.json"
    found = _kept(kept, lake.snapshot_id)
    if found is None:
        found = _found(lake, run, on_progress)
        kept.parent.mkdir(parents=True, exist_ok=True)
        values = {name: dataclasses.asdict(drift) for name, drift in found.items()}
        write_atomically(kept, json.dumps({"snapshot_id": lake.snapshot_id, "drift": values}))
    return found


def _found(lake: Lake, run: Run, on_progress: ProgressCallback) -> dict[str, Drift]:
    from curator.catalog import RUN_FOLDER

    before = Content.read(lake.destination, f"{RUN_FOLDER}/{run.run_id}/{CONTENT}")
    scorer = run.text_scorer() if "text" in run.ways_to_score else None
    ids, labels = _new_rows(lake, run, before.domains)
    texts: list[str | None] = [None] * len(ids)
    done = 0
    for place, batch in lake.texts_of(ids):
        for i, text in zip(place.tolist(), batch.to_pylist(), strict=True):
            texts[i] = text
        done += len(place)
        on_progress(Progress(stage="score", done=done, total=len(ids), detail="rows that came since the run"))
    found: dict[str, Drift] = {}
    domain_N = places_in(before.domains, labels)
    for domain in np.unique(domain_N):
        name = before.domains[domain]
        own = pa.array([texts[int(i)] for i in np.flatnonzero(domain_N == domain)], pa.large_string())
        drift = before.drift_of(own, name)
        if drift is not None:
            gaps = gap_drift(scorer, own, name) if scorer else None
            found[name] = dataclasses.replace(drift, gaps=gaps)
    return found


def _new_rows(lake: Lake, run: Run, domains: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    """(ids, domains) of usable rows that the run has not seen, `SAMPLE_ROWS` of a domain at most."""
    lake.connection.register("run_samples", run.samples().select(["sample_id"]))
    rows = lake.connection.sql(
        "SELECT sample_id, domain FROM sample_index WHERE usable AND list_contains($domains, domain) "
        "AND sample_id NOT IN (FROM run_samples) "
        f"QUALIFY row_number() OVER (PARTITION BY domain ORDER BY md5(sample_id), sample_id) <= {SAMPLE_ROWS}",
        params={"domains": list(domains)},
    ).to_arrow_table()
    lake.connection.unregister("run_samples")
    ids, labels = (rows[name].cast(pa.string()).combine_chunks() for name in ("sample_id", "domain"))
    return ids, labels


def gap_drift(scorer: Scorer, texts: pa.Array, domain: str) -> float | None:
    """How far the mean expected gap of rows, by their bytes, lies from their domain's, as `Drift` says it."""
    if domain not in scorer.domains or scorer.width <= 0 or len(texts) < 2:
        return None
    expected_N = scorer.expected(texts, np.full(len(texts), scorer.domains.index(domain), np.int32))
    size_N = np.maximum(pc.binary_length(texts).to_numpy(zero_copy_only=False), 1).astype(np.float64)
    mean = float(np.average(expected_N, weights=size_N))
    error = float(np.sqrt((size_N**2 * (expected_N - mean) ** 2).sum())) / float(size_N.sum())
    beyond = max(0.0, abs(mean) - _DEVIATIONS * error) / scorer.width
    return beyond if mean > 0 else -beyond


def _jensen_shannon(one_H: Floats, other_H: Floats) -> float:
    one_total, other_total = one_H.sum(), other_H.sum()
    if not one_total or not other_total:  # no row has a sequence of this kind
        return 0.0 if one_total == other_total else 1.0
    p_H, q_H = one_H / one_total, other_H / other_total
    middle_H = (p_H + q_H) / 2
    return (_relative_entropy(p_H, middle_H) + _relative_entropy(q_H, middle_H)) / 2


def _relative_entropy(p_H: Floats, q_H: Floats) -> float:
    filled = p_H > 0
    return float((p_H[filled] * np.log2(p_H[filled] / q_H[filled])).sum())


def _kept(path: Path, snapshot_id: str) -> dict[str, Drift] | None:
    try:
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["snapshot_id"] != snapshot_id:
            return None
        return {name: Drift(**drift) for name, drift in values["drift"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _from_arrays(values: dict[str, Any]) -> Content:
    domains, shares = tuple(map(str, values["domains"])), values["share_DGH"].astype(np.float64)
    return Content(domains=domains, count_DG=values["count_DG"].astype(np.int64), share_DGH=shares)
