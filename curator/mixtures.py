"""What can be compared: named mixtures of a lake's domains.

| spec | weights |
|---|---|
| `uniform` | every domain alike |
| `natural` | in proportion to the domains' tokens |
| `latest`, a run id | what that run learned |
| `RUN,RUN,…` | one run for each seed of the comparison, whose models are trained on what it learned |
| `domain:NAME` | that domain alone |
| `oracle` | none of the lake: the rows of the target itself, as a bound |
| `PATH.json`, `.yaml`, `.csv`, `.txt`, `.blend` | those of the file, scaled to sum to 1 (`curator.mixture_files`) |

`NAME=SPEC` gives a mixture another name; a name has no "=", ":" or "/".
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from curator.errors import ConfigError, InputError, NotFoundError
from curator.mixture_files import SUFFIXES, read_mixtures
from curator.tokens import TokenCache
from optim.learners.fixed import proportional, uniform

if TYPE_CHECKING:
    from curator.lake import Lake

UNIFORM = "uniform"
NATURAL = "natural"
ORACLE = "oracle"
Spec = str | tuple[str, Mapping[str, float]]

_NAMED = re.compile(r"([^=:/]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a model is trained on, under a name; `run_id`, `learn_seconds` and `learn_tokens` where a run learned it.

    `weights` are those of the lake's domains, in their order, summing to 1; "natural": the domains' shares of the
    tokens, which only a token cache knows; "oracle": none, the target itself. Of several runs, one for each seed,
    `by_seed` holds the weights of each, `weights` their mean, and `run_id` their ids; seconds and tokens are means.
    """

    name: str
    weights: tuple[float, ...] | Literal["natural", "oracle"]
    run_id: str | None = None
    learn_seconds: float = 0.0
    learn_tokens: float = 0.0
    by_seed: tuple[tuple[float, ...], ...] = ()

    @property
    def is_oracle(self) -> bool:
        """Whether it is trained on the target instead of the lake."""
        return self.weights == ORACLE

    def weights_on(self, cache: TokenCache, seed: int | None = None) -> tuple[float, ...]:
        """One weight for each domain of the cache that it is trained on, by that seed where seeds differ."""
        if self.by_seed and seed is not None:
            return self.by_seed[seed]
        if not isinstance(self.weights, str):
            return self.weights
        return tuple(proportional(cache.domain_tokens()).tolist())


def mixtures(lake: Lake, domains: Sequence[str], specs: Sequence[Spec], *, each_domain: bool = False) -> list[Mixture]:
    """The mixtures of `domains` that `specs` name, `uniform` first, whether it is named or not.

    A spec is a string of the table above, or (name, {domain: weight}); `each_domain` adds every domain alone.

    Raises:
        ConfigError: an unknown spec, a name that occurs twice, or weights that are none.
        NotFoundError: no such run.
    """
    alone: list[Spec] = [(f"domain:{name}", {name: 1.0}) for name in domains] if each_domain else []
    reference = Mixture(name=UNIFORM, weights=_uniform(domains))
    given = [spec for spec in [*specs, *alone] if spec != UNIFORM]
    found = [reference, *(mixture for spec in given for mixture in _mixtures(lake, domains, spec))]
    names = [mixture.name for mixture in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two mixtures are named {twice!r}", hint="name one of them otherwise, as NAME=SPEC")
    return found


def _mixtures(lake: Lake, domains: Sequence[str], spec: Spec) -> list[Mixture]:
    """The mixtures of a spec: one, but for a file of several."""
    if not isinstance(spec, str):
        label, values = spec
        return [Mixture(name=label, weights=_weights(domains, values, f"mixture {label!r}"))]
    named = _NAMED.fullmatch(spec)
    name = named[1] if named else None
    what = named[2] if named else spec
    if what.startswith("domain:") or not what.endswith(SUFFIXES):
        return [_mixture(lake, domains, name, what)]
    path = Path(what)
    return [
        Mixture(name=name + label.removeprefix(path.stem) if name else label, weights=weights)
        for label, weights in weights_in(path, domains).items()
    ]


def weights_in(path: Path, domains: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The mixtures of a file by name, each in the order of `domains` and summing to 1.

    Raises:
        ConfigError: it cannot be read, names other domains, or gives weights that are none.
    """
    return {label: _weights(domains, values, str(path)) for label, values in read_mixtures(path, domains).items()}


def _mixture(lake: Lake, domains: Sequence[str], name: str | None, what: str) -> Mixture:
    if what == UNIFORM:
        return Mixture(name=name or what, weights=_uniform(domains))
    if what == NATURAL:
        return Mixture(name=name or what, weights="natural")
    if what == ORACLE:
        return Mixture(name=name or what, weights="oracle")
    if what.startswith("domain:"):
        alone = {what.removeprefix("domain:"): 1.0}
        return Mixture(name=name or what, weights=_weights(domains, alone, f"mixture {what!r}"))
    runs = [_of_run(lake, domains, name, run_id) for run_id in what.split(",")]
    ids = [run.run_id for run in runs]
    twice = next((run_id for run_id in ids if ids.count(run_id) > 1), None)
    if twice:
        raise ConfigError(
            f"mixture {what!r} names run {twice} twice",
            hint="each seed needs a run of its own, or the interval would not hold for the learning",
        )
    return runs[0] if len(runs) == 1 else _of_seeds(runs)


def _of_seeds(runs: Sequence[Mixture]) -> Mixture:
    """One mixture out of those that the seeds of a procedure found."""
    by_seed = tuple(run.weights for run in runs if not isinstance(run.weights, str))
    return Mixture(
        name=runs[0].name,
        weights=tuple(np.mean(by_seed, axis=0).tolist()),
        run_id=",".join(run.run_id or "" for run in runs),
        learn_seconds=float(np.mean([run.learn_seconds for run in runs])),
        learn_tokens=float(np.mean([run.learn_tokens for run in runs])),
        by_seed=by_seed,
    )


def _uniform(domains: Sequence[str]) -> tuple[float, ...]:
    return tuple(uniform(len(domains)).tolist())


def _of_run(lake: Lake, domains: Sequence[str], name: str | None, run_id: str) -> Mixture:
    try:
        run = lake.run(run_id)
    except NotFoundError as error:
        raise NotFoundError(
            f"mixture {run_id!r} is neither uniform, natural, oracle, domain:NAME, a file of mixtures "
            f"({', '.join(SUFFIXES)}) nor a run: {error}"
        ) from error
    learned = {row["domain"]: float(row["domain_weight"]) for row in run.record["domains"]}
    other = sorted(set(domains) ^ learned.keys())
    if other:
        raise InputError(
            f"run {run.run_id} was learned on other domains than {lake.url} has now ({other[0]!r} is on one side only)",
            hint="learn again",
        )
    return Mixture(
        name=name or run.run_id,
        weights=_weights(domains, learned, f"run {run.run_id}"),
        run_id=run.run_id,
        learn_seconds=float(run.record["seconds"]),
        learn_tokens=float(run.record.get("compute_tokens") or 0.0),
    )


def check_domains(domains: Sequence[str], named: Iterable[str], source: str) -> None:
    """Refuse a mixture of `source` that names a domain which is none of `domains`."""
    for domain in named:
        if domain not in domains:
            near = difflib.get_close_matches(str(domain), domains, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"domains are {', '.join(map(repr, domains[:10]))}"
            raise ConfigError(f"{source} names domain {domain!r}, which the lake does not have", hint=hint)


def _weights(domains: Sequence[str], values: Mapping[str, Any], source: str) -> tuple[float, ...]:
    """The values in the order of `domains`, scaled to sum to 1; a domain without one gets 0."""
    check_domains(domains, values, source)
    for domain, value in values.items():
        if not _is_weight(value):
            raise ConfigError(
                f"{source} gives domain {domain!r} the weight {value!r}", hint="it must be a number of at least 0"
            )
    weights_D = np.array([float(values.get(domain, 0.0)) for domain in domains])
    if not weights_D.any():
        raise ConfigError(f"{source} gives no domain a weight above 0")
    weights_D /= weights_D.max()  # first, since the sum of large ones is infinite
    return tuple((weights_D / weights_D.sum()).tolist())


def _is_weight(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value) and float(value) >= 0
    except OverflowError:  # an integer beyond any float
        return False
