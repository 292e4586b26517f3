"""What a trainer would draw by an exported file: its text parsed and sampled as the trainer documents it.

A lake is {place: lengths of its rows in tokens}. Each replay makes so many draws (sequences or rows; of those that keep
rows, all that are kept) and gives the tokens that each place got. Sources are those of the formats' modules.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import yaml

import curator
from curator.export import FORMATS, export
from curator.torch import WeightedSampler, row_weights

Lake = Mapping[str, np.ndarray]
SIGMAS = 5.0
"""Standard errors that a share may be off."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """`shares` of the tokens that were drawn, `wanted` those learned, and the standard error of `num_draws` draws."""

    shares: dict[str, float]
    wanted: dict[str, float]
    errors: dict[str, float]
    num_draws: int

    @property
    def difference(self) -> float:
        """The largest one between a share and what was learned."""
        return max(abs(self.shares[place] - self.wanted[place]) for place in self.wanted)

    @property
    def is_right(self) -> bool:
        """Whether all shares are within their sampling error."""
        return all(abs(self.shares[place] - self.wanted[place]) <= SIGMAS * self.errors[place] for place in self.wanted)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """`counts` of rows or sequences of each place, their `tokens`, and whether the counts were drawn by chance."""

    tokens: dict[str, float]
    counts: dict[str, int]
    by_row: bool
    by_chance: bool


class _Lake:
    url = "lake"


def make_run(seed=0):
    """A run whose domains differ 40 times in the length of their rows, and the lake of it; one has no weight."""
    rng = np.random.default_rng(seed)
    shapes = {"web": (4000, 120, 0.30), "code": (1500, 900, 0.25), "chat": (3000, 60, 0.15), "books": (600, 2500, 0.30)}
    lake = {name: rng.integers(mean // 2, mean * 3 // 2, num) for name, (num, mean, _) in shapes.items()}
    lake["spam"] = rng.integers(50, 100, 500)
    domains = [
        {
            "domain": name,
            "domain_weight": shapes[name][2] if name in shapes else 0.0,
            "num_samples": len(lengths),
            "num_tokens": int(lengths.sum()),
        }
        for name, lengths in lake.items()
    ]
    return curator.Run(_Lake(), {"run_id": "r1", "domains": domains}), lake


def replay(format_, tmp_path, *, unit=None, num_draws=20_000, seed=0, as_=None) -> Replay:
    """Export to a file, and draw by it; `as_` takes the sampling of another format."""
    run, lake = make_run()
    export(run, format_, tmp_path / "out", unit=unit, overwrite=True)
    draws = REPLAYS[as_ or (format_, unit)](tmp_path / "out", lake, np.random.default_rng(seed), num_draws)
    total = sum(draws.tokens.values())
    wanted = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
    return Replay(
        shares={place: draws.tokens.get(place, 0.0) / total for place in lake},
        wanted=wanted,
        errors=_errors(wanted, lake, draws),
        num_draws=sum(draws.counts.values()),
    )


def _errors(wanted, lake, draws):
    """Standard errors of token shares by the delta method, for independent draws, and what whole rows round off.

    Where the counts are not by chance, only the lengths of the rows are.
    """
    num = sum(draws.counts.values())
    lengths = lake if draws.by_row else {place: np.ones(1) for place in lake}
    often = {place: wanted[place] / lengths[place].mean() for place in wanted}
    often = {place: value / sum(often.values()) for place, value in often.items()}
    mean = sum(often[place] * lengths[place].mean() for place in wanted)
    spread = {place: (lengths[place] ** 2).mean() if draws.by_chance else lengths[place].var() for place in wanted}
    found = {}
    for place in wanted:
        variance = sum(often[e] * spread[e] * ((e == place) - wanted[place]) ** 2 for e in wanted) / num / mean**2
        rounded = max(lengths[e].mean() for e in wanted) / num / mean
        found[place] = math.sqrt(variance) + rounded
    return found


def _sequences(counts, *, by_chance=False):
    whole = {place: int(count) for place, count in counts.items()}
    return Draws(tokens={p: float(c) for p, c in whole.items()}, counts=whole, by_row=False, by_chance=by_chance)


def _rows(counts, lake, *, by_chance=False):
    """Rows one after the other, from the start again after the last."""
    whole = {place: int(count) for place, count in counts.items()}
    tokens = {place: float(np.resize(lake[place], count).sum()) for place, count in whole.items()}
    return Draws(tokens=tokens, counts=whole, by_row=True, by_chance=by_chance)


def _evenly(weights, num):
    """Megatron's and nanotron's index: the dataset that is furthest behind its share is next."""
    share = np.array(list(weights.values()))
    share /= share.sum()
    counts = np.zeros(len(share))
    for place in range(num):
        counts[np.argmax(share * max(place, 1) - counts)] += 1
    return _sequences(dict(zip(weights, counts, strict=True)))


def _by_chance(weights, rng, num):
    share = np.array(list(weights.values()))
    return dict(zip(weights, rng.multinomial(num, share / share.sum()), strict=True))


def _first_rows(counts, lake):
    assert all(count <= len(lake[place]) for place, count in counts.items())
    return _rows(counts, lake)


def _pairs(parts):
    return {place: float(weight) for weight, place in zip(parts[::2], parts[1::2], strict=True)}


def megatron(path, lake, rng, num):
    return _evenly(_pairs(path.read_text().split()), num)


def megatron_splits(path, lake, rng, num):
    return _evenly(_pairs(json.loads(path.read_text())["train"]), num)


def nanotron(path, lake, rng, num):
    values = yaml.safe_load(path.read_text())["data_stages"][0]["data"]["dataset"]
    return _evenly(dict(zip(values["dataset_folder"], values["dataset_weights"], strict=True)), num)


def levanter(path, lake, rng, num):
    weights = yaml.safe_load(path.read_text())["data"]["train_weights"]
    return _sequences(_by_chance(weights, rng, num), by_chance=True)


def olmo_core(path, lake, rng, num):
    ratios = {each["source_name"]: each["target_ratio"] for each in yaml.safe_load(path.read_text())["sources"]}
    return _sequences({place: int(num * ratio) for place, ratio in ratios.items()})


def _weights_of_module(path):
    names: dict = {}
    exec(compile(path.read_text(), path, "exec"), names)
    return names["WEIGHTS"]


def torchtitan(path, lake, rng, num):
    weights = _weights_of_module(path)
    drawn = random.Random(int(rng.integers(2**32))).choices(list(weights), list(weights.values()), k=num)
    return _sequences({place: drawn.count(place) for place in weights}, by_chance=True)


def torchtitan_rows(path, lake, rng, num):
    return _rows(_by_chance(_weights_of_module(path), rng, num), lake, by_chance=True)


def _proportions(path):
    streams = yaml.safe_load(path.read_text())["streams"].values()
    return {each["local"]: each["proportion"] for each in streams}


def _chosen(weights, num):
    total = sum(weights.values())
    return {place: int(num * weight / total) for place, weight in weights.items()}


def streaming(path, lake, rng, num):
    return _sequences(_chosen(_proportions(path), num))


def streaming_rows(path, lake, rng, num):
    return _rows(_chosen(_proportions(path), num), lake)


def _blend_of(path):
    blend = yaml.safe_load(path.read_text())["splits"]["train"]["blend"]
    return {each["path"]: each["weight"] for each in blend}


def energon(path, lake, rng, num):
    return _rows(_by_chance(_blend_of(path), rng, num), lake, by_chance=True)


def energon_sequences(path, lake, rng, num):
    return _sequences(_by_chance(_blend_of(path), rng, num), by_chance=True)


def _probabilities(path):
    values = json.loads(path.read_text())
    return dict(zip(values["datasets"], values["probabilities"], strict=True))


def datasets(path, lake, rng, num):
    return _rows(_by_chance(_probabilities(path), rng, num), lake, by_chance=True)


def datasets_sequences(path, lake, rng, num):
    return _sequences(_by_chance(_probabilities(path), rng, num), by_chance=True)


def llama_factory(path, lake, rng, num):
    values = yaml.safe_load(path.read_text())
    probabilities = map(float, values["interleave_probs"].split(","))
    return _rows(
        _by_chance(dict(zip(values["dataset"].split(","), probabilities, strict=True)), rng, num), lake, by_chance=True
    )


def trl(path, lake, rng, num):
    fractions = {each["path"]: each["fraction"] for each in yaml.safe_load(path.read_text())["datasets"]}
    weights = {place: fraction / sum(fractions.values()) for place, fraction in fractions.items()}
    total = min(len(lake[place]) / weight for place, weight in weights.items())
    return _first_rows({place: round(weight * total) for place, weight in weights.items()}, lake)


def axolotl(path, lake, rng, num):
    entries = yaml.safe_load(path.read_text())["datasets"]
    slices = {each["path"]: each["split"].removeprefix("train[:").removesuffix("]") for each in entries}
    return _first_rows({place: int(count) for place, count in slices.items()}, lake)


def data_juicer(path, lake, rng, num):
    values = yaml.safe_load(path.read_text())["dataset"]
    total = sum(each["weight"] for each in values["configs"])
    counts, given = {}, 0
    for each in values["configs"]:
        count = min(math.ceil(values["max_sample_num"] * each["weight"] / total), values["max_sample_num"] - given)
        counts[each["path"]], given = count, given + count
    assert all(count <= len(lake[place]) for place, count in counts.items())
    tokens = {place: float(rng.choice(lake[place], count, replace=False).sum()) for place, count in counts.items()}
    return Draws(tokens=tokens, counts=counts, by_row=True, by_chance=False)


def torch(path, lake, rng, num):
    domains = np.repeat(list(lake), [len(lengths) for lengths in lake.values()])
    lengths = np.concatenate(list(lake.values()))
    rows = list(WeightedSampler(row_weights(path, domains), num_draws=num, seed=int(rng.integers(2**32))))
    tokens = {place: float(lengths[rows][domains[rows] == place].sum()) for place in lake}
    counts = {place: int((domains[rows] == place).sum()) for place in lake}
    return Draws(tokens=tokens, counts=counts, by_row=True, by_chance=False)


REPLAYS: dict[tuple[str, str | None], Callable] = {
    ("megatron", None): megatron,
    ("megatron-splits", None): megatron_splits,
    ("energon", None): energon,
    ("energon", "sequences"): energon_sequences,
    ("nanotron", None): nanotron,
    ("olmo-core", None): olmo_core,
    ("torchtitan", None): torchtitan,
    ("torchtitan", "rows"): torchtitan_rows,
    ("levanter", None): levanter,
    ("streaming", None): streaming,
    ("streaming", "rows"): streaming_rows,
    ("torch", None): torch,
    ("datasets", None): datasets,
    ("datasets", "sequences"): datasets_sequences,
    ("trl", None): trl,
    ("axolotl", None): axolotl,
    ("llama-factory", None): llama_factory,
    ("data-juicer", None): data_juicer,
}
assert {name for name, _ in REPLAYS} == set(FORMATS)
