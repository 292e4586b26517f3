"""What the workers do for weights of rows: take the losses of rows under w and u at the ends of the last branches."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch.distributed as dist

from curator.config import LearnConfig
from curator.files import write_atomically
from curator.row_gaps import MeasuredRows
from curator.sampler import RowSet, share_of_rows
from curator.tokens import TokenCache
from optim.backend import Backend, Copy
from optim.learners.learner import FORWARD_SHARE
from optim.row_gaps import Floats, RowGaps
from optim.state import SolverState

PROGRESS = "rows.done"
"""In a run folder: how many windows of rows have been measured under a copy, and how many will be."""


class RowProbe:
    """Called after every step; at the end of each of the last branches, before w starts again, it measures the rows.

    Every rank adds up the same sums. They go into checkpoints, so that a resumed run measures what is left, and at the
    end into the run folder. A request to stop waits for the end of a measurement.

    Collective: every method but `compute_tokens`, with equal arguments.
    """

    def __init__(self, corpus: TokenCache, learn: LearnConfig, backend: Backend, run_dir: Path) -> None:
        share = min(1.0, learn.rows.max_rows / corpus.num_rows)
        self._places = share_of_rows(corpus, share, learn.seed, "probe")
        self._rows = corpus.only(self._places)
        self._windows = RowSet(self._rows, learn.sequence_length)
        self._steps = learn.probe_steps
        self._backend = backend
        self._run_dir = run_dir
        self._gaps = RowGaps.none(self._rows.num_rows)

    def __call__(self, state: SolverState) -> None:
        """Measure the rows if a branch ends here."""
        if state.step in self._steps:
            loss_w_R, loss_u_R = (self._losses(copy) / self._rows.num_targets for copy in (Copy.MODEL, Copy.AUX))
            self._gaps = self._gaps.added(loss_w_R - loss_u_R, loss_u_R, self._rows.domain, self._rows.num_targets)

    @property
    def compute_tokens(self) -> float:
        """What the measurements took, in target tokens of a forward-backward pass."""
        return 2 * FORWARD_SHARE * self._gaps.num_snapshots * float(self._rows.num_targets.sum())

    def save(self, folder: Path) -> None:
        """Write the sums so far into a checkpoint."""
        if dist.get_rank() == 0:
            MeasuredRows(places=self._places, gaps=self._gaps).write(folder)

    def load(self, folder: Path) -> None:
        """Go on from the sums of a checkpoint."""
        self._gaps = MeasuredRows.read(folder).gaps

    def _losses(self, copy: Copy) -> Floats:
        """The summed loss of every row, (R,) in nats."""
        losses = []
        for batch in self._windows.batches():
            losses.append(self._backend.losses(copy, batch).numpy())
            self._note(copy, sum(map(len, losses)))
        return self._windows.by_row(np.concatenate(losses))

    def _note(self, copy: Copy, done: int) -> None:
        """Tell the parent how far the measurements are, in windows."""
        if dist.get_rank():
            return
        per_pass = self._windows.num_windows
        passes = 2 * self._gaps.num_snapshots + (copy is Copy.AUX)
        with suppress(OSError):  # a full disk ends a run where it matters, not here
            write_atomically(self._run_dir / PROGRESS, f"{passes * per_pass + done} {2 * len(self._steps) * per_pass}")
