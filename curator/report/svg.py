"""Elements of SVG as escaped markup, and the axes of a chart. Colours are classes, which the page's style knows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 720
"""Of a chart as wide as the page, in the units of its view box."""
NARROW = 340
"""Of one as wide as a phone."""
_LEAST_LENGTH = 1e-9
"""Of an axis, relative to the size of its values: where they are all but equal, it is made longer."""


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element; text among the children is escaped, `class_` and `text_anchor` become `class` and `text-anchor`."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _written(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, Markup("").join(children))  # noqa: S704


def drawing(
    name: str,
    title: str,
    description: str,
    height: float,
    parts: Iterable[Markup],
    *,
    width: float = WIDTH,
    class_: str | None = None,
) -> Markup:
    """A whole chart. `name` is unique in the page; the title and description are read to who cannot see it."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *parts,
        class_=class_,
        viewBox=f"0 0 {_written(width)} {_written(height)}",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @staticmethod
    def over(values: Iterable[float], start: float, end: float) -> Axis:
        """An axis on which all finite values have room; never of no length."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        size = max(abs(low), abs(high))
        if high - low > _LEAST_LENGTH * size > 0:
            return Axis(low, high, start, end)
        margin = size * 0.1 or 1.0
        return Axis(low - margin, high + margin, start, end)

    def widened(self, share: float) -> Axis:
        """With room of a share of its length at both ends."""
        margin = share * (self.high - self.low)
        return Axis(self.low - margin, self.high + margin, self.start, self.end)

    def __call__(self, value: float) -> float:
        """Where a value is drawn."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis, at most so many."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
