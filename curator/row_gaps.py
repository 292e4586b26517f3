"""The artifact of a run that weighs rows: the gap of every row that was measured, and its in-domain weight.

The workers leave sums (`optim.row_gaps.RowGaps`) in the run folder. The table made of them goes to the destination
beside the run's record, so that any machine can ask which rows the run found helpful, and how surely.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curator.tokens import TokenCache
from optim.row_gaps import Floats, RowGaps, in_domain_weights, reliability

SUMS = "row_gaps.npz"
"""In a checkpoint, and in the folder of a run whose workers have ended: what they measured."""
TABLE = "row_gaps.parquet"
"""In a run's folder: `SCHEMA`."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

SCHEMA = pa.schema(
    {
        "run_id": pa.string(),
        "sample_id": pa.string(),
        "domain": pa.string(),
        "gap": pa.float64(),
        "relative_gap": pa.float64(),
        "standard_error": pa.float64(),
        "snapshots": pa.int64(),
        "row_weight": pa.float64(),
    }
)
"""One row a measured sample: ℓ(w) − ℓ(u) in nats per token, mean over the snapshots; that less the mean of its domain,
with the standard error of this; and the in-domain weight v."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """The gaps of the rows at these places of the corpus cache."""

    places: NDArray[np.int64]
    gaps: RowGaps

    def write(self, folder: Path) -> None:
        """Write it there, wholly or not at all, and wait until it is on disk."""
        place = folder / f".{SUMS}-{os.getpid()}"
        with place.open("wb") as sink:
            np.savez(sink, places=self.places, **dataclasses.asdict(self.gaps))
            sink.flush()
            os.fsync(sink.fileno())
        place.replace(folder / SUMS)

    @staticmethod
    def read(folder: Path) -> MeasuredRows:
        """What `write` wrote."""
        with np.load(folder / SUMS) as found:
            values = dict(found)
        places, num_snapshots = values.pop("places"), int(values.pop("num_snapshots"))
        return MeasuredRows(places=places, gaps=RowGaps(num_snapshots=num_snapshots, **values))


@dataclass(frozen=True, kw_only=True)
class RowWeights:
    """In-domain weights v (N,) of all rows of a corpus, 1 for those that were not measured.

    `reliability` is the share of the measured rows' scatter that is not noise, `share` that of the rows that were
    measured, `quantiles` those of their v.
    """

    weights: Floats
    reliability: float
    share: float
    num_rows: int
    snapshots: int
    quantiles: dict[str, float]

    @property
    def sentence(self) -> str:
        """For the verdict: what no training has judged."""
        return (
            f"rows weigh {self.quantiles['0.05']:.2f} … {self.quantiles['0.95']:.2f} times their domain's mean (5 … 95 "
            f"%; reliability {self.reliability:.2f}), which no training has judged"
        )

    @property
    def figures(self) -> dict[str, Any]:
        """For the run's record."""
        return {name: value for name, value in vars(self).items() if name != "weights"}


def weigh_rows(folder: Path, run_id: str, corpus: TokenCache, *, sharpness: float) -> RowWeights:
    """Weigh the rows of a run whose workers have ended, and write `TABLE` into its folder."""
    measured = MeasuredRows.read(folder)
    gaps, places = measured.gaps, measured.places
    domain_R, tokens_R = np.asarray(corpus.domain)[places], np.asarray(corpus.num_targets)[places]
    weight_R = in_domain_weights(gaps, domain_R, tokens_R, sharpness=sharpness)
    columns = {
        "run_id": pa.array([run_id]).take(pa.array(np.zeros(len(places), np.int64))),
        "sample_id": corpus.sample_ids().take(pa.array(places)),
        "domain": pa.DictionaryArray.from_arrays(pa.array(domain_R), pa.array(list(corpus.domains))).cast(pa.string()),
        "gap": gaps.mean_R,
        "relative_gap": gaps.mean_relative_R,
        "standard_error": gaps.standard_error_R,
        "snapshots": np.full(len(places), gaps.num_snapshots),
        "row_weight": weight_R,
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / TABLE, compression="zstd")
    weights = np.ones(corpus.num_rows)
    weights[places] = weight_R
    return RowWeights(
        weights=weights,
        reliability=reliability(gaps, tokens_R),
        share=len(places) / corpus.num_rows,
        num_rows=len(places),
        snapshots=gaps.num_snapshots,
        quantiles={str(q): float(np.quantile(weight_R, q)) for q in QUANTILES},
    )
