"""OLMo-core's list of sources.

`target_ratio` is the share of tokens, and the ratios must sum to 1. A source is repeated at most
`max_repetition_ratio` times; a training that would need more is refused. Source: OLMo-core 3.0,
`data/source_mixture.py` (SourceMixtureList, SourceMixtureDatasetConfig.build).
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number, quoted, summing_to_one
from curator.export.shares import MAX_EPOCHS, TOKENS


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = ["sources:"]
    for entry, ratio in zip(entries, summing_to_one(entries), strict=True):
        lines += [
            f"  - source_name: {quoted(entry.share.domain)}",
            f"    target_ratio: {number(ratio)}",
            f"    paths: [{quoted(entry.place)}]",
            f"    max_repetition_ratio: {MAX_EPOCHS:.1f}",
        ]
    return commented(heading, lines)


FORMAT = Format(
    reader="OLMo-core, SourceMixtureList.from_yaml(FILE)",
    units=(TOKENS,),
    render=_render,
    place="the path or pattern of its token files",
)
