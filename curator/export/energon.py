"""Megatron-Energon's metadataset with a blend.

The weight is the probability that the next sample is of a dataset; what a sample is, the dataset's task encoder says:
a row, or a packed sequence. Source: docs/source/basic/metadataset.md of Megatron-Energon (version 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number, quoted
from curator.export.shares import ROWS, SEQUENCES


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = ["__module__: megatron.energon", "__class__: MetadatasetV2", "splits:", "  train:", "    blend:"]
    lines += [f"      - {{weight: {number(entry.weight)}, path: {quoted(entry.place)}}}" for entry in entries]
    return commented(heading, lines)


FORMAT = Format(
    reader="Megatron-Energon, get_train_dataset(FILE)",
    units=(ROWS, SEQUENCES),
    render=_render,
    place="its dataset's folder or .jsonl file",
)
