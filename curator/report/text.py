"""Text and numbers of a lake as the page shows them. Names and texts of a lake are not trusted.

What a browser would not show as it stands (control characters, marks that reorder or hide text, lone surrogates) is
spelled out as Python does, `\\u202e`. Text is isolated from the direction of what stands
around it, and cut with a note.
"""

from __future__ import annotations

import math
import unicodedata
from itertools import groupby

from markupsafe import Markup, escape

from curator.console import printable

MAX_CHARS = 2000
"""Characters that are shown of a text."""
NAME = 60
"""Columns of a name where it is one of many in a line."""
NOTHING = "–"
"""What is shown for a number that there is not."""
_LEAST_BREADTH = 0.47
_NARROW = frozenset(" !\"'(),-./:;I[\\]`fijlrt{|}")
_WIDE = frozenset("%@MWmw—…")
_PIECE = Markup('<span class="spelled">{}</span>')


def shown(text: str, most: int = MAX_CHARS) -> Markup:
    """`text` as HTML that does nothing but show it, with at most `most` of its characters."""
    pieces = [
        escape("".join(chars)) if is_plain else _PIECE.format(printable("".join(chars)))
        for is_plain, chars in groupby(text[:most], str.isprintable)
    ]
    if len(text) > most:
        pieces.append(Markup('<span class="spelled">… ({:,} characters)</span>').format(len(text)))
    return Markup("<bdi>{}</bdi>").format(Markup("").join(pieces))


def brief(text: str, columns: int) -> str:
    """`text` on one line of so many columns, for where there is no markup: wide characters take two."""
    line: list[str] = []
    used = 0
    for char in printable(text[: 2 * columns]):
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > columns:
            return "".join(line)[: columns - 1] + "…"
        line.append(char)
    return "".join(line) + ("…" if len(text) > 2 * columns else "")


def breadth(text: str) -> float:
    """How wide a line is at most, in units of its font's size: the letters of DejaVu Sans, one of the widest fonts."""
    return sum(map(_breadth, text))


def fitted(text: str, most: float) -> str:
    """`text` on one line that is no wider than `most` times its font's size, for a drawing, which breaks no lines."""
    line = brief(text, int(most / _LEAST_BREADTH))
    if breadth(line) <= most:
        return line
    kept = line.removesuffix("…")
    while kept and breadth(kept) + _breadth("…") > most:
        kept = kept[:-1]
    return kept + "…"


def _breadth(char: str) -> float:
    if char in _NARROW:
        return _LEAST_BREADTH
    if char in _WIDE:
        return 1.0
    if char.isascii():
        return 0.64 if char.islower() or char.isdigit() or char in "_*$?" else 0.84
    return 1.3 if unicodedata.east_asian_width(char) in "WF" else 0.9


def weight(value: float | None) -> str:
    """A share with three digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return "< 0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:+.3f}"


def count(value: float | None) -> str:
    """A whole number."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval of shares."""
    return NOTHING if low is None or high is None else f"{low:.3f} … {high:.3f}"


def duration(seconds: float) -> str:
    """Seconds in the units that people say."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
