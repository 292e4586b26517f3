"""How a run went: weights, losses and gaps over its steps, and what the line search made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from curator.report.blocks import Figure, Paragraph, Section, Table
from curator.report.charts import COLOURS, Line, Row, lines_chart, rows_chart
from curator.report.source import SCALEBIO, Source
from curator.report.steps import Steps
from curator.report.text import NAME, brief, decimal, signed, weight

_MOST_BARS = 24
_MOST_LINES = 60


def movement_section(source: Source) -> Section | None:
    """The weights over the steps; None for a run that took none."""
    steps = source.steps
    if steps is None:
        return None
    names = [row["domain"] for row in source.record["domains"]]
    last_D = steps.weights_PD[-1]
    order = [int(d) for d in np.argsort(-last_D, kind="stable")][:_MOST_LINES]
    lines = [
        Line(
            label=names[d],
            points=list(zip(steps.step_P.tolist(), steps.weights_PD[:, d].tolist(), strict=True)),
            colour=f"c{place}" if place < COLOURS else None,
        )
        for place, d in enumerate(order)
    ]
    said = ", ".join(f"{brief(names[d], NAME)} {weight(float(last_D[d]))}" for d in order[:COLOURS])
    chart = lines_chart(
        "movement",
        "Domain weights over the steps",
        f"At the end: {said}",
        lines[::-1],
        x_name="step",
        y_name="domain weight",
        from_zero=True,
    )
    told = f"The weights at every step, before they are averaged.{_of_stretch(steps)}"
    if len(names) > COLOURS:
        all_ = f" shown of {len(names):,}" if len(names) > _MOST_LINES else ""
        told += f" Grey: the other {len(lines) - COLOURS} domains{all_}."
    search = source.record.get("line_search")
    if search:
        told += f" What was taken lies {search['place']:g} times as far from the prior as their average."
    return Section(anchor="movement", heading="How the weights moved", blocks=[Figure(drawing=chart, caption=told)])


def _of_stretch(steps: Steps) -> str:
    return f" Each point is the mean of {steps.stretch:,} steps." if steps.stretch > 1 else ""


def losses_section(source: Source) -> Section | None:
    """The target losses of w and u over the steps; None where none was measured."""
    steps = source.steps
    if steps is None or not np.isfinite(steps.val_loss_P).any():
        return None
    across = steps.step_P.tolist()
    measured = np.isfinite(steps.aux_val_loss_P)
    lines = [
        Line(label="w", points=list(zip(across, steps.val_loss_P.tolist(), strict=True)), colour="c0"),
        Line(
            label="u",
            points=list(zip(steps.step_P[measured].tolist(), steps.aux_val_loss_P[measured].tolist(), strict=True)),
            colour="c1",
            dotted=True,
        ),
    ]
    summary = source.record["summary"] or {}
    chart = lines_chart(
        "losses",
        "Target loss over the steps",
        f"Target loss of w at the end {decimal(summary.get('val_loss_last'))}, of u "
        f"{decimal(summary.get('aux_val_loss_last'))} nats per token",
        [line for line in lines if line.points],
        x_name="step",
        y_name="nats per token",
    )
    told = f"What the copies are trained on is the method's ({source.method})."
    if source.method == SCALEBIO:
        told = "w is the copy that sees the target, u the one that sees only the lake, and is measured now and then."
        restarts = source.record["learn"].get("branch_steps")
        told += f" Every {restarts} steps w starts again from u." if restarts else ""
    return Section(
        anchor="losses",
        heading="Loss on the target",
        blocks=[Figure(drawing=chart, caption=f"{told}{_of_stretch(steps)}")],
    )


def gaps_section(source: Source) -> Section | None:
    """The mean gap of every domain, lowest first; None for a method that has none."""
    found = sorted(source.gaps.items(), key=lambda item: item[1])
    if not found:
        return None
    half = _MOST_BARS // 2
    shown = [*found[:half], *found[-half:]] if len(found) > _MOST_BARS else found
    chart = rows_chart(
        "gaps",
        "Mean gap of each domain",
        "; ".join(f"{brief(name, NAME)}: {signed(gap)}" for name, gap in shown),
        [
            Row(
                label=name,
                value=gap,
                shown=signed(gap),
                said=f"{brief(name, NAME)}: {signed(gap)} nats per token",
                colour="c0" if gap < 0 else "c1",
            )
            for name, gap in shown
        ],
        bars=True,
    )
    told = (
        "Loss of w less that of u on a domain's rows, nats per token: the mean over the steps in which the domain was "
        "drawn and the copies differed."
    )
    if source.method == SCALEBIO:
        told += " w also sees the target, so a domain with a low gap agrees with the target, and gains weight."
    if len(found) > _MOST_BARS:
        told += f" The {half} lowest and the {half} highest of {len(found):,}."
    return Section(anchor="gaps", heading="Gap of each domain", blocks=[Figure(drawing=chart, caption=told)])


def line_search_section(search: Mapping[str, Any] | None) -> Section | None:
    """The places that were tried, and which was taken; None where there was no line search."""
    if not search:
        return None
    taken = search["place"]
    losses = list(zip(search["places"], search["val_losses"], strict=True))
    differences = search.get("differences", [loss - losses[0][1] for _, loss in losses])
    seeds = search.get("num_seeds", [1] * len(losses))  # earlier records have the first seed alone
    chart = lines_chart(
        "search",
        "Loss of models trained between the prior and the learned weights",
        "; ".join(f"place {place:g}: {decimal(loss)}" for place, loss in losses),
        [
            Line(label="first seed", points=losses, colour="c0", dotted=True),
            Line(label="taken", points=[pair for pair in losses if pair[0] == taken], colour="c2", dotted=True),
        ],
        x_name="place (prior: 0, learned weights: 1)",
        y_name="nats per token",
    )
    table = Table(
        caption="What was tried",
        columns=["place", "loss, first seed", "seeds", "against the prior", "taken"],
        rows=[
            [
                f"{place:g} (prior)" if place == 0 else f"{place:g}",
                decimal(loss),
                str(num_seeds),
                "" if place == 0 else signed(difference),
                "taken" if place == taken else "",
            ]
            for (place, loss), difference, num_seeds in zip(losses, differences, seeds, strict=True)
        ],
    )
    told = (
        f"Fresh models were trained on mixtures on the way from the prior to the learned weights, and beyond, and "
        f"measured on {search['num_rows']:,} rows of the target that learning did not see, "
        "those that did best with more seeds."
    )
    if search["difference"]:
        told += (
            f" Over all seeds the best place differs from the prior by {signed(search['difference'])} nats per token, "
            f"95 % interval {signed(search['difference_low'])} … {signed(search['difference_high'])}"
            f"{', which excludes 0: it is taken' if taken else ', which includes 0: the prior is kept'}."
        )
    else:
        told += " The prior did best and is kept."
    return Section(
        anchor="search",
        heading="Line search: were the weights better?",
        blocks=[Paragraph(told), Figure(drawing=chart, caption="Lower is better."), table],
    )
