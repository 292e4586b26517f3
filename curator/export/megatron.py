"""Megatron's blends: weight and prefix in turn.

Weights are shares of sequences and must be above 0 (`BlendedDataset` asserts it). Source: megatron-core 0.16,
`datasets/utils.py` (get_blend_from_list) and `datasets/blended_dataset.py`; Megatron-LM, `training/utils.py`
(get_blend_and_blend_per_split): --data-args-path is split at white space, --per-split-data-args-path is an object
whose keys train, valid and test must all be there. Megatron-Bridge reads both by the same names of arguments
(`bridge.recipes.utils.dataset_utils.get_blend_fields_from_data_paths`), and so do Nemotron-CLIMB's mixture files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from curator.errors import ConfigError
from curator.export.format import Entry, Format, number
from curator.export.shares import SEQUENCES

_SPLITS = ("train", "valid", "test")


def _blend(entries: Sequence[Entry], _: str) -> str:
    """Split at white space by its reader, so that there is no room for a comment."""
    for entry in entries:
        _check(entry.place)
    return "".join(f"{number(entry.weight)} {entry.place}\n" for entry in entries)


def _splits(entries: Sequence[Entry], _: str) -> str:
    """The blend for training; also for the other splits if places tell them apart by {split}, else they have none."""
    parted = all("{split}" in entry.place for entry in entries)
    values: dict[str, list[str] | None] = {}
    for split in _SPLITS:
        places = [entry.place.replace("{split}", split) for entry in entries]
        for place in places:
            _check(place)
        weights = [number(entry.weight) for entry in entries]
        blend = [part for pair in zip(weights, places, strict=True) for part in pair]
        values[split] = blend if parted or split == "train" else None
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _check(place: str) -> None:
    if not place or any(char.isspace() for char in place):
        raise ConfigError(
            f"the prefix {place!r} has white space or is empty, which the blend file cannot hold",
            hint="rename the data; --places may be a JSON file of {domain: place}",
        )
    if place.endswith((".bin", ".idx")):
        raise ConfigError(f"the prefix {place!r} must not end in .bin or .idx: Megatron adds those itself")


BLEND = Format(
    reader="Megatron-LM and Megatron-Bridge, --data-args-path FILE",
    units=(SEQUENCES,),
    render=_blend,
    place="the path of its .bin and .idx files without the ending",
)
SPLITS = Format(
    reader="Megatron-LM and Megatron-Bridge, --per-split-data-args-path FILE",
    units=(SEQUENCES,),
    render=_splits,
    place="the path of its .bin and .idx files without the ending, with {split} in it where valid and test exist",
)
