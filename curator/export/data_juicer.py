"""Data-Juicer's datasets with weights.

The weights are normalised and say how many of `max_sample_num` rows are drawn of each dataset; without `max_sample_num`
they are not read at all. It is the largest number for which no domain is drawn from more often than it has rows.
Source: Data-Juicer 1.6.1, `core/data/dataset_builder.py` (DatasetBuilder, get_sample_numbers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number, quoted
from curator.export.shares import ROWS


def _render(entries: Sequence[Entry], heading: str) -> str:
    most = max(1, math.floor(min(entry.share.num_rows / entry.weight for entry in entries) + 1e-6))
    lines = ["dataset:", f"  max_sample_num: {most}", "  configs:"]
    lines += [
        f"    - {{type: local, weight: {number(entry.weight)}, path: {quoted(entry.place)}}}" for entry in entries
    ]
    return commented(heading, lines)


FORMAT = Format(
    reader="Data-Juicer, merged into its YAML settings",
    units=(ROWS,),
    render=_render,
    place="the path of its files",
)
