"""The steps of a run, few enough to draw: means over stretches of equal length, read a group of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from connectors.store import Store
from curator import trajectory
from curator.report.kept import read_kept

MOST_POINTS = 300
_BATCH_VALUES = 1 << 20
_LOSSES = ("val_loss", "aux_val_loss")
_LISTS = pa.list_(pa.struct({"key": pa.string(), "value": pa.float64()}))
"""What a map is made of."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """P points, each the mean over `stretch` steps; D domains; NaN where nothing was measured.

    `gap_D` is the mean over all steps in which a domain was drawn and the two copies differed, nats per token.
    """

    stretch: int
    step_P: Floats
    val_loss_P: Floats
    aux_val_loss_P: Floats
    weights_PD: Floats
    gap_D: Floats


def read_steps(store: Store, run_id: str, domains: Sequence[str], most: int = MOST_POINTS) -> Steps | None:
    """The steps of a run, at most `most` points of them; None where it took none or kept none.

    Raises:
        StorageError: the table is damaged, or cannot be read.
    """
    return read_kept(store, run_id, trajectory.TABLE, lambda file: _mean_steps(file, len(domains), most), "steps")


def _mean_steps(table: pq.ParquetFile, num_domains: int, most: int) -> Steps | None:
    num_steps = table.metadata.num_rows
    if not num_steps:
        return None
    stretch = -(-num_steps // most)
    num_points = -(-num_steps // stretch)
    widths = {"step": 1, **dict.fromkeys(_LOSSES, 1), "weights": num_domains}
    means = {name: _Means(num_points, width) for name, width in widths.items()}
    gaps = _Means(1, num_domains)
    done = 0
    batch_size = max(1, _BATCH_VALUES // max(1, num_domains))
    for batch in table.iter_batches(batch_size=batch_size, columns=["step", *_LOSSES, "weights", "gaps"]):
        values = _values(batch, num_domains)
        point = np.arange(done, done + batch.num_rows) // stretch
        for name, each in means.items():
            each.add(point, values[name])
        gap_TD = values["gaps"]
        gaps.add(np.zeros_like(point), np.where(gap_TD == 0, np.nan, gap_TD))
        done += batch.num_rows
    return Steps(
        stretch=stretch,
        step_P=means["step"].mean[:, 0],
        val_loss_P=means["val_loss"].mean[:, 0],
        aux_val_loss_P=means["aux_val_loss"].mean[:, 0],
        weights_PD=means["weights"].mean,
        gap_D=gaps.mean[0],
    )


class _Means:
    """Means by point of rows that come in batches, over the numbers that are finite."""

    def __init__(self, num_points: int, width: int) -> None:
        self._sum = np.zeros((num_points, width))
        self._count = np.zeros((num_points, width))

    def add(self, point_T: NDArray[np.int64], value_TW: Floats) -> None:
        known = np.isfinite(value_TW)
        np.add.at(self._sum, point_T, np.where(known, value_TW, 0.0))
        np.add.at(self._count, point_T, known)

    @property
    def mean(self) -> Floats:
        nothing = np.full_like(self._sum, np.nan)
        return np.divide(self._sum, self._count, out=nothing, where=self._count > 0)


def _values(batch: pa.RecordBatch, num_domains: int) -> Mapping[str, Floats]:
    """Columns of a batch of T steps as (T, 1) or (T, D) numbers, NaN for NULL."""
    plain = {name: _numbers(batch[name]).reshape(-1, 1) for name in ("step", *_LOSSES)}
    return plain | {name: _by_domain(batch[name], num_domains) for name in ("weights", "gaps")}


def _numbers(column: pa.Array) -> Floats:
    numbers: Floats = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _by_domain(column: pa.MapArray, num_domains: int) -> Floats:
    values_TD = np.full((len(column), num_domains), np.nan)
    known_T = column.is_valid().to_numpy(zero_copy_only=False)
    entries = column.cast(_LISTS).flatten()
    values_TD[known_T] = _numbers(pc.struct_field(entries, "value")).reshape(int(known_T.sum()), num_domains)
    return values_TD
