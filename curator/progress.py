"""How long work tells how far it is: one callback, rendered by whoever passed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal[
    "list",
    "ingest",
    "copy",
    "tokenize",
    "leaks",
    "test",
    "cluster",
    "plan",
    "calibrate",
    "learn",
    "rows",
    "score",
    "train",
    "publish",
    "verify",
    "materialize",
]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` units of a stage (None: not known beforehand), and a few words on its state."""

    stage: Stage
    done: int
    total: int | None = None
    detail: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
