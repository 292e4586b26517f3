"""The steps of a run as a table: out of the lines that its workers wrote, for SQL.

The lines stay in the run folder, which may be on one machine only. The table goes to the destination beside the run's
record, so that any machine can ask how a run went.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LINES = "trajectory.jsonl"
TABLE = "trajectory.parquet"
_BY_DOMAIN = ("weights", "average_weights", "weight_grads", "gaps")
_ROWS_PER_GROUP = 10_000

SCHEMA = pa.schema(
    {
        "run_id": pa.string(),
        "step": pa.int64(),
        **dict.fromkeys(
            (
                "val_loss",
                "aux_val_loss",
                "train_loss",
                "aux_train_loss",
                "distance",
                "grad_norm",
                "aux_grad_norm",
                "weight_grad_norm",
                "entropy",
                "seconds",
            ),
            pa.float64(),
        ),
        "clipped": pa.bool_(),
        "tokens": pa.int64(),
        "compute_tokens": pa.float64(),
        **dict.fromkeys(_BY_DOMAIN, pa.map_(pa.string(), pa.float64())),
    }
)
"""One row a step (`optim.diagnostics.StepRecord`); what each domain has of its own is a map from its name."""


Fold = Callable[[Sequence[float]], Sequence[float]]


def write(folder: Path, run_id: str, domains: Sequence[str], fold: Fold | None = None) -> None:
    """Write `TABLE` in a run folder out of its `LINES`, a group of rows at a time.

    Args:
        folder: of a finished run; one that took no steps has no lines, and an empty table.
        run_id: its name.
        domains: the D domains, in the order of the lines' lists.
        fold: sums over the parts of each domain, where the lines' lists are of parts: a domain then has what its parts
            have together, and of gaps and gradients their mean by weight, a gap of the parts that were drawn.
    """
    (folder / LINES).touch()
    with (
        pq.ParquetWriter(folder / TABLE, SCHEMA, compression="zstd") as sink,
        (folder / LINES).open(encoding="utf-8") as source,
    ):
        for rows in _groups(_row(json.loads(line), run_id, domains, fold) for line in source):
            sink.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def _row(record: dict[str, Any], run_id: str, domains: Sequence[str], fold: Fold | None) -> dict[str, Any]:
    if fold:
        record = record | _folded(record, fold)
    by_domain = {
        name: None if record[name] is None else list(zip(domains, record[name], strict=True)) for name in _BY_DOMAIN
    }
    return record | by_domain | {"run_id": run_id}


def _folded(record: dict[str, Any], fold: Fold) -> dict[str, Any]:
    """What a record has by part, by domain."""
    weights, folded = record["weights"], {name: fold(record[name]) for name in ("weights", "average_weights")}
    for name in ("weight_grads", "gaps"):
        if record[name] is not None:
            of = [weight if value else 0.0 for weight, value in zip(weights, record[name], strict=True)]
            total = fold([weight * value for weight, value in zip(of, record[name], strict=True)])
            folded[name] = [value / max(share, 1e-300) for value, share in zip(total, fold(of), strict=True)]
    return folded


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group
