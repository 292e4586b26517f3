"""The files that trainers read, each by the documentation or source of its reader.

A format gets the shares, each domain's place (a path, prefix or name) and a heading for a comment. Weights have nine
digits. YAML is written as the JSON that it contains, so that no name needs quoting rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from curator.errors import ConfigError
from curator.export.shares import Share

Places = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Format:
    """`unit` says what the weights in the file are, `weight` takes them from a share; `place` stands for a domain."""

    reader: str
    unit: str
    weight: Callable[[Share], float]
    render: Callable[[Sequence[tuple[str, float]], str], str]
    place: str


def _number(weight: float) -> str:
    return f"{weight:.9g}"


def _quoted(text: str) -> str:
    """A string of JSON that YAML reads alike: characters that break lines only there are spelled out."""
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False)
    )


def _commented(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([*(f"# {line}" for line in heading.splitlines()), *lines, ""])


def _megatron(weighted: Sequence[tuple[str, float]], _: str) -> str:
    """Split at white space by its reader, so that there is no room for a comment."""
    for place, _weight in weighted:
        if not place or any(char.isspace() for char in place):
            raise ConfigError(
                f"the prefix {place!r} has white space or is empty, which the blend file cannot hold; rename the data"
            )
        if place.endswith((".bin", ".idx")):
            raise ConfigError(f"the prefix {place!r} must not end in .bin or .idx: Megatron adds those itself")
    return "".join(f"{_number(weight)} {place}\n" for place, weight in weighted)


def _energon(weighted: Sequence[tuple[str, float]], heading: str) -> str:
    lines = ["__module__: megatron.energon", "__class__: MetadatasetV2", "splits:", "  train:", "    blend:"]
    lines += [f"      - {{weight: {_number(weight)}, path: {_quoted(place)}}}" for place, weight in weighted]
    return _commented(heading, lines)


def _datasets(weighted: Sequence[tuple[str, float]], heading: str) -> str:
    values = {
        "comment": heading,
        "datasets": [place for place, _ in weighted],
        "probabilities": _summing_to_one([weight for _, weight in weighted]),
        "stopping_strategy": "all_exhausted",
        "seed": 0,
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _llama_factory(weighted: Sequence[tuple[str, float]], heading: str) -> str:
    for place, _ in weighted:
        if "," in place:
            raise ConfigError(f"the dataset name {place!r} has a comma, which separates names; rename it")
    probabilities = ",".join(map(_number, _summing_to_one([weight for _, weight in weighted])))
    names = ",".join(place for place, _ in weighted)
    return _commented(
        heading,
        [
            f"dataset: {_quoted(names)}",
            "mix_strategy: interleave_over",
            f'interleave_probs: "{probabilities}"',
        ],
    )


def _levanter(weighted: Sequence[tuple[str, float]], heading: str) -> str:
    lines = ["data:", "  train_weights:"]
    lines += [f"    {_quoted(place)}: {_number(weight)}" for place, weight in weighted]
    return _commented(heading, [*lines, "  stop_strategy: restart"])


def _data_juicer(weighted: Sequence[tuple[str, float]], heading: str) -> str:
    lines = ["dataset:", "  configs:"]
    lines += [f"    - {{type: local, weight: {_number(weight)}, path: {_quoted(place)}}}" for place, weight in weighted]
    return _commented(heading, lines)


def _summing_to_one(weights: Sequence[float]) -> list[float]:
    """numpy's choice, which the readers use, refuses probabilities that are off by more than 1e-8."""
    rounded = [float(_number(weight)) for weight in weights]
    return [*rounded[:-1], 1.0 - sum(rounded[:-1])] if len(rounded) > 1 else [1.0]


FORMATS: Mapping[str, Format] = {
    "megatron": Format(
        reader="Megatron-LM and Megatron-Bridge, --data-args-path FILE",
        unit="share of sequences, which is the share of tokens",
        weight=lambda share: share.tokens,
        render=_megatron,
        place="the path of its .bin and .idx files without the ending",
    ),
    "energon": Format(
        reader="Megatron-Energon, get_train_dataset(FILE)",
        unit="share of samples, taken as rows",
        weight=lambda share: share.rows,
        render=_energon,
        place="its dataset's folder",
    ),
    "datasets": Format(
        reader="datasets.interleave_datasets, with the values of the JSON file as its arguments",
        unit="probability of the next row",
        weight=lambda share: share.rows,
        render=_datasets,
        place="what you load it by",
    ),
    "llama-factory": Format(
        reader="LLaMA-Factory, merged into its YAML settings",
        unit="probability of the next row",
        weight=lambda share: share.rows,
        render=_llama_factory,
        place="its name in dataset_info.json",
    ),
    "levanter": Format(
        reader="Levanter and Marin, merged into their YAML settings",
        unit="share of sequences, which is the share of tokens",
        weight=lambda share: share.tokens,
        render=_levanter,
        place="its name among the data's components",
    ),
    "data-juicer": Format(
        reader="Data-Juicer, merged into its YAML settings",
        unit="kept fraction of the rows",
        weight=lambda share: share.kept,
        render=_data_juicer,
        place="the path of its files",
    ),
}
