"""The artifact of a run that weighs rows: the gap of every row that was measured, and its in-domain weight.

The workers leave sums (`optim.row_gaps.RowGaps`) in the run folder. The table made of them goes to the destination
beside the run's record, so that any machine can ask which rows the run found helpful, and how surely.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curator.tokens import TokenCache
from optim.row_gaps import Floats, RowGaps, in_domain_weights, reliability, spread

if TYPE_CHECKING:
    from curator.unmeasured import Scored

SUMS = "row_gaps.npz"
"""In a checkpoint, and in the folder of a run whose workers have ended: what they measured."""
TABLE = "row_gaps.parquet"
"""In a run's folder: `SCHEMA`."""
SCORER = "scorer.npz"
"""In a run's folder, if it has one that may be used (`curator.scorer`)."""
COPIES = "copies.safetensors"
"""In a run's folder, if it kept the copies of its pairs (`curator.copies`)."""
CLUSTERS = "clusters.npz"
"""In the folder of a run that weighed clusters, and in the token cache labelled by them (`curator.clusters`)."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

SCHEMA = pa.schema(
    {
        "run_id": pa.string(),
        "sample_id": pa.string(),
        "domain": pa.string(),
        "loss": pa.float64(),
        "gap": pa.float64(),
        "relative_gap": pa.float64(),
        "standard_error": pa.float64(),
        "snapshots": pa.int64(),
        "row_weight": pa.float64(),
    }
)
"""One row a measured sample: ℓ(u) and the gap of w and u (`optim.row_gaps.worst_means`) in nats per token, means over
the snapshots; the latter less the mean of its domain, with the standard error of this; and the in-domain weight v."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """The gaps of the rows at these places of the corpus cache, and what it took to find them.

    `compute_tokens` are target tokens of a forward-backward pass, for the training as well.
    """

    places: NDArray[np.int64]
    gaps: RowGaps
    compute_tokens: float = 0.0

    def write(self, folder: Path) -> None:
        """Write it there, wholly or not at all, and wait until it is on disk."""
        place = folder / f".{SUMS}-{os.getpid()}"
        try:
            with place.open("wb") as sink:
                np.savez(sink, places=self.places, compute_tokens=self.compute_tokens, **dataclasses.asdict(self.gaps))
                sink.flush()
                os.fsync(sink.fileno())
            place.replace(folder / SUMS)
        finally:
            place.unlink(missing_ok=True)

    @staticmethod
    def read(folder: Path) -> MeasuredRows:
        """What `write` wrote."""
        with np.load(folder / SUMS) as found:
            values = dict(found)
        places, compute_tokens = values.pop("places"), float(values.pop("compute_tokens"))
        gaps = RowGaps(**values | {"num_snapshots": int(values["num_snapshots"])})
        return MeasuredRows(places=places, gaps=gaps, compute_tokens=compute_tokens)


@dataclass(frozen=True, kw_only=True)
class RowWeights:
    """In-domain weights v (N,) of all rows of a corpus, 1 for those that were neither measured nor scored.

    What repeats a measured row word for word counts as measured, where the rows' ids tell.

    `reliability` is the share of the measured rows' scatter that is not noise, `share` that of the rows that were
    measured, `quantiles` those of their v; `num_alike` of them share theirs with another that says nearly the same.
    `num_scored` rows were weighed by the scorer; `scorer` says what that is worth
    (`curator.unmeasured.Scored.figures`), None if there was to be none. `copies` says what was kept of the pairs
    (`curator.copies.keep`), None if nothing was.
    """

    weights: Floats
    reliability: float
    share: float
    num_rows: int
    snapshots: int
    quantiles: dict[str, float]
    num_alike: int = 0
    num_scored: int = 0
    scorer: dict[str, Any] | None = None
    copies: dict[str, Any] | None = None
    said_of_others: str = ""

    @property
    def sentence(self) -> str:
        """For the verdict: what no training has judged."""
        return (
            f"rows weigh {self.quantiles['0.05']:.2f} … {self.quantiles['0.95']:.2f} times their domain's mean (5 … 95 "
            f"%; reliability {self.reliability:.2f}), which no training has judged{self.said_of_others}"
        )

    @property
    def figures(self) -> dict[str, Any]:
        """For the run's record."""
        return {name: value for name, value in vars(self).items() if name not in ("weights", "said_of_others")}


def files(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run's folder holds of its rows, by its record."""
    if record.get("clusters"):
        return (CLUSTERS,)
    rows = record.get("rows")
    if not rows:
        return ()
    has_scorer = bool((rows.get("scorer") or {}).get("is_usable"))
    return (TABLE, *([SCORER] if has_scorer else []), *([COPIES] if rows.get("copies") else []))


def weigh_rows(
    folder: Path,
    run_id: str,
    corpus: TokenCache,
    measured: MeasuredRows,
    scored: Scored | None,
    *,
    sharpness: float,
    near_duplicates: float,
    by_content: bool,
) -> RowWeights:
    """Weigh the rows of a run whose workers have ended; writes `TABLE`, and `SCORER` if one may be used.

    Measured and scored rows of a domain are brought to a mean of 1 together. With `by_content`, ids are made of
    content, and rows with the same weigh the same: what those of them that were measured are worth in the mean. So do
    measured rows of a domain whose similarity is `near_duplicates` or more (`curator.near_duplicates`; 0: none).
    """
    gaps, places = measured.gaps, measured.places
    domain_N, tokens_N = np.asarray(corpus.domain), np.asarray(corpus.num_targets)
    trust, width = reliability(gaps, tokens_N[places]), spread(gaps.mean_relative_R, tokens_N[places])
    scorer = scored.scorer if scored else None
    expected_N = np.zeros(corpus.num_rows) if scored is None or scored.expected_N is None else scored.expected_N.copy()
    cluster_R = _clusters(corpus, places, near_duplicates)
    known, expected_K = places, trust * _means(gaps.mean_relative_R, cluster_R)[cluster_R]
    if by_content:
        known, expected_K = _with_repeated(corpus.sample_ids(), places, expected_K)
    expected_N[known] = expected_K
    weighed = known if scorer is None else np.arange(corpus.num_rows)
    weights = np.ones(corpus.num_rows)
    weights[weighed], mean_D = in_domain_weights(
        expected_N[weighed], width, domain_N[weighed], tokens_N[weighed], sharpness=sharpness
    )
    if scorer is not None:
        replace(scorer, mean_ratio_D=mean_D).write(folder / SCORER)
    _write_table(folder, run_id, corpus, measured, weights[places])
    return RowWeights(
        weights=weights,
        reliability=trust,
        share=len(places) / corpus.num_rows,
        num_rows=len(places),
        snapshots=gaps.num_snapshots,
        quantiles={str(q): float(np.quantile(weights[places], q)) for q in QUANTILES},
        num_alike=int((np.bincount(cluster_R)[cluster_R] > 1).sum()),
        num_scored=len(weighed) - len(known),
        scorer=scored.figures if scored else None,
        said_of_others=_said(scored, corpus.num_rows - len(known)),
    )


def _said(scored: Scored | None, num_others: int) -> str:
    if scored is None or not num_others:
        return ""
    if scored.scorer is None or scored.judgement is None:
        return f"; the other {num_others:,} weigh their domain's mean, since {scored.refusal}"
    return f"; a scorer weighs the other {num_others:,} by their text ({scored.judgement.agreement})"


def contents(sample_ids: pa.Array[Any]) -> pa.Array[Any]:
    """Of ids that are made of content, the part that identical rows share: a number behind it tells them apart."""
    return pc.list_element(pc.split_pattern(sample_ids, "-"), 0)


def _with_repeated(
    sample_ids: pa.Array[Any], places: NDArray[np.int64], value_R: Floats
) -> tuple[NDArray[np.int64], Floats]:
    """The places (K,) of all rows with the content of a measured one, and the mean of the values of those that were."""
    content_N = contents(sample_ids).dictionary_encode().indices.to_numpy()
    mean_C = _means(value_R, content_N[places], int(content_N.max()) + 1)
    known = np.flatnonzero(np.isin(content_N, content_N[places]))
    return known, mean_C[content_N[known]]


def _clusters(corpus: TokenCache, places: NDArray[np.int64], similarity: float) -> NDArray[np.int64]:
    """A number for each row that near duplicates of a domain share, (R,)."""
    if not similarity:
        return np.arange(len(places))
    from curator.near_duplicates import clusters

    domain_R = np.asarray(corpus.domain)[places]
    cluster_R, count = np.empty(len(places), dtype=np.int64), 0
    for domain in np.unique(domain_R):
        own = domain_R == domain
        cluster_R[own] = count + clusters(corpus, places[own], similarity)
        count = int(cluster_R[own].max()) + 1
    return cluster_R


def _means(value_R: Floats, label_R: NDArray[np.int64], num_labels: int = 0) -> Floats:
    """The mean of the values of each label, 0 for one that no row has."""
    sums = np.bincount(label_R, weights=value_R, minlength=num_labels)
    mean_L: Floats = sums / np.maximum(np.bincount(label_R, minlength=num_labels), 1)
    return mean_L


def _write_table(folder: Path, run_id: str, corpus: TokenCache, measured: MeasuredRows, weight_R: Floats) -> None:
    gaps, places = measured.gaps, measured.places
    label = pa.DictionaryArray.from_arrays(pa.array(np.asarray(corpus.domain)[places]), pa.array(list(corpus.domains)))
    columns = {
        "run_id": pa.array([run_id]).take(pa.array(np.zeros(len(places), np.int64))),
        "sample_id": corpus.sample_ids().take(pa.array(places)),
        "domain": label.cast(pa.string()),
        "loss": gaps.mean_loss_R,
        "gap": gaps.mean_R,
        "relative_gap": gaps.mean_relative_R,
        "standard_error": gaps.standard_error_R,
        "snapshots": np.full(len(places), gaps.num_snapshots),
        "row_weight": weight_R,
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / TABLE, compression="zstd")
