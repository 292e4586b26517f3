"""What workers do for weights of rows: train pairs of copies (`optim.pairs`), take the losses of rows under them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import Tensor

from curator import copies
from curator.config import LearnConfig
from curator.files import write_atomically
from curator.row_gaps import MeasuredRows
from curator.sampler import RowSet, Sampler, share_of_rows
from curator.tokens import TokenCache
from optim.backend import Backend, Copy
from optim.learners.learner import FORWARD_SHARE, StepResult
from optim.learners.scalebio import ScaleBiO
from optim.pairs import PairSettings, train_pair
from optim.row_gaps import Floats, RowGaps, worst_means
from optim.schedules import LearningRate
from optim.state import SolverState

PROGRESS = "rows.done"
"""In a run folder: how many forward passes of single windows the pairs have taken, and how many they will."""

_STEP_PASSES = 3  # forward and backward


class RowPairs:
    """Trains one pair after the other, and at the end of each measures the rows under both of its copies.

    The steps of the pairs are counted on from those of the solver, and draw what comes after them. Every rank adds up
    the same sums. They go into checkpoints, so that a resumed run takes what is left, and at the end into the run
    folder. A request to stop waits for the end of a measurement.

    Collective: every method but `index`, with equal arguments.
    """

    def __init__(self, corpus: TokenCache, sampler: Sampler, learn: LearnConfig, run_dir: Path) -> None:
        share = min(1.0, learn.rows.max_rows / corpus.num_rows)
        self._places = share_of_rows(corpus, share, learn.seed, "probe")
        self._rows = corpus.only(self._places)
        self._windows = RowSet(self._rows, learn.sequence_length)
        self._sampler = sampler
        self._learn = learn
        self._starts = learn.pair_starts(len(corpus.domains))
        self._run_dir = run_dir
        self._gaps = RowGaps.none(self._rows.num_rows)
        self._compute_tokens = 0.0
        domains = min(len(corpus.domains), learn.domains_per_step)
        drawn = 2 * domains * learn.num_rows_per_domain(len(corpus.domains)) + learn.target_rows
        self._step_windows = _STEP_PASSES * drawn

    def index(self, step: int) -> int:
        """The number of the pair, from 0, that takes the step after `step` steps; at the end, of the last one."""
        return min((step - self._starts[0]) // self._learn.num_pair_steps, len(self._starts) - 1)

    def train(
        self,
        backend: Backend,
        weights_D: Tensor,
        state: SolverState,
        *,
        num_layers: int,
        after_step: Callable[[SolverState], None],
    ) -> SolverState:
        """Take what is left of the steps of the pair that `state` is in, then measure the rows; the state after that.

        Args:
            backend: the pair; as it is made for the first step, of a checkpoint's else.
            weights_D: p of the mixture, (D,) float64.
            state: after the steps so far.
            num_layers: of the model.
            after_step: called after every step, and only then, with the state that the next one starts from.
        """
        first = self._starts[self.index(state.step)]
        settings = _settings(self._learn, num_layers)

        def taken(steps: int, result: StepResult) -> None:
            nonlocal state
            state = replace(state, step=first + steps)
            self._compute_tokens += result.compute_tokens
            self._note(state.step, 0)
            if steps == settings.num_steps:
                self._measure(backend, state.step)
            after_step(state)

        start = state.step - first
        train_pair(backend, self._sampler, weights_D, settings, first_draw=first, start=start, after_step=taken)
        return state

    @property
    def compute_tokens(self) -> float:
        """What the pairs took so far, in target tokens of a forward-backward pass."""
        return self._compute_tokens

    def save(self, folder: Path) -> None:
        """Write the sums so far into a checkpoint."""
        if dist.get_rank() == 0:
            MeasuredRows(places=self._places, gaps=self._gaps, compute_tokens=self._compute_tokens).write(folder)

    def load(self, folder: Path) -> None:
        """Go on from the sums of a checkpoint."""
        found = MeasuredRows.read(folder)
        self._gaps, self._compute_tokens = found.gaps, found.compute_tokens

    def _measure(self, backend: Backend, step: int) -> None:
        """Take the losses of the rows under the copies, and leave these for rows that come later."""
        learn = self._learn
        if learn.rows.keep_copies and copies.are_small(backend.info.num_parameters, len(self._starts)):
            pair, is_writer = self._gaps.num_snapshots, dist.get_rank() == 0
            copies.write_pair(backend, self._run_dir, pair, is_writer=is_writer)
        losses: list[Floats] = []
        gaps: list[Floats] = []
        for batch in self._windows.batches():
            loss_w_BS, loss_u_BS = (backend.token_losses(copy, batch).numpy() for copy in Copy)
            losses.append(loss_u_BS.sum(axis=1))
            gaps.append((loss_w_BS - loss_u_BS)[batch.mask_BS.numpy() > 0])
            self._note(step, 2 * sum(map(len, losses)))
        tokens_R = self._rows.num_targets
        row_T = self._windows.row_of_tokens
        gap_R = worst_means(np.concatenate(gaps), row_T, self._rows.num_rows, learn.rows.worst_share)
        loss_u_R = self._windows.by_row(np.concatenate(losses)) / tokens_R
        self._gaps = self._gaps.added(gap_R, loss_u_R, self._rows.domain, tokens_R)
        self._compute_tokens += 2 * FORWARD_SHARE * float(tokens_R.sum())

    def _note(self, step: int, measured: int) -> None:
        """Tell the parent how far the pairs are: after `step` steps, and this many windows of a measurement."""
        if dist.get_rank():
            return
        per_pair, num_pairs = 2 * self._windows.num_windows, len(self._starts)
        done = (step - self._starts[0]) * self._step_windows + self._gaps.num_snapshots * per_pair + measured
        total = num_pairs * (self._learn.num_pair_steps * self._step_windows + per_pair)
        with suppress(OSError):  # a full disk ends a run where it matters, not here
            write_atomically(self._run_dir / PROGRESS, f"{done} {total}")


def _settings(learn: LearnConfig, num_layers: int) -> PairSettings:
    """The learning rate falls to little, so that copies differ by what they learned and not by their last steps."""
    return PairSettings(
        num_steps=learn.num_pair_steps,
        learner=ScaleBiO(penalty=learn.rows.penalty),
        blocks=learn.block_schedule(num_layers),
        learning_rate=LearningRate(
            peak=learn.peak_learning_rate,
            num_steps=learn.num_pair_steps,
            warmup_steps=min(20, learn.num_pair_steps // 10),
            final_fraction=0.05,
        ),
    )
