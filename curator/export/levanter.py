"""Levanter's and Marin's weights of training data.

Shares of packed sequences, normalised; `restart` begins a domain anew when it ends. Source: Levanter,
`data/text.py` (LMMixtureDatasetConfig).
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number, quoted
from curator.export.shares import SEQUENCES


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = ["data:", "  train_weights:"]
    lines += [f"    {quoted(entry.place)}: {number(entry.weight)}" for entry in entries]
    return commented(heading, [*lines, "  stop_strategy: restart"])


FORMAT = Format(
    reader="Levanter and Marin, merged into their YAML settings",
    units=(SEQUENCES,),
    render=_render,
    place="its name among the data's components",
)
