"""Axolotl's datasets, each cut to the rows that the mixture keeps of it.

The cut is a slice of the split, which every release hands to `datasets.load_dataset`; the key `weight` of its main
branch (pull request 3690, the kept fraction) is not in release 0.19, which would pass over it without a word. The
first rows are kept, so shuffle what is sorted. Nothing is repeated. The key `type` is for the prompts and is to be
added. Source: axolotl 0.19, `utils/data/shared.py` (load_dataset_with_config); "Slice splits" of datasets.
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, quoted
from curator.export.shares import KEPT


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = [f'  - {{path: {quoted(entry.place)}, split: "train[:{entry.weight:.0f}]"}}' for entry in entries]
    return commented(heading, ["datasets:", *lines])


FORMAT = Format(
    reader="Axolotl, merged into its YAML settings",
    units=(KEPT,),
    render=_render,
    place="the path that datasets.load_dataset loads it by, such as a folder of Parquet files",
)
