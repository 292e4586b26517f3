"""All that a report is made from, gathered before anything is laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curator.comparison import Comparison
from curator.report.rows import Rows
from curator.report.steps import Steps
from curator.run import Version

SCALEBIO = "scalebio"

Domains = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """All that a report is made from.

    `lake_url` is without credentials; `comparisons` are those with this run, newest first; `versions` those of it;
    `rows` None where it weighs domains alone.
    """

    record: Mapping[str, Any]
    lake_url: str
    destination: str
    steps: Steps | None
    comparisons: Sequence[Comparison]
    versions: Sequence[Version]
    rows: Rows | None = None

    @property
    def domains(self) -> Domains:
        """The domains of the run, largest weight first."""
        return sorted(self.record["domains"], key=lambda row: -row["domain_weight"])

    @property
    def method(self) -> str:
        """How the weights were found; records from before there were other methods do not name theirs."""
        return str(self.record["learn"].get("method", SCALEBIO))

    @property
    def gaps(self) -> Mapping[str, float]:
        """The mean gap of every domain in which one was measured."""
        if self.steps is None:
            return {}
        names = [row["domain"] for row in self.record["domains"]]
        return {name: float(gap) for name, gap in zip(names, self.steps.gap_D, strict=True) if np.isfinite(gap)}
