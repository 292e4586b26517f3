"""LLaMA-Factory's mixture of datasets.

Probabilities are those of the next example, and `interleave_over` is `all_exhausted` of `datasets`. Source:
LLaMA-Factory 0.9.5, `hparams/data_args.py` and `data/data_utils.py` (merge_dataset).
"""

from __future__ import annotations

from collections.abc import Sequence

from curator.errors import ConfigError
from curator.export.format import Entry, Format, commented, number, quoted, summing_to_one
from curator.export.shares import ROWS


def _render(entries: Sequence[Entry], heading: str) -> str:
    for entry in entries:
        if "," in entry.place:
            raise ConfigError(f"the dataset name {entry.place!r} has a comma, which separates names", hint="rename it")
    probabilities = ",".join(map(number, summing_to_one(entries)))
    names = ",".join(entry.place for entry in entries)
    return commented(
        heading,
        [
            f"dataset: {quoted(names)}",
            "mix_strategy: interleave_over",
            f'interleave_probs: "{probabilities}"',
        ],
    )


FORMAT = Format(
    reader="LLaMA-Factory, merged into its YAML settings",
    units=(ROWS,),
    render=_render,
    place="its name in dataset_info.json",
)
