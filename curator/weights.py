"""The artifact of a run: domain weights and row weights in one table, keyed by sample id, with checked identities.

With p_d the weight of domain d (its share of the training tokens), v_i the in-domain weight of row i (mean 1 over its
domain's tokens; all 1 where only domains were weighed) and T_i its target tokens,

    sample_weight_i = c · p_d · v_i / Σ_{j∈d} v_j·T_j,      c such that the mean over all rows is 1,

so that the weighted tokens Σ_{i∈d} sample_weight_i·T_i of a domain are in the proportion p_d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curator.errors import CuratorError

WEIGHTS = "weights.parquet"
"""In a run's folder: the row weights (`SCHEMA`)."""
MEAN_TOLERANCE = 1e-5
"""Allowed |mean(sample_weight) − 1|; float32 rounding of the stored column is about 1e-7."""
SHARE_TOLERANCE = 1e-5
"""Allowed difference between a domain's share of weighted tokens and its weight."""

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("domain_weight", pa.float32(), nullable=False),
        pa.field("sample_weight", pa.float32(), nullable=False),
    ]
)


class WeightIdentityError(CuratorError):
    """Weights do not add up: the mean row weight is not 1, or a domain's token share is not its weight."""

    code = "weight_identity"


@dataclass(frozen=True, kw_only=True)
class DomainWeight:
    """One domain of a run.

    `domain_weight` and `natural_share` are shares of tokens and sum to 1 over the domains; `ratio` is their quotient,
    above 1 for a domain that should be seen more often than it occurs. `ci_low` … `ci_high` is the interval of the
    weight that the run's own noise leaves (`optim.diagnostics.weight_intervals`), of each domain by itself: the ends
    of several do not hold together, and do not sum to 1. `tokens_seen` are the target tokens that the run drew. None
    where the weights were not learned.
    """

    domain: str
    domain_weight: float
    natural_share: float
    ratio: float
    num_samples: int
    num_tokens: int
    ci_low: float | None = None
    ci_high: float | None = None
    tokens_seen: int | None = None

    def measured(self, low: float | None, high: float | None, tokens_seen: float | None) -> DomainWeight:
        """With what a run says of it. The weight is in its interval, which rounding of log-odds may miss by a hair."""
        return replace(
            self,
            ci_low=None if low is None else max(0.0, min(low, self.domain_weight)),
            ci_high=None if high is None else min(1.0, max(high, self.domain_weight)),
            tokens_seen=None if tokens_seen is None else round(tokens_seen),
        )


@dataclass(frozen=True, kw_only=True)
class WeightTable:
    """Row weights (`SCHEMA`, one row per sample) and the domain table they belong to."""

    samples: pa.Table
    domains: tuple[DomainWeight, ...]

    def check(self) -> None:
        """Check the identities that tie row weights to domain weights.

        Raises:
            WeightIdentityError: naming the identity that does not hold and by how much.
        """
        weight = self.samples["sample_weight"].to_numpy().astype(np.float64)
        if not np.isfinite(weight).all() or (weight < 0).any():
            raise WeightIdentityError("a sample_weight is negative or not a finite number")
        total = sum(d.domain_weight for d in self.domains)
        if abs(total - 1) > SHARE_TOLERANCE:
            raise WeightIdentityError(f"domain weights sum to {total:.6f}, not to 1")
        if abs(weight.mean() - 1) > MEAN_TOLERANCE:
            raise WeightIdentityError(f"the mean sample_weight is {weight.mean():.6f}, not 1")
        shares = _weighted_token_shares(self.samples, weight)
        for row in self.domains:
            found = shares.get(row.domain, 0.0)
            if abs(found - row.domain_weight) > SHARE_TOLERANCE:
                raise WeightIdentityError(
                    f"domain {row.domain!r} holds {found:.6f} of the weighted tokens, "
                    f"but its domain_weight is {row.domain_weight:.6f}"
                )


def weight_table(
    sample_id: pa.Array,
    domain: NDArray[np.int32],
    num_tokens: NDArray[np.int64],
    names: Sequence[str],
    weights: NDArray[np.float64],
    row_weights: NDArray[np.float64] | None = None,
) -> WeightTable:
    """The row weights out of domain weights and in-domain weights; its identities are checked.

    Args:
        sample_id: (N,) ids.
        domain: (N,) index of each row's domain in `names`.
        num_tokens: (N,) target tokens T_i of each row, at least 1.
        names: the D domains.
        weights: (D,) domain weights p, summing to 1.
        row_weights: (N,) in-domain weights v of any scale, positive; None: all rows of a domain weigh the same.
    """
    tokens = np.bincount(domain, weights=num_tokens, minlength=len(names)).astype(np.float64)
    within = np.ones(len(domain)) if row_weights is None else row_weights
    unscaled = within * (weights / np.bincount(domain, weights=within * num_tokens, minlength=len(names)))[domain]
    sample_weight = unscaled / unscaled.mean()
    label = pa.DictionaryArray.from_arrays(pa.array(domain), pa.array(list(names))).cast(pa.string())
    columns = [
        sample_id,
        label,
        pa.array(num_tokens),
        pa.array(weights[domain].astype(np.float32)),
        pa.array(sample_weight.astype(np.float32)),
    ]
    table = WeightTable(
        samples=pa.Table.from_arrays(columns, schema=SCHEMA),
        domains=_domain_rows(domain, tokens, names, weights),
    )
    table.check()
    return table


def _domain_rows(
    domain: NDArray[np.int32], tokens: NDArray[np.float64], names: Sequence[str], weights: NDArray[np.float64]
) -> tuple[DomainWeight, ...]:
    counts = np.bincount(domain, minlength=len(names))
    natural = tokens / tokens.sum()
    return tuple(
        DomainWeight(
            domain=name,
            domain_weight=float(weights[d]),
            natural_share=float(natural[d]),
            ratio=float(weights[d] / natural[d]),
            num_samples=int(counts[d]),
            num_tokens=int(tokens[d]),
        )
        for d, name in enumerate(names)
    )


def _weighted_token_shares(samples: pa.Table, weight: NDArray[np.float64]) -> dict[str, float]:
    tokens = weight * samples["num_tokens"].to_numpy()
    grouped = (
        pa.table({"domain": samples["domain"], "tokens": pc.divide(pa.array(tokens), pa.scalar(tokens.sum()))})
        .group_by("domain")
        .aggregate([("tokens", "sum")])
    )
    return {row["domain"]: row["tokens_sum"] for row in grouped.to_pylist()}
