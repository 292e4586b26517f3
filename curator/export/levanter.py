"""Levanter's and Marin's weights of training data.

Shares of packed sequences, normalised; `restart` begins a domain anew when it ends. Every block of
`mixture_block_size` (2,048) sequences has a whole number of each domain's, rounded down, and the heaviest gets the
rest: a weight below 1/2048 draws nothing, with a warning. Source: marin-levanter 0.2.20, `data/text/datasets.py`
(LmDataConfig) and `data/mixture.py` (MixtureDataset).
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
