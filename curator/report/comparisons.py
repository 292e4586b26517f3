"""The comparisons that a run was part of: models trained on its weights against others, on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

from curator.comparison import COLUMNS, Comparison, MixtureResult
from curator.report.advice import Compared
from curator.report.blocks import Block, Figure, Heading, Paragraph, Section, Table
from curator.report.charts import Row, rows_chart
from curator.report.text import NAME, brief, signed

_MOST = 5
_MOST_MIXTURES = 40
_COLOURS = {"better": "c2", "worse": "c1"}


def with_run(comparisons: Sequence[Comparison], run_id: str) -> list[Comparison]:
    """Those that trained on the weights of a run, newest first."""
    return [found for found in reversed(comparisons) if any(_is_of(result, run_id) for result in found.results)]


def newest_of(comparisons: Sequence[Comparison], run_id: str) -> Compared | None:
    """What the first of `with_run` says of the run; None where there is none."""
    of_it = ((found, result) for found in comparisons for result in found.results if _is_of(result, run_id))
    return next(
        (
            Compared(
                judgement=result.judgement,
                low=result.difference_low,
                high=result.difference_high,
                num_seeds=found.compare["seeds"],
            )
            for found, result in of_it
        ),
        None,
    )


def comparisons_section(comparisons: Sequence[Comparison], run_id: str) -> Section | None:
    """The newest comparisons with a run, each with its conditions, its table and what it says."""
    if not comparisons:
        return None
    blocks = [block for number, found in enumerate(comparisons[:_MOST]) for block in _blocks(number, found, run_id)]
    if len(comparisons) > _MOST:
        more = len(comparisons) - _MOST
        blocks.append(Paragraph(f"{more} older comparisons are left out, which the table comparisons has in SQL."))
    return Section(anchor="comparisons", heading="Comparisons with this run", blocks=blocks)


def _is_of(result: MixtureResult, run_id: str) -> bool:
    return run_id in (result.run_id or "").split(",")


def _blocks(number: int, found: Comparison, run_id: str) -> list[Block]:
    ranked = found.ranked[:_MOST_MIXTURES]
    own = next(result for result in found.results if _is_of(result, run_id))
    num_runs = len((own.run_id or "").split(","))
    role = f"{own.mixture} is this run" if num_runs == 1 else f"{own.mixture} is this run and {num_runs - 1} others"
    left_out = len(found.results) - len(ranked)
    caption = f"Mixtures, lowest loss on the test rows first{f'; {left_out} more are left out' if left_out else ''}"
    blocks: list[Block] = [
        Heading(f"Comparison {found.comparison_id}"),
        Paragraph(f"{found.conditions}. Test {found.test}. {role}."),
    ]
    judged = [result for result in ranked if result.judgement != "reference"]
    if judged:
        blocks.append(_figure(number, judged, run_id))
    blocks.append(Table(caption=caption, columns=COLUMNS, rows=[result.cells for result in ranked]))
    return [*blocks, Paragraph(own.sentence)] if own.sentence else blocks


def _figure(number: int, results: Sequence[MixtureResult], run_id: str) -> Figure:
    chart = rows_chart(
        f"comparison-{number}",
        "Difference of each mixture to equal parts of all domains",
        "; ".join(f"{brief(result.mixture, NAME)}: {signed(result.difference)}" for result in results),
        [
            Row(
                label=f"▸ {result.mixture}" if _is_of(result, run_id) else result.mixture,
                value=result.difference,
                shown=signed(result.difference),
                said=brief(result.sentence, 300),
                low=result.difference_low,
                high=result.difference_high,
                colour=_COLOURS.get(result.judgement, "other"),
            )
            for result in results
        ],
        bars=False,
    )
    told = "Loss on the test rows less that of uniform, nats per token, with 95 % intervals: left of 0 is better."
    return Figure(drawing=chart, caption=f"{told} ▸ marks this run.")
