"""What single rows are worth: their losses under w and u at the ends of branches, and in-domain weights out of those.

At the end of a branch w and u have come from the same place on the same batches, w along the target's gradient as well.
So g_i, the mean of ℓ_t(w) − ℓ_t(u) over a row's tokens, is low for a row whose loss the target's gradient lowers, the
per-row form of the gap that moves the domain weights. Damage often sits in a part of a row, which the mean of all hides
behind the rest, so g_i is that of the half that w explains worst. One end is noisy: several are averaged, and how much
they differ says how far their mean can be trusted. Shapes: R rows, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_RATIO = 8.0
"""A row weighs at most this many times as much as one whose gap is its domain's mean, and at least the reciprocal."""


@dataclass(frozen=True, kw_only=True)
class RowGaps:
    """The gaps of R rows at `num_snapshots` ends of branches, as sums, (R,) in nats per target token.

    `loss_R` is Σ_s ℓ_i(u)/T_i, `sum_R` is Σ_s g_i; `relative_R` and `square_R` are Σ_s x_i and Σ_s x_i² of the gap x_i
    relative to the mean of the row's domain in the same snapshot, over its target tokens: what a whole domain moves by
    is no news of a row.
    """

    num_snapshots: int
    loss_R: Floats
    sum_R: Floats
    relative_R: Floats
    square_R: Floats

    @staticmethod
    def none(num_rows: int) -> RowGaps:
        """Before the first snapshot."""
        return RowGaps(
            num_snapshots=0,
            loss_R=np.zeros(num_rows),
            sum_R=np.zeros(num_rows),
            relative_R=np.zeros(num_rows),
            square_R=np.zeros(num_rows),
        )

    def added(self, gap_R: Floats, loss_R: Floats, domain_R: NDArray[np.int32], tokens_R: NDArray[np.int64]) -> RowGaps:
        """With one more snapshot.

        Args:
            gap_R: g_i (`worst_means`).
            loss_R: ℓ_i(u)/T_i.
            domain_R: each row's domain, from 0.
            tokens_R: target tokens T_i.
        """
        relative_R = gap_R - domain_means(gap_R, domain_R, tokens_R)[domain_R]
        return RowGaps(
            num_snapshots=self.num_snapshots + 1,
            loss_R=self.loss_R + loss_R,
            sum_R=self.sum_R + gap_R,
            relative_R=self.relative_R + relative_R,
            square_R=self.square_R + relative_R**2,
        )

    def only(self, kept: NDArray[np.int64]) -> RowGaps:
        """Of the rows at these places."""
        return replace(
            self,
            loss_R=self.loss_R[kept],
            sum_R=self.sum_R[kept],
            relative_R=self.relative_R[kept],
            square_R=self.square_R[kept],
        )

    @property
    def mean_loss_R(self) -> Floats:
        """The mean loss of each row under u, in nats per token."""
        return self.loss_R / self.num_snapshots

    @property
    def mean_R(self) -> Floats:
        """The mean gap of each row."""
        return self.sum_R / self.num_snapshots

    @property
    def mean_relative_R(self) -> Floats:
        """The mean gap of each row less that of its domain."""
        return self.relative_R / self.num_snapshots

    @property
    def standard_error_R(self) -> Floats:
        """Of `mean_relative_R`, by how much the snapshots differ; needs at least two."""
        scatter_R = self.square_R - self.relative_R**2 / self.num_snapshots
        error_R: Floats = np.sqrt(np.maximum(scatter_R, 0) / (self.num_snapshots - 1) / self.num_snapshots)
        return error_R


def worst_means(gap_T: Floats, row_T: NDArray[np.int64], num_rows: int, share: float) -> Floats:
    """g_i, (R,) in nats per token: the mean of the largest gaps of each row, of ⌈share·T_i⌉ of its T_i tokens.

    The conditional value at risk of a token's gap at level 1 − share (Rockafellar and Uryasev 2000), the most that the
    gaps are worth under weights q of the tokens with q_t ≤ 1/⌈share·T_i⌉. Of all tokens it is the plain mean. Takes
    some fifty bytes a token.

    Args:
        gap_T: ℓ_t(w) − ℓ_t(u) of all rows' tokens.
        row_T: the row of each, from 0; every row has a token.
        num_rows: R.
        share: in (0, 1].
    """
    tokens_R = np.bincount(row_T, minlength=num_rows)
    counted_R = np.ceil(share * tokens_R)
    order_T = np.lexsort((-gap_T, row_T))
    place_T = np.arange(len(row_T)) - np.repeat(np.cumsum(tokens_R) - tokens_R, tokens_R)
    kept = order_T[place_T < np.repeat(counted_R, tokens_R)]
    mean_R: Floats = np.bincount(row_T[kept], weights=gap_T[kept], minlength=num_rows) / counted_R
    return mean_R


def domain_means(value_R: Floats, domain_R: NDArray[np.int32], tokens_R: NDArray[np.int64]) -> Floats:
    """The token-weighted mean of each domain, (D,); 0 for a domain without rows."""
    total_D = np.bincount(domain_R, weights=tokens_R * value_R)
    tokens_D = np.bincount(domain_R, weights=tokens_R)
    mean_D: Floats = total_D / np.maximum(tokens_D, 1)
    return mean_D


def reliability(gaps: RowGaps, tokens_R: NDArray[np.int64]) -> float:
    """The share of the rows' scatter about their domains' means that is not noise, in [0, 1].

    1 − (noise of a row's mean by its snapshots)/(scatter between the rows), token-weighted, and 0 where that is below:
    the factor by which James and Stein shrink many means to a common one.
    """
    between = spread(gaps.mean_relative_R, tokens_R) ** 2
    noise = np.average(gaps.standard_error_R**2, weights=tokens_R)
    return float(max(0.0, 1 - noise / between)) if between > 0 else 0.0


def in_domain_weights(
    expected_R: Floats, width: float, domain_R: NDArray[np.int32], tokens_R: NDArray[np.int64], *, sharpness: float
) -> tuple[Floats, Floats]:
    """v ∝ exp(−sharpness·z), (R,), with Σ v_i·T_i = Σ T_i in every domain, and its mean before that scaling, (D,).

    z is the expected relative gap in units of the spread of the measured ones over all rows: no domain is spread more
    than its rows differ. Of a measured row its mean relative gap times the `reliability` is expected, so that mere
    noise leaves v at 1.

    Args:
        expected_R: relative gaps as far as they can be trusted, nats per token.
        width: the spread.
        domain_R: each row's domain, from 0.
        tokens_R: target tokens T_i.
        sharpness: what a row of one spread's worth gains in log v; 0 leaves v at 1.
    """
    ratio_R = weight_ratios(expected_R, width, sharpness=sharpness)
    mean_D = domain_means(ratio_R, domain_R, tokens_R)
    return ratio_R / mean_D[domain_R], mean_D


def weight_ratios(expected_R: Floats, width: float, *, sharpness: float) -> Floats:
    """What each row weighs against one whose gap is its domain's mean, (R,), within `MAX_RATIO`.

    Arguments are those of `in_domain_weights`; a spread of 0 leaves all rows alike.
    """
    bound = np.log(MAX_RATIO)
    ratio_R: Floats = np.exp(np.clip(-sharpness * expected_R / (width or 1.0), -bound, bound))
    return ratio_R


def spread(relative_R: Floats, tokens_R: NDArray[np.int64]) -> float:
    """Root mean square of the relative gaps over all rows, token-weighted, nats per token."""
    return float(np.sqrt(np.average(relative_R**2, weights=tokens_R)))
