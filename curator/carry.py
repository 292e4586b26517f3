"""The weights of a run for the lake as it is now, which need not be the lake that the run saw.

The domain weights stay what they are, and so does what a row weighs within its domain; a row that came since weighs
what the rows do that it repeats word for word, else what the run's copies or its scorer make of it, or where it has
none, what its domain did in the mean: all on the scale on which the run's own rows of a domain have mean 1. Row weights
are scaled anew for the rows that are there, by `curator.weights.weight_table`, so that their mean is 1 and every domain
has its share of the weighted tokens again. Rows that came since and stand in the target get no weight, as when the run
was learned.

Tokens of rows that the run has not seen are estimated from their bytes, by the tokens per byte of the rows of their
domain that it has seen: no tokenizer is needed, and the text is read for the leak guard and the scorer alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors import duck
from curator.leaks import LeakCounter
from curator.progress import Progress, ProgressCallback
from curator.weights import weight_table

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.run import Run, Way

_ROWS = """
CREATE OR REPLACE TEMP TABLE carried_rows AS
WITH seen AS (
    SELECT {id} AS id, any_value(num_tokens) AS num_tokens, avg(sample_weight) AS sample_weight
    FROM run_samples GROUP BY 1),
of_run AS (SELECT domain, sum(sample_weight * num_tokens) / sum(num_tokens) AS mean_weight FROM run_samples GROUP BY 1)
SELECT i.sample_id, i.domain, i.num_bytes, s.num_tokens, s.sample_weight / nullif(r.mean_weight, 0) AS row_weight
FROM sample_index i LEFT JOIN seen s ON {indexed} = s.id LEFT JOIN of_run r ON i.domain = r.domain
WHERE i.usable AND list_contains($domains, i.domain)
"""
_ESTIMATED = """
WITH of_domain AS (
    SELECT domain, sum(num_tokens) FILTER (num_tokens IS NOT NULL) / sum(num_bytes) FILTER (num_tokens IS NOT NULL)
    AS per_byte FROM carried_rows GROUP BY domain),
of_all AS (SELECT sum(num_tokens) / sum(num_bytes) AS per_byte FROM carried_rows WHERE num_tokens IS NOT NULL)
SELECT sample_id, domain, coalesce(
    num_tokens, greatest(1, round(num_bytes * coalesce(d.per_byte, a.per_byte, 1)))::BIGINT) AS num_tokens,
    coalesce(row_weight, 1)::DOUBLE AS row_weight, num_tokens IS NULL AS is_new
FROM carried_rows JOIN of_domain d USING (domain), of_all a ORDER BY sample_id
"""


@dataclass(frozen=True, kw_only=True)
class LakeWeights:
    """Weights for the rows of one snapshot of a lake; their identities hold.

    `samples` has the columns of `curator.weights.SCHEMA`, `domains` is the domain table as JSON. `is_carried` says
    whether the run saw another snapshot, `way` how rows that came since were weighed, one of the run's `ways_to_score`;
    None if none came, or by their domain's mean.
    """

    snapshot_id: str
    samples: pa.Table
    domains: tuple[Mapping[str, Any], ...]
    is_carried: bool
    way: Way | None = None


def weights_now(lake: Lake, run: Run, texts: Sequence[str], on_progress: ProgressCallback) -> LakeWeights:
    """The weights of `run` for the rows that an ingested lake has now.

    Args:
        lake: ingested.
        run: of this lake.
        texts: of the target whose rows get no weight; empty if they are kept.
        on_progress: told how far the search for them is.

    Raises:
        WeightIdentityError: the run's weights do not add up.
        StorageError: they are damaged.
    """
    own = run.samples()
    if run.record["snapshot_id"] == lake.snapshot_id:
        return LakeWeights(
            snapshot_id=lake.snapshot_id, samples=own, domains=tuple(run.record["domains"]), is_carried=False
        )
    rows = _rows(lake, run, own, texts, on_progress)
    labels = rows["domain"].combine_chunks().dictionary_encode()
    names = labels.dictionary.to_pylist()
    learned = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
    weights = np.array([learned[name] for name in names])
    table = weight_table(
        rows["sample_id"].combine_chunks(),
        labels.indices.to_numpy(),
        rows["num_tokens"].to_numpy(),
        names,
        weights / weights.sum(),
        rows["row_weight"].to_numpy(),
    )
    domains = tuple(dataclasses.asdict(row) for row in table.domains)
    way = run.ways_to_score[0] if run.ways_to_score and pc.any(rows["is_new"]).as_py() else None
    return LakeWeights(snapshot_id=lake.snapshot_id, samples=table.samples, domains=domains, is_carried=True, way=way)


def _rows(lake: Lake, run: Run, own: pa.Table, texts: Sequence[str], on_progress: ProgressCallback) -> pa.Table:
    """(sample_id, domain, num_tokens, row_weight) of the rows that get a weight, sorted by id."""
    names = [row["domain"] for row in run.record["domains"]]
    connection = lake.connection
    connection.register("run_samples", own)
    same = "{}" if lake.config.key is not None else duck.CONTENT
    connection.execute(
        _ROWS.format(id=same.format("sample_id"), indexed=same.format("i.sample_id")), {"domains": names}
    )
    connection.unregister("run_samples")
    leaking = _leaking(lake, names, texts, on_progress) if texts else []
    rows: pa.Table = connection.sql(_ESTIMATED).to_arrow_table()
    rows = rows.filter(pc.invert(pc.is_in(rows["sample_id"], pa.array(leaking, pa.string())))).combine_chunks()
    return _scored(lake, run, rows, on_progress) if run.ways_to_score else rows


def _scored(lake: Lake, run: Run, rows: pa.Table, on_progress: ProgressCallback) -> pa.Table:
    """The rows that came since with the weights that the run's scorer gives them."""
    new = np.flatnonzero(rows["is_new"].to_numpy())
    if not len(new):
        return rows
    scorer, done = run.scorer(), 0
    ids = rows["sample_id"].take(pa.array(new)).combine_chunks()
    domain_N = scorer.index(rows["domain"].take(pa.array(new)))
    weight_N = rows["row_weight"].to_numpy().copy()
    for place, texts in lake.texts_of(ids):
        weight_N[new[place]] = scorer.row_weights(texts, domain_N[place])
        done += len(place)
        on_progress(Progress(stage="score", done=done, total=len(new), detail="rows that came since the run"))
    return rows.set_column(rows.schema.get_field_index("row_weight"), "row_weight", pa.array(weight_N))


def _leaking(lake: Lake, names: Sequence[str], texts: Sequence[str], on_progress: ProgressCallback) -> list[str]:
    """Ids of the rows without a weight of the run that stand in the target."""
    counter = LeakCounter(texts, names)
    found: list[str] = []
    done = 0
    unseen = "AND sample_id IN (SELECT sample_id FROM carried_rows WHERE num_tokens IS NULL)"
    for batch in lake.text_batches(names, condition=unseen):
        found += [
            str(batch.sample_id[int(i)])
            for i in np.flatnonzero(counter.excluded(batch.sample_id, batch.text, batch.domain))
        ]
        done += len(batch.text)
        on_progress(Progress(stage="leaks", done=done, detail="rows that came since the run"))
    return found
