"""What the formats have in common: their description, and how numbers, names and comments are written.

Weights have nine digits. YAML is written as the JSON that it contains, so that no name needs quoting rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curator.export.shares import Share, Unit


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A domain in a file: where its reader finds it, and its weight in the file's unit."""

    place: str
    weight: float
    share: Share


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file that a trainer reads.

    `units` are those that its weights can be in, as the data was prepared; the first one unless another is asked for.
    `render` makes the text out of the entries and a heading for a comment. `place` says in words what stands for a
    domain. `zeros`: whether domains without weight are in the file; otherwise they are left out, and told.
    """

    reader: str
    units: tuple[Unit, ...]
    render: Callable[[Sequence[Entry], str], str]
    place: str
    zeros: bool = False


def number(weight: float) -> str:
    """Nine digits of a weight."""
    return f"{weight:.9g}"


def quoted(text: str) -> str:
    """A string of JSON that YAML reads alike: characters that break lines only there are spelled out."""
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False)
    )


def commented(heading: str, lines: Sequence[str]) -> str:
    """The lines behind a comment of # and heading."""
    return "\n".join([*(f"# {line}" for line in heading.splitlines()), *lines, ""])


def summing_to_one(entries: Sequence[Entry]) -> list[float]:
    """Weights of nine digits with the sum 1: numpy's choice, which readers use, refuses a sum off by more than 1e-8.

    What rounding leaves goes to the largest: a small one could end below 0.
    """
    rounded = [float(number(entry.weight)) for entry in entries]
    largest = max(range(len(rounded)), key=rounded.__getitem__)
    rounded[largest] = 1.0 - sum(rounded[:largest] + rounded[largest + 1 :])
    return rounded
