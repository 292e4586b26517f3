"""The weights of rows: how they spread within the domains, and the rows at both ends with their texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from connectors import duck
from curator import row_gaps
from curator.errors import InputError, StorageError, TryAgainError, translated
from curator.report.blocks import Block, Gallery, Paragraph, Section, Table
from curator.report.charts import Bin, histogram
from curator.report.kept import read_kept
from curator.report.text import NOTHING, count, decimal, signed

if TYPE_CHECKING:
    from curator.lake import Lake

_MOST_HISTOGRAMS = 12
_ENDS = 8
"""Rows that are shown at each end."""
_TEXT_CHARS = 180
_BINS = 17
"""Of a histogram: factors of 2^(1/2) around 1, and all beyond at its ends."""
_OCTAVES = 4.25

_SCHEMA = pa.schema(
    [row_gaps.SCHEMA.field(name) for name in ("sample_id", "domain", "relative_gap", "standard_error", "row_weight")]
)
"""What is shown of a run's table."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RowEnd:
    """One of the rows that weigh most or least; `text` is None where it could not be read, `gap` relative to its
    domain's mean."""

    sample_id: str
    domain: str
    text: str | None
    weight: float
    gap: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The measured rows of a run: their weights by domain, and both ends, the heaviest and the lightest first.

    `why_no_texts` says why texts are missing, in words for the page; empty where all were looked for.
    """

    figures: Mapping[str, Any]
    weights: Mapping[str, Floats]
    heaviest: Sequence[RowEnd]
    lightest: Sequence[RowEnd]
    why_no_texts: str = ""


def read_rows(lake: Lake, record: Mapping[str, Any]) -> Rows | None:
    """What a run says of rows; None for one that gave them no weights. Texts come from the lake as it is indexed.

    Raises:
        StorageError: the table is damaged, or cannot be read.
    """
    figures = record.get("rows")
    if not figures:
        return None
    table = read_kept(lake.destination, record["run_id"], row_gaps.TABLE, _read, "rows")
    if table is None:
        return None
    table = table.sort_by([("row_weight", "descending"), ("sample_id", "ascending")])
    num = min(_ENDS, table.num_rows // 2)
    ends = [*table.slice(0, num).to_pylist(), *reversed(table.slice(table.num_rows - num).to_pylist())]
    texts, why = _texts(lake, [row["sample_id"] for row in ends])
    found = [
        RowEnd(
            sample_id=row["sample_id"],
            domain=row["domain"],
            text=texts.get(row["sample_id"]),
            weight=row["row_weight"],
            gap=row["relative_gap"],
            standard_error=row["standard_error"],
        )
        for row in ends
    ]
    return Rows(
        figures=figures,
        weights={
            name: table.filter(pc.equal(table["domain"], name))["row_weight"].to_numpy()
            for name in pc.unique(table["domain"]).to_pylist()
        },
        heaviest=found[:num],
        lightest=found[num:],
        why_no_texts=why,
    )


def _read(file: pq.ParquetFile) -> pa.Table:
    return file.read(columns=_SCHEMA.names).cast(_SCHEMA)


def _texts(lake: Lake, sample_ids: Sequence[str]) -> tuple[dict[str, str], str]:
    """The texts of rows that the lake has now, cut; and why there are none, where that is so."""
    query = (
        f"SELECT sample_id, left({duck.quote_identifier(lake.text_name)}, {_TEXT_CHARS + 1}) FROM lake_rows "
        "WHERE sample_id IN (SELECT unnest(?))"
    )
    try:
        with translated():
            return dict(lake.connection.execute(query, [list(sample_ids)]).fetchall()), ""
    except (InputError, StorageError, TryAgainError) as error:
        return {}, str(error)


def rows_section(rows: Rows | None, domains: Sequence[Mapping[str, Any]]) -> Section | None:
    """The section of a run that weighs rows; domains in the page's order."""
    if rows is None:
        return None
    known = [row["domain"] for row in domains if row["domain"] in rows.weights]
    shown = known[:_MOST_HISTOGRAMS]
    figures, quantiles = rows.figures, rows.figures["quantiles"]
    scored = figures.get("num_scored") or 0
    others = f"a scorer weighs {count(scored)} more by their text" if scored else "the others keep their domain's mean"
    judged = _judged(figures.get("scorer") or {}) if scored else ""
    alike = figures.get("num_alike") or 0
    shared = (
        f"{count(alike)} of the measured rows say nearly the same as another and share its weight. " if alike else ""
    )
    told = (
        f"{count(figures['num_rows'])} rows were measured, {100 * figures['share']:.1f} % of the lake, under "
        f"{figures['snapshots']} pairs of copies; {others}. {judged}{shared}Reliability "
        f"{decimal(figures['reliability'], 2)}: that share of the scatter between rows repeats from pair to pair, the "
        f"rest is noise. Half of the measured rows weigh {decimal(quantiles['0.25'], 2)} to "
        f"{decimal(quantiles['0.75'], 2)} times their domain's mean, nine of ten {decimal(quantiles['0.05'], 2)} to "
        f"{decimal(quantiles['0.95'], 2)} times. No training has judged these weights."
    )
    left_out = f" The first {len(shown)} of {len(known):,} domains." if len(known) > len(shown) else ""
    caption = (
        "How many of a domain's measured rows have which weight, as a factor of the domain's mean; the upright line is "
        f"1, the outermost bars hold all beyond.{left_out}"
    )
    drawings = [histogram(f"rows-{number}", name, _bins(rows.weights[name])) for number, name in enumerate(shown)]
    blocks: list[Block] = [Paragraph(told), Gallery(drawings=drawings, caption=caption)]
    if rows.why_no_texts:
        blocks.append(Paragraph(f"Texts are not shown: {rows.why_no_texts}."))
    blocks += [_table("The rows that weigh most", rows.heaviest), _table("The rows that weigh least", rows.lightest)]
    return Section(anchor="rows", heading="Row weights", blocks=blocks)


def _judged(scorer: Mapping[str, Any]) -> str:
    """What the scorer's predictions were worth, as a run records since it has scorers that are judged."""
    if "spearman" not in scorer:
        return ""
    low, middle, high = (decimal(scorer[name], 2) for name in ("spearman_low", "spearman", "spearman_high"))
    return (
        f"On {count(scorer['num_rows'])} measured rows kept out its predictions rank the rows as the gaps do by "
        f"Spearman {middle} (95 % interval {low} to {high}), a gap rises by {decimal(scorer['slope'], 2)} for a "
        f"predicted rise of 1, and they account for {100 * scorer['explained']:.0f} % of what of the gaps repeats. "
    )


def _table(caption: str, ends: Sequence[RowEnd]) -> Table:
    return Table(
        caption=f"{caption}, as factors of their domains' means. Gap: loss under w less that under u, relative to the "
        "domain's mean, nats per token; below 0 the copy that sees the target fits the row better",
        columns=["text", "domain", "sample_id", "weight", "gap", "standard error"],
        rows=[
            [
                NOTHING if row.text is None else _cut(row.text),
                row.domain,
                row.sample_id,
                decimal(row.weight, 2),
                signed(row.gap),
                decimal(row.standard_error),
            ]
            for row in ends
        ],
        num_words=3,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}…"


def _bins(weights: Floats) -> list[Bin]:
    """Bins of equal width on a logarithmic axis around 1; those beyond it count at its ends."""
    edges = np.linspace(-_OCTAVES, _OCTAVES, _BINS + 1)
    places = np.clip(np.log2(np.maximum(weights, np.finfo(float).tiny)), edges[0], edges[-1])
    counts = np.histogram(places, edges)[0]
    return [
        Bin(low=math.pow(2, low), high=math.pow(2, high), count=int(number))
        for (low, high), number in zip(pairwise(edges), counts, strict=True)
    ]
