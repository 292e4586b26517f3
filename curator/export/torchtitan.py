"""A Python module with torchtitan's mix, since its settings are Python.

Weights are relative and above 0. They count sequences of the datasets that are packed already, or rows of those that
are packed after the mix (`--unit rows`). Source: torchtitan, `torchtitan/components/data/README.md` (DatasetMixConfig,
WeightedDataset); up to release 0.3 the same weights go to `torchtitan.hf_datasets.interleaved.InterleavedDataset`.
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.export.format import Entry, Format, commented, number
from curator.export.shares import ROWS, SEQUENCES

_MIX = """

def mix(datasets):
    \"\"\"The mix of the configurations of datasets that are given by name.\"\"\"
    from torchtitan.components.data import DatasetMixConfig, WeightedDataset

    return DatasetMixConfig(
        datasets=tuple(WeightedDataset(dataset=datasets[name], weight=weight) for name, weight in WEIGHTS.items())
    )"""


def _render(entries: Sequence[Entry], heading: str) -> str:
    lines = [f"    {entry.place!a}: {number(entry.weight)}," for entry in entries]
    return commented(heading, ["WEIGHTS = {", *lines, "}", *_MIX.splitlines()])


FORMAT = Format(
    reader="torchtitan, as a Python module with a function mix",
    units=(SEQUENCES, ROWS),
    render=_render,
    place="the name that mix is given its dataset by",
)
