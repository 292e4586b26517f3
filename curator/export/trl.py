"""TRL's mixture of datasets.

`fraction` is the share of rows of the mixture, normalised. The mixture is as large as it can be without repeating a
row, and of each dataset the first rows are kept, so shuffle what is sorted. Not for streaming. Source: TRL 1.16,
`scripts/utils.py` (DatasetConfig, get_dataset).
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number, quoted
from curator.export.shares import ROWS


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = [f"  - {{fraction: {number(entry.weight)}, path: {quoted(entry.place)}}}" for entry in entries]
    return commented(heading, ["datasets:", *lines])


FORMAT = Format(
    reader="TRL, merged into its YAML settings",
    units=(ROWS,),
    render=_render,
    place="the path that datasets.load_dataset loads it by, such as a folder of Parquet files",
)
