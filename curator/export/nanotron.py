"""Nanotron's datasets of tokens with weights, as the first stage of the data.

Shares of sequences, normalised; a dataset that ends begins anew. Source: nanotron,
`config/config.py` (NanosetDatasetsArgs, DatasetStageArgs) and `data/nanoset.py` (Nanoset).
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number, quoted
from curator.export.shares import SEQUENCES


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = ["data_stages:", "  - name: curated", "    start_training_step: 1", "    data:", "      seed: 0"]
    lines += ["      dataset:", "        dataset_folder:"]
    lines += [f"          - {quoted(entry.place)}" for entry in entries]
    lines += ["        dataset_weights:"]
    lines += [f"          - {number(entry.weight)}" for entry in entries]
    return commented(heading, lines)


FORMAT = Format(
    reader="nanotron, merged into its YAML settings",
    units=(SEQUENCES,),
    render=_render,
    place="the folder of its token files (*.ds)",
)
