"""MosaicML Streaming's streams by proportion, as LLM Foundry's YAML has them.

The proportion is the share of samples of an epoch, normalised: packed sequences, as LLM Foundry writes them for
pretraining, or rows (`--unit rows`). Source: mosaicml-streaming 0.13, `base/stream.py` (Stream, apply_weights).
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number, quoted
from curator.export.shares import ROWS, SEQUENCES


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = ["streams:"]
    for entry in entries:
        kind = "remote" if "://" in entry.place else "local"
        values = f"{{{kind}: {quoted(entry.place)}, proportion: {number(entry.weight)}}}"
        lines.append(f"  {quoted(entry.share.domain)}: {values}")
    return commented(heading, lines)


FORMAT = Format(
    reader="MosaicML Streaming and LLM Foundry, Stream(**values) of each of the streams",
    units=(SEQUENCES, ROWS),
    render=_render,
    place="the folder or URL of its MDS files",
)
