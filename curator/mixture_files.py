"""Mixtures in files, by hand and of other tools, all of them shares of training tokens.

| file | what is in it |
|---|---|
| `.json` | an object {domain: weight}, or DoReMi's {"train_domain_weights": {domain: weight}, …} |
| `.yaml`, `.yml` | RegMix's configuration of a training, `train: {train_DOMAIN: weight}` |
| `.csv` | RegMix's table of mixtures: a column train_DOMAIN for each domain, one mixture a row, named by `index` |
| `.txt`, `.blend` | a blend of Megatron or Nemotron-CLIMB: weight and prefix in turn, divided by white space |

A name is a domain's if it is equal to it, without `train_` before it, or, as a prefix, if its last part is without
`_document`, `_text_document` … behind it. Prefixes of one domain add up. Sources: github.com/sangmichaelxie/doremi
(`configs/*.json`), github.com/sail-sg/regmix (`mixture_config/config_1b`, `data/train_mixture_1m.csv`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curator.errors import ConfigError
from curator.files import read_object

SUFFIXES = (".json", ".yaml", ".yml", ".csv", ".txt", ".blend")

_DOREMI = "train_domain_weights"
_DOCUMENT = re.compile(r"(_text|_content)?_(document|sentence)$")


def read_mixtures(path: Path, domains: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The mixtures in a file by name, each {domain: weight}; names that no domain has stay as they are.

    The only one is named like the file, several with their index behind it.

    Raises:
        ConfigError: it cannot be read, or is not what its suffix says.
    """
    if path.suffix == ".json":
        values = read_object(path, "mixture", "{domain: weight}")
        if isinstance(values.get(_DOREMI), dict) and _DOREMI not in domains:
            values = values[_DOREMI]
        return {path.stem: values}
    text = _text(path)
    if path.suffix == ".csv":
        return _table(path, text, domains)
    values = _blend(path, text, domains) if path.suffix in (".txt", ".blend") else _train(path, text, domains)
    return {path.stem: values}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"mixture file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"mixture file {path} cannot be read as UTF-8 ({error})", hint="save it as text") from error


def _train(path: Path, text: str, domains: Sequence[str]) -> Mapping[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ConfigError("a mixture in YAML needs PyYAML: pip install pyyaml, or write JSON") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"mixture file {path} cannot be read as YAML ({' '.join(str(error).split())})") from error
    train = values.get("train") if isinstance(values, dict) else None
    if not isinstance(train, dict):
        raise ConfigError(f"mixture file {path} has no train: {{train_DOMAIN: weight}}, as RegMix writes it")
    return {_plain(str(name), domains): weight for name, weight in train.items()}


def _table(path: Path, text: str, domains: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    rows = list(csv.reader(text.splitlines()))
    if len(rows) < 2 or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise ConfigError(f"mixture file {path} is no table: it needs a line of names and as many values in each other")
    names = rows[0]
    found: dict[str, Mapping[str, Any]] = {}
    for place, row in enumerate(rows[1:], 1):
        values = dict(zip(names, row, strict=True))
        index = values.pop("index", str(place))
        found[f"{path.stem}-{index}"] = {
            _plain(name, domains): _number(path, name, value) for name, value in values.items()
        }
    return found


def _blend(path: Path, text: str, domains: Sequence[str]) -> Mapping[str, float]:
    parts = text.split()
    if not parts or len(parts) % 2:
        raise ConfigError(f"mixture file {path} is no blend of weights: it needs a weight before every prefix")
    found: dict[str, float] = {}
    for weight, prefix in zip(parts[::2], parts[1::2], strict=True):
        domain = _of_prefix(prefix, domains)
        found[domain] = found.get(domain, 0.0) + _number(path, prefix, weight)
    return found


def _plain(name: str, domains: Sequence[str]) -> str:
    return name if name in domains else name.removeprefix("train_")


def _of_prefix(prefix: str, domains: Sequence[str]) -> str:
    """The domain whose name the prefix ends in, the longest one; else the last part of the prefix."""
    plain = _DOCUMENT.sub("", prefix)
    ends = [domain for domain in domains if f"/{plain}".endswith(f"/{domain}") or prefix == domain]
    return max(ends, key=len, default=plain.rpartition("/")[2])


def _number(path: Path, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"mixture file {path} gives {name!r} the weight {text!r}, which is no number") from None
