"""The arguments of `datasets.interleave_datasets`.

Probabilities are those of the next example, and `all_exhausted` goes on until every domain was seen whole; the default
would stop when the first one ends. Source: datasets 5.2, `combine.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from curator.export.format import Entry, Format, summing_to_one
from curator.export.shares import ROWS, SEQUENCES


def _render(entries: Sequence[Entry], heading: str) -> str:
    values = {
        "comment": heading,
        "datasets": [entry.place for entry in entries],
        "probabilities": summing_to_one(entries),
        "stopping_strategy": "all_exhausted",
        "seed": 0,
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


FORMAT = Format(
    reader="datasets.interleave_datasets, with the values of the JSON file as its arguments",
    units=(ROWS, SEQUENCES),
    render=_render,
    place="what you load it by",
)
