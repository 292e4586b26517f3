"""Weights of rows by domain, for `curator.torch`, which draws rows by them or weighs their loss.

Every row of a domain has the weight that the column `sample_weight` has in what is published; domains without weight
are there with 0, since a row must not be drawn only because its domain is not in the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from curator.export.format import Entry, Format, number
from curator.export.shares import ROW_WEIGHT


def _render(entries: Sequence[Entry], heading: str) -> str:
    weights = {entry.place: float(number(entry.weight)) for entry in entries}
    return json.dumps({"comment": heading, "row_weights": weights}, indent=1, ensure_ascii=False) + "\n"


FORMAT = Format(
    reader="curator.torch.row_weights",
    units=(ROW_WEIGHT,),
    render=_render,
    place="what your rows call it",
    zeros=True,
)
