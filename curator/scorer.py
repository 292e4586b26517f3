"""The scorer: what the text of a row says of its gap, learned on measured rows, for rows that no run measured.

A ridge on features (`curator.features`): the dense ones, their squares and products, and the hashed ones, each relative
to its mean in the row's domain, as the gaps are; one fit for all domains. The rows weigh by the reciprocal of their
variance, τ² + (s² + s̄²)/2: the signal's, and half-way between the row's own noise and the usual one. A quarter of the
measured rows, chosen by a hash of their ids, is kept out, and says whether the scorer may be used at all and how far to
believe it. What it expects of a row becomes a weight by the rule of measured rows (`optim.row_gaps`).

Shapes: N or R rows, D domains, F dense and H hashed features, Q terms of the dense ones.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from connectors.store import Store, read_bytes
from curator.errors import StorageError, one_line, translated
from curator.features import Features, Frequencies, describe, halves, text_hashes
from optim.ridge import Ridge, rank_agreement, ridge
from optim.row_gaps import Floats, RowGaps, domain_means, reliability, spread, weight_ratios

SCHEMA_VERSION = 3
LEAST_ROWS = 100
"""Measured rows that a scorer is trained on at least."""
HELD_OUT_SHARE = 0.25
_HASHED_SCALES = (0.0, 0.3, 1.0)
"""How much the hashed features scatter in all, against the dense terms; which is best is found with the penalty."""
_FARTHEST = 4.0
"""Standard deviations at which a dense feature is cut, so that no odd row is judged by a square far outside."""

Indices = NDArray[np.int64]
Domains = NDArray[np.int32]
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What predictions were worth on `num_rows` measured rows kept out.

    `spearman` is their rank correlation with the measured gaps, with its 95 % interval. `explained` is the share of the
    gaps' reliable variance that they account for, `slope` how far a gap rises with its prediction, 1 if calibrated.
    """

    num_rows: int
    spearman: float
    spearman_low: float
    spearman_high: float
    explained: float
    slope: float

    @property
    def agreement(self) -> str:
        """For the verdict."""
        return (
            f"Spearman {self.spearman:.2f}, 95 % interval [{self.spearman_low:.2f}, {self.spearman_high:.2f}], on "
            f"{self.num_rows:,} measured rows kept out"
        )

    @property
    def refusal(self) -> str | None:
        """Why the predictions may not be used, if so."""
        if self.spearman_low > 0 and self.slope > 0:
            return None
        return f"a scorer's predictions do not agree with the measured gaps beyond chance ({self.agreement})"


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A fitted scorer; it needs no model and no torch.

    `shrink` is how far its predictions are believed, `width` the spread of the measured gaps, `sharpness` that of the
    run, `mean_ratio_D` what a row of each domain weighed in the mean before the domain's weights were scaled to 1.
    """

    frequencies: Frequencies
    center_F: Floats
    scale_F: Floats
    coefficient_Q: Floats
    coefficient_H: Floats
    domains: tuple[str, ...]
    offset_D: Floats
    mean_ratio_D: Floats
    shrink: float
    width: float
    sharpness: float

    def index(self, labels: pa.Array) -> Domains:
        """The places of domains in `domains`, −1 for one that the run did not know."""
        return places_in(self.domains, labels)

    def expected(self, texts: pa.Array, domain_N: Domains) -> Floats:
        """The expected gap of each row relative to its domain's mean, (N,), in nats per token.

        Args:
            texts: strings.
            domain_N: indexes `domains`.
        """
        found = describe(texts, halves(texts), self.frequencies, self.coefficient_H)
        term_NQ = np.ascontiguousarray(_terms(found.dense_NF, self.center_F, self.scale_F) * self.coefficient_Q)
        raw_N = term_NQ.sum(axis=1) + found.hashed  # a product of matrices would round by the rows beside it
        expected_N: Floats = self.shrink * (raw_N - self.offset_D[domain_N])
        return expected_N

    def row_weights(self, texts: pa.Array, domain_N: Domains) -> Floats:
        """In-domain weights v (N,), on the scale on which the run's rows have mean 1 over their domain's tokens."""
        expected_N = self.expected(texts, domain_N)
        weight_N: Floats = weight_ratios(expected_N, self.width, sharpness=self.sharpness) / self.mean_ratio_D[domain_N]
        return weight_N

    def write(self, path: Path) -> None:
        """Write it as npz without pickled objects."""
        counted = {"lake_2KM": self.frequencies.lake_2KM, "target_KM": self.frequencies.target_KM}
        values = vars(self) | counted | {"domains": np.array(self.domains, np.str_)}
        del values["frequencies"]
        np.savez_compressed(path, schema_version=SCHEMA_VERSION, **values)

    @staticmethod
    def read(store: Store, path: str) -> Scorer:
        """What `write` wrote.

        Raises:
            InputError: there is none.
            StorageError: it is damaged, or of another version of this package.
        """
        return read_npz(store, path, SCHEMA_VERSION, _from_arrays)


def read_npz(store: Store, path: str, schema_version: int, make: Callable[[dict[str, Any]], Made]) -> Made:
    """What `from_npz` makes of an object of a store.

    Raises:
        InputError: there is none.
        StorageError: it is damaged, or of another version.
    """
    with translated():
        data = read_bytes(store, path)
    return from_npz(data, store.describe(path), schema_version, make)


def from_npz(data: bytes, place: str, schema_version: int, make: Callable[[dict[str, Any]], Made]) -> Made:
    """What `make` makes of the arrays of an npz file at `place`, which also says its `schema_version`.

    Raises:
        StorageError: it is damaged, or of another version.
    """
    try:
        with np.load(io.BytesIO(data)) as found:
            values: dict[str, Any] = {name: found[name] for name in found.files}
        version = int(values.pop("schema_version"))
        if version == schema_version:
            return make(values)
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, OSError) as error:
        raise StorageError(
            f"{place} is damaged ({type(error).__name__}: {one_line(error)})", hint="learn again, or restore it"
        ) from error
    raise StorageError(
        f"{place} was written by another Lake Curator (schema_version {version}, this one reads {schema_version})",
        hint="use that one, or learn again",
    )


def places_in(domains: Sequence[str], labels: pa.Array) -> Domains:
    """The place of each label among domains, (N,), −1 for one that is not there."""
    found = pc.fill_null(pc.index_in(labels.cast(pa.string()), pa.array(domains, pa.string())), -1)
    index_N: Domains = found.to_numpy().astype(np.int32)
    return index_N


def _from_arrays(values: dict[str, Any]) -> Scorer:
    frequencies = Frequencies(lake_2KM=values.pop("lake_2KM"), target_KM=values.pop("target_KM"))
    values |= {name: float(values[name]) for name in ("shrink", "width", "sharpness")}
    return Scorer(frequencies=frequencies, **values | {"domains": tuple(map(str, values["domains"]))})


def held_out(texts: pa.Array) -> NDArray[np.bool_]:
    """Which measured rows judge the scorer and do not train it, (R,): equal ones all do, or none does."""
    return text_hashes(texts, "held out") < HELD_OUT_SHARE


def fit(
    features: Features,
    gaps: RowGaps,
    *,
    is_held_R: NDArray[np.bool_],
    domain_R: Domains,
    tokens_R: Indices,
    domains: Sequence[str],
    frequencies: Frequencies,
    sharpness: float,
) -> tuple[Scorer, Judgement]:
    """A scorer of measured rows, and what it is worth on those kept out; its `mean_ratio_D` is 1 yet.

    Args:
        features: of the rows, with the whole matrix of hashed ones.
        gaps: of the rows, `LEAST_ROWS` or more.
        is_held_R: which are kept out (`held_out`).
        domain_R: indexes `domains`.
        tokens_R: target tokens.
        domains: the D names.
        frequencies: with which the features were made.
        sharpness: for the weights.
    """
    train = np.flatnonzero(~is_held_R)
    center_F, scale_F = _center_and_scale(features.dense_NF[train])
    term_RQ = _terms(features.dense_NF, center_F, scale_F)
    scale_Q = _center_and_scale(term_RQ[train])[1]
    blocks = [
        _relative(block[train], domain_R[train], tokens_R[train], len(domains))
        for block in (term_RQ / scale_Q, features.hashed)
    ]
    coefficient_Q, coefficient_H = _fit_blocks(
        blocks, gaps.mean_relative_R[train], _precision(gaps.only(train), tokens_R[train])
    )
    coefficient_Q = coefficient_Q / scale_Q
    raw_R = term_RQ @ coefficient_Q + features.hashed @ coefficient_H
    offset_D = _means(raw_R[train, None], domain_R[train], tokens_R[train], len(domains))[:, 0]
    held = np.flatnonzero(is_held_R)
    judgement = _judge((raw_R - offset_D[domain_R])[held], gaps.only(held), tokens_R[held])
    scorer = Scorer(
        frequencies=frequencies,
        center_F=center_F,
        scale_F=scale_F,
        coefficient_Q=coefficient_Q,
        coefficient_H=coefficient_H,
        domains=tuple(domains),
        offset_D=offset_D,
        mean_ratio_D=np.ones(len(domains)),
        shrink=min(1.0, max(0.0, judgement.slope)),
        width=spread(gaps.mean_relative_R, tokens_R),
        sharpness=sharpness,
    )
    return scorer, judgement


def _fit_blocks(blocks: Sequence[Floats], value_R: Floats, weight_R: Floats) -> tuple[Floats, Floats]:
    """Coefficients of the dense terms and the hashed features."""
    term_RQ, hashed_RH = blocks
    ratio = np.sqrt((term_RQ**2).sum() / ((hashed_RH**2).sum() or 1.0))
    best: tuple[Ridge, float] | None = None
    for scale in _HASHED_SCALES:
        factor = scale * ratio
        x_RF = np.concatenate([term_RQ, factor * hashed_RH], axis=1) if scale else term_RQ
        found = ridge(x_RF, value_R, weight_R)
        if best is None or found.error < best[0].error:
            best = found, factor
    assert best is not None
    fitted, factor = best
    num_terms, num_hashed = term_RQ.shape[1], hashed_RH.shape[1]
    of_hashed = factor * fitted.coefficient_F[num_terms:] if factor else np.zeros(num_hashed)
    return fitted.coefficient_F[:num_terms], of_hashed


def _judge(expected_R: Floats, gaps: RowGaps, tokens_R: Indices) -> Judgement:
    """Compare predictions with the gaps of rows kept out."""
    measured_R = gaps.mean_relative_R
    agreement = rank_agreement(expected_R, measured_R)
    apart_R, gap_R = (x - np.average(x, weights=tokens_R) for x in (expected_R, measured_R))
    both, own, other = (float(tokens_R @ (a * b)) for a, b in ((apart_R, gap_R), (apart_R, apart_R), (gap_R, gap_R)))
    reliable = other * reliability(gaps, tokens_R)
    return Judgement(
        num_rows=len(measured_R),
        spearman=agreement.value,
        spearman_low=agreement.low,
        spearman_high=agreement.high,
        explained=min(1.0, max(0.0, both) * both / (own * reliable)) if own > 0 and reliable > 0 else 0.0,
        slope=both / own if own > 0 else 0.0,
    )


def _precision(gaps: RowGaps, tokens_R: Indices) -> Floats:
    """The reciprocal of each row's variance about what its text could say of it, (R,)."""
    noise_R = gaps.standard_error_R**2
    usual = float(np.average(noise_R, weights=tokens_R))
    signal = max(0.0, spread(gaps.mean_relative_R, tokens_R) ** 2 - usual)
    variance_R = signal + (noise_R + usual) / 2
    precision_R: Floats = 1 / np.where(variance_R > 0, variance_R, 1.0)
    return precision_R


def _terms(dense_NF: Floats, center_F: Floats, scale_F: Floats) -> Floats:
    """The standardised features, their squares and their products, (N, Q)."""
    x_NF = np.clip((dense_NF - center_F) / scale_F, -_FARTHEST, _FARTHEST)
    first, second = np.triu_indices(x_NF.shape[1])
    return np.concatenate([x_NF, x_NF[:, first] * x_NF[:, second]], axis=1)


def _center_and_scale(x_RF: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each feature; 1 for one that does not vary."""
    scale_F = x_RF.std(axis=0)
    return x_RF.mean(axis=0), np.where(scale_F > 1e-9, scale_F, 1.0)


def _relative(x_RF: Floats, domain_R: Domains, tokens_R: Indices, num_domains: int) -> Floats:
    """Features relative to the mean of the row's domain, over tokens."""
    return x_RF - _means(x_RF, domain_R, tokens_R, num_domains)[domain_R]


def _means(x_RF: Floats, domain_R: Domains, tokens_R: Indices, num_domains: int) -> Floats:
    """The token-weighted mean of each domain, (D, F); that of all rows for a domain without any."""
    mean_DF = np.stack(
        [np.append(domain_means(x_R, domain_R, tokens_R), np.zeros(num_domains))[:num_domains] for x_R in x_RF.T], 1
    )
    has_none_D = np.bincount(domain_R, minlength=num_domains) == 0
    mean_DF[has_none_D] = np.average(x_RF, axis=0, weights=tokens_R)
    return mean_DF
