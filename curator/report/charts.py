"""The charts of a report: rows of bars or intervals, lines over the steps, small histograms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from curator.report.svg import NARROW, WIDTH, Axis, drawing, element
from curator.report.text import NAME, breadth, brief, fitted

COLOURS = 8
"""Lines that have a colour of their own, `c0` … in the page's style; others are grey."""
_ROW = 24.0
_TOP = 10.0
_LABELS = {WIDTH: 192.0, NARROW: 120.0}
"""By the width of a chart, room for the labels of rows at most; they get what the widest one needs."""
_VALUES = 76.0
_NAMES = 160.0
_SIZE = 12.0
_AXIS_SIZE = 11.0
"""Sizes of the letters in the page's style."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: a value, the ends of its interval and a mark to compare it with, where there are such.

    `said` is what a pointer that rests on the row is told; `colour` a class of the page's style.
    """

    label: str
    value: float
    shown: str
    said: str
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    colour: str = "c0"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line through its points; where y is no number it has a gap. Only a line with a colour has a name shown."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str | None
    dotted: bool = False


def rows_chart(name: str, title: str, description: str, rows: Sequence[Row], *, bars: bool) -> Markup:
    """Each row a bar from 0 or a point, with its interval as a whisker and its mark as an upright line.

    Drawn twice, for a page and for a phone, of which the page's style shows one.
    """
    bottom = _TOP + _ROW * len(rows)
    return Markup("").join(
        drawing(drawn, title, description, bottom + 24, _rows(rows, width, bottom, bars=bars), width=width, class_=kind)
        for drawn, kind, width in ((name, "wide", WIDTH), (f"{name}-narrow", "narrow", NARROW))
    )


def _rows(rows: Sequence[Row], width: int, bottom: float, *, bars: bool) -> list[Markup]:
    ends = [value for row in rows for value in (row.value, row.low, row.high, row.mark) if value is not None]
    labels = [fitted(row.label, (_LABELS[width] - 10) / _SIZE) for row in rows]
    left = 10 + _SIZE * max(map(breadth, labels), default=0.0)
    x = Axis.over([0.0, *ends], left, width - _VALUES)
    parts = [_upright(x, tick, bottom) for tick in x.ticks(6 if width == WIDTH else 3)]
    parts.append(element("line", class_="zero", x1=x(0), x2=x(0), y1=_TOP, y2=bottom))
    return parts + [
        _row(row, label, x, _TOP + _ROW * (place + 0.5), bars=bars)
        for place, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]


def lines_chart(
    name: str, title: str, description: str, lines: Sequence[Line], *, x_name: str, y_name: str, from_zero: bool = False
) -> Markup:
    """Lines with their names at their right ends, or for a phone below them; the page's style shows one of both."""
    named = [line for line in lines if line.colour and math.isfinite(_last(line))]
    named.sort(key=_last, reverse=True)
    left, bottom = 48.0, 296.0
    wide = [*_plot(lines, left, WIDTH - _NAMES, bottom, x_name, y_name, from_zero=from_zero)]
    narrow = [*_plot(lines, left, NARROW - 14.0, 220.0, x_name, y_name, from_zero=from_zero)]
    y = _upwards(lines, bottom, from_zero=from_zero)
    wide += _names(named, _apart([y(_last(line)) for line in named], bottom), WIDTH - _NAMES + 10, _NAMES)
    below = [272.0 + 18 * number for number in range(len(named))]
    narrow += _names(named, below, left, NARROW - left)
    return Markup("").join(
        [
            drawing(name, title, description, bottom + 40, wide, class_="wide"),
            drawing(
                f"{name}-narrow",
                title,
                description,
                (below or [250.0])[-1] + 14,
                narrow,
                width=NARROW,
                class_="narrow",
            ),
        ]
    )


def _upwards(lines: Sequence[Line], bottom: float, *, from_zero: bool) -> Axis:
    y = Axis.over([*([0.0] if from_zero else []), *(up for line in lines for _, up in line.points)], bottom, 26.0)
    return y if from_zero else y.widened(0.06)


def _plot(
    lines: Sequence[Line], left: float, right: float, bottom: float, x_name: str, y_name: str, *, from_zero: bool
) -> Iterator[Markup]:
    """The axes and the lines between them."""
    x = Axis.over([across for line in lines for across, _ in line.points], left, right)
    y = _upwards(lines, bottom, from_zero=from_zero)
    yield element("text", y_name, class_="axis", x=0, y=12)
    yield element("text", x_name, class_="axis", x=right, y=bottom + 32, text_anchor="end")
    for tick in y.ticks():
        yield element("line", class_="grid", x1=left, x2=right, y1=y(tick), y2=y(tick))
        yield element("text", f"{tick:g}", class_="axis", x=left - 8, y=y(tick) + 4, text_anchor="end")
    yield from (_below(x, tick, bottom) for tick in x.ticks(6 if right > NARROW else 4))
    yield from (part for line in lines for part in _line(line, x, y))


@dataclass(frozen=True, kw_only=True)
class Bin:
    """How many of a histogram's values are from `low` to below `high`."""

    low: float
    high: float
    count: int


def histogram(name: str, label: str, bins: Sequence[Bin]) -> Markup:
    """A small histogram over a logarithmic axis, named by what it is of; an upright line stands at 1."""
    width, top, bottom = 220.0, 24.0, 92.0
    x = Axis(math.log2(bins[0].low), math.log2(bins[-1].high), 0.0, width)
    most, total = max(each.count for each in bins), sum(each.count for each in bins)
    shown = f"{total:,}"
    room = width - 8 - _AXIS_SIZE * breadth(shown)
    parts = [element("text", fitted(label, room / _SIZE), x=0, y=13)]
    parts.append(element("text", shown, class_="axis", x=width, y=13, text_anchor="end"))
    parts += [_bin(each, x, bottom, (bottom - top) / most) for each in bins if each.count]
    parts.append(element("line", class_="zero", x1=0, x2=width, y1=bottom, y2=bottom))
    parts.append(element("path", class_="mark", d=f"M{x(0):.1f} {top - 4}V{bottom}"))
    ticks = {factor: x(math.log2(factor)) for factor in (1 / 8, 1 / 2, 1, 2, 8)}
    parts += [
        element("text", f"{factor:g}", class_="axis", x=place, y=bottom + 14, text_anchor="middle")
        for factor, place in ticks.items()
    ]
    told = "; ".join(f"{each.low:.2g} to {each.high:.2g}: {each.count:,}" for each in bins if each.count)
    title = f"Row weights of {brief(label, NAME)}"
    return drawing(name, title, told, bottom + 20, parts, width=width)


def _bin(found: Bin, x: Axis, bottom: float, scale: float) -> Markup:
    left, right, height = x(math.log2(found.low)), x(math.log2(found.high)), max(scale * found.count, 1.0)
    said = element("title", f"{found.low:.2g} to {found.high:.2g}: {found.count:,} rows")
    return element(
        "rect", said, class_="bar c0", x=left + 0.5, y=bottom - height, width=right - left - 1, height=height
    )


def _upright(x: Axis, tick: float, bottom: float) -> Markup:
    return element(
        "g",
        element("line", class_="grid", x1=x(tick), x2=x(tick), y1=_TOP, y2=bottom),
        _below(x, tick, bottom),
    )


def _below(x: Axis, tick: float, bottom: float) -> Markup:
    return element("text", f"{tick:g}", class_="axis", x=x(tick), y=bottom + 17, text_anchor="middle")


def _row(row: Row, label: str, x: Axis, y: float, *, bars: bool) -> Markup:
    parts = [
        element("title", row.said),
        element("text", label, x=x.start - 10, y=y + 4, text_anchor="end"),
        element("text", row.shown, class_="value", x=x.end + _VALUES, y=y + 4, text_anchor="end"),
    ]
    if bars:
        start, end = sorted((x(0), x(row.value)))
        width = max(end - start, 1.0)
        parts.append(element("rect", class_=f"bar {row.colour}", x=start, y=y - 7, width=width, height=14))
    if row.low is not None and row.high is not None and math.isfinite(row.low + row.high):
        low, high = x(row.low), x(row.high)
        path = f"M{low:.1f} {y - 4}V{y + 4}M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 4}V{y + 4}"
        parts.append(element("path", class_=f"whisker {'' if bars else row.colour}".strip(), d=path))
    if not bars:
        parts.append(element("circle", class_=f"point {row.colour}", cx=x(row.value), cy=y, r=4.5))
    if row.mark is not None:
        parts.append(element("path", class_="mark", d=f"M{x(row.mark):.1f} {y - 9}V{y + 9}"))
    return element("g", *parts)


def _line(line: Line, x: Axis, y: Axis) -> list[Markup]:
    drawn, pen = [], "M"
    for across, up in line.points:
        if math.isfinite(up):
            drawn.append(f"{pen}{x(across):.1f} {y(up):.1f}")
        pen = "L" if math.isfinite(up) else "M"
    colour = line.colour or "other"
    parts = [element("path", class_=f"line {colour}", d="".join(drawn))] if drawn else []
    if line.dotted:
        known = [(across, up) for across, up in line.points if math.isfinite(up)]
        parts += [element("circle", class_=f"point {colour}", cx=x(across), cy=y(up), r=3.5) for across, up in known]
    return parts


def _apart(wanted: Sequence[float], bottom: float) -> list[float]:
    """Places from the top down, moved apart where names would lie on each other."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + 16) if places else place)
    for number in range(len(places) - 1, -1, -1):
        limit = places[number + 1] - 16 if number + 1 < len(places) else bottom
        places[number] = min(places[number], limit)
    return places


def _names(lines: Sequence[Line], places: Sequence[float], left: float, room: float) -> Iterator[Markup]:
    """The names of lines, each behind its colour."""
    for place, line in zip(places, lines, strict=True):
        yield element("rect", class_=f"bar {line.colour}", x=left, y=place - 5, width=10, height=10)
        yield element("text", fitted(line.label, (room - 26) / _SIZE), x=left + 16, y=place + 4)


def _last(line: Line) -> float:
    return next((up for _, up in reversed(line.points) if math.isfinite(up)), math.nan)
