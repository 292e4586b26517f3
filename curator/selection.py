"""Which rows, and how often: selections by weight as values, each a call of a macro of `curator.macros`.

    from curator.selection import TokenBudget

    lake.select(TokenBudget(tokens=10_000_000, max_repeats=4)).pl()
    lake.materialize(TokenBudget(tokens=10_000_000, max_repeats=4), "train/")

A selection depends on the rows' ids, weights and tokens and on the seed, never on the order of rows or files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from connectors import duck
from curator.errors import ConfigError, NotFoundError, translated
from curator.macros import LARGEST_INTEGER, MOST_BUCKETS, MOST_REPEATS, TOKENS

if TYPE_CHECKING:
    from curator.run import Run


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Base of the selections. `macro` is its name in SQL; the fields are the macro's arguments, in order."""

    macro: ClassVar[str] = ""

    @property
    def call(self) -> str:
        """The call of the macro, to stand after FROM."""
        arguments = (_literal(getattr(self, field.name)) for field in dataclasses.fields(self))
        return f"{self.macro}({', '.join(arguments)})"

    @property
    def values(self) -> dict[str, Any]:
        """Name and arguments, for a record."""
        return {"name": self.macro, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Curated(Selection):
    """Rows whose `sample_weight` is at least `threshold`; 1 is the mean of the lake.

    Raises:
        ConfigError: it is not a number.
    """

    macro: ClassVar[str] = "curated"
    threshold: float

    def __post_init__(self) -> None:
        _check_number(self, "threshold", -math.inf, "a number")


@dataclass(frozen=True, kw_only=True)
class TopK(Selection):
    """The `fraction` of every domain's rows that weighs most, rounded up; equal weights are taken by a fixed draw.

    Raises:
        ConfigError: it is not above 0 and at most 1.
    """

    macro: ClassVar[str] = "top_k"
    fraction: float

    def __post_init__(self) -> None:
        _check_number(self, "fraction", 0, "above 0 and at most 1", above=True, high=1)


@dataclass(frozen=True, kw_only=True)
class WeightedSample(Selection):
    """`n` rows without replacement, drawn by `sample_weight`; all rows with a weight above 0 if there are fewer.

    Raises:
        ConfigError: `n` is below 1, or the seed is not an integer of 64 bits.
    """

    macro: ClassVar[str] = "weighted_sample"
    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_integer(self, "n", 1)
        _check_integer(self, "seed", -LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class Repeats(Selection):
    """Every row `factor` · `sample_weight` times, at most `max_repeats`, rounded at random to an integer `repeats`.

    The expected value of `repeats` over seeds is exactly min(max_repeats, factor · sample_weight); rows with 0 are left
    out. With `factor` 1 there are as many rows as before, but for the cap and the rounding.

    Raises:
        ConfigError: `factor` is not above 0, `max_repeats` below 1, or the seed not an integer of 64 bits.
    """

    macro: ClassVar[str] = "repeats"
    factor: float = 1.0
    max_repeats: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _check_number(self, "factor", 0, "above 0", above=True)
        _check_integer(self, "max_repeats", 1, MOST_REPEATS)
        _check_integer(self, "seed", -LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class TokenBudget(Selection):
    """Rows in proportion to `sample_weight`, repeated at most `max_repeats` times, of at most `tokens` in all.

    `repeats` differs from λ · sample_weight by less than 1, where λ is what fills the budget; what is missing to it is
    less than the tokens of one row, unless the cap leaves nothing more to take.

    Raises:
        ConfigError: `tokens` or `max_repeats` is below 1, or the seed not an integer of 64 bits.
    """

    macro: ClassVar[str] = "token_budget"
    tokens: int
    max_repeats: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _check_integer(self, "tokens", 1)
        _check_integer(self, "max_repeats", 1, MOST_REPEATS)
        _check_integer(self, "seed", -LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class MixtureBudget(Selection):
    """`TokenBudget` in every domain of `shares` by itself, each with its share of the tokens; shares need not sum to 1.

    A domain whose rows, repeated `max_repeats` times, do not fill its share stays short of it: the others are not
    given more.

    Raises:
        ConfigError: shares that are no numbers of at least 0 or all 0, or as for `TokenBudget`.
    """

    macro: ClassVar[str] = "mixture"
    shares: Mapping[str, float]
    tokens: int
    max_repeats: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for domain, share in self.shares.items():
            if not _is_number(share) or share < 0:
                raise ConfigError(f"shares give domain {domain!r} {share!r}", hint="it must be a number of at least 0")
        if not any(self.shares.values()):
            raise ConfigError("shares give no domain more than 0")
        _check_integer(self, "tokens", 1)
        _check_integer(self, "max_repeats", 1, MOST_REPEATS)
        _check_integer(self, "seed", -LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class Quantiles(Selection):
    """Every row with a weight, and its `bucket`: "domain/q1" (lowest weights of its domain) to "domain/q`buckets`".

    The buckets of a domain have equally many rows, but for one; equal weights are spread by a fixed draw.

    Raises:
        ConfigError: `buckets` is below 1 or above 1000.
    """

    macro: ClassVar[str] = "quantiles"
    buckets: int

    def __post_init__(self) -> None:
        _check_integer(self, "buckets", 1, MOST_BUCKETS)


def bucket_domains(run: Run, buckets: int) -> list[dict[str, Any]]:
    """The quantile buckets of a published run as domains: domain ("web/q3"), domain_weight, num_samples, num_tokens.

    `domain_weight` is the bucket's share of the weighted tokens; the buckets of a domain sum to the domain's weight.

    Raises:
        NotFoundError: the run was not published.
        ConfigError: `buckets` is out of range.
    """
    lake = run.lake
    version = next((v.version for v in reversed(lake.history()) if v.run_id == run.run_id), None)
    if version is None:
        raise NotFoundError(
            f"run {run.run_id!r} was not published, so its rows are in no bucket", hint="`curator publish` it first"
        )
    query = (
        "SELECT bucket AS domain, sum(weighted) / sum(sum(weighted)) OVER () AS domain_weight, "
        "count(*) AS num_samples, CAST(sum(num_tokens) AS BIGINT) AS num_tokens FROM ("
        "SELECT bucket, t.num_tokens, CAST(sample_weight AS DOUBLE) * t.num_tokens AS weighted "
        f"FROM {Quantiles(buckets=buckets).call} AS q JOIN {TOKENS} AS t ON t.sample_id = q.sample_id) "
        "GROUP BY bucket ORDER BY bucket"
    )
    with translated():
        relation = lake.sql(query, version=version)
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"MAP {{{', '.join(f'{duck.quote_literal(key)}: {_literal(each)}' for key, each in value.items())}}}"
    return str(value) if isinstance(value, int) else f"{float(value)!r}::DOUBLE"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _check_number(
    selection: Selection, name: str, low: float, allowed: str, *, above: bool = False, high: float = math.inf
) -> None:
    value = getattr(selection, name)
    if not _is_number(value) or value < low or value > high or (above and value == low):
        raise ConfigError(f"{selection.macro}: {name}={value!r} is not allowed", hint=f"it must be {allowed}")


def _check_integer(selection: Selection, name: str, low: int, high: int = LARGEST_INTEGER) -> None:
    value = getattr(selection, name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"{selection.macro}: {name}={value!r} is not allowed", hint=f"it must be an integer from {low} to {high}"
        )
