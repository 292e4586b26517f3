"""What can be compared: named mixtures of a lake's domains.

| spec | weights |
|---|---|
| `uniform` | every domain alike |
| `natural` | in proportion to the domains' tokens |
| `latest`, a run id | what that run learned |
| `domain:NAME` | that domain alone |
| `oracle` | none of the lake: the rows of the target itself, as a bound |
| `PATH.json` | an object {domain: weight}, scaled to sum to 1 |

`NAME=SPEC` gives a mixture another name.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curator.errors import ConfigError, InputError
from curator.tokens import TokenCache
from optim.learners.fixed import proportional, uniform

if TYPE_CHECKING:
    from curator.lake import Lake

UNIFORM = "uniform"
ORACLE = "oracle"


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weights (one per domain, summing to 1) under a name; `run_id` and `learn_seconds` where a run learned them."""

    name: str
    weights: tuple[float, ...]
    run_id: str | None = None
    learn_seconds: float = 0.0

    @property
    def is_oracle(self) -> bool:
        """Whether it is trained on the target instead of the lake."""
        return not self.weights


def mixtures(lake: Lake, corpus: TokenCache, specs: Sequence[str | tuple[str, Mapping[str, float]]]) -> list[Mixture]:
    """The mixtures that `specs` name, `uniform` first, whether it is named or not.

    A spec is a string of the table above, or (name, {domain: weight}).

    Raises:
        ConfigError: an unknown spec, a name that occurs twice, or weights that are none.
        NotFoundError: no such run.
    """
    found = [_mixture(lake, corpus, spec) for spec in specs]
    if all(mixture.name != UNIFORM for mixture in found):
        found.insert(0, _mixture(lake, corpus, UNIFORM))
    names = [mixture.name for mixture in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two mixtures are named {twice!r}; name one of them otherwise, as NAME=SPEC")
    return sorted(found, key=lambda mixture: mixture.name != UNIFORM)


def _mixture(lake: Lake, corpus: TokenCache, spec: str | tuple[str, Mapping[str, float]]) -> Mixture:
    if not isinstance(spec, str):
        name, values = spec
        return Mixture(name=name, weights=_weights(corpus, values, f"mixture {name!r}"))
    name, _, rest = spec.rpartition("=") if not Path(spec).exists() else ("", "", spec)
    if rest == UNIFORM:
        return Mixture(name=name or rest, weights=tuple(uniform(len(corpus.domains)).tolist()))
    if rest == "natural":
        return Mixture(name=name or rest, weights=tuple(proportional(corpus.domain_tokens()).tolist()))
    if rest == ORACLE:
        return Mixture(name=name or rest, weights=())
    if rest.startswith("domain:"):
        alone = {rest.removeprefix("domain:"): 1.0}
        return Mixture(name=name or rest, weights=_weights(corpus, alone, f"mixture {rest!r}"))
    if rest.endswith(".json"):
        return Mixture(name=name or Path(rest).stem, weights=_weights(corpus, _read(Path(rest)), rest))
    return _of_run(lake, corpus, name, rest)


def _of_run(lake: Lake, corpus: TokenCache, name: str, run_id: str) -> Mixture:
    from curator.errors import NotFoundError

    try:
        run = lake.run(run_id)
    except NotFoundError as error:
        raise NotFoundError(
            f"mixture {run_id!r} is neither uniform, natural, oracle, domain:NAME, a .json file nor a run; {error}"
        ) from error
    learned = {row["domain"]: float(row["domain_weight"]) for row in run.record["domains"]}
    missing = sorted(set(corpus.domains) ^ learned.keys())
    if missing:
        raise InputError(
            f"run {run.run_id} was learned on other domains than {lake.url} has now ({missing[0]!r} is on one side "
            "only); learn again"
        )
    return Mixture(
        name=name or run.run_id,
        weights=_weights(corpus, learned, f"run {run.run_id}"),
        run_id=run.run_id,
        learn_seconds=float(run.record["seconds"]),
    )


def _weights(corpus: TokenCache, values: Mapping[str, Any], source: str) -> tuple[float, ...]:
    """The values in the order of the cache's domains, scaled to sum to 1; a domain without one gets 0."""
    for domain, value in values.items():
        if domain not in corpus.domains:
            near = difflib.get_close_matches(domain, corpus.domains, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"domains are {', '.join(map(repr, corpus.domains[:10]))}"
            raise ConfigError(f"{source} names domain {domain!r}, which the lake does not have; {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ConfigError(
                f"{source} gives domain {domain!r} the weight {value!r}; it must be a number of at least 0"
            )
    weights = np.array([float(values.get(domain, 0.0)) for domain in corpus.domains])
    if weights.sum() <= 0:
        raise ConfigError(f"{source} gives no domain a weight above 0")
    return tuple((weights / weights.sum()).tolist())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"mixture file {path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"mixture file {path} holds a {type(values).__name__}; it must be an object {{domain: weight}}"
        )
    return values
