"""Judge learned weights before they count: a line search from the prior through them, on rows kept out of learning.

A part of the target's rows is kept out of learning. Fresh models are trained on a few mixtures of the line
p ∝ prior^(1 − s)·learned^s and measured on those rows. The place s that does best is taken if its models beat those of
the prior by a 95 % interval that excludes 0; otherwise the weights stay at the prior, and the run says "no gain". The
question has one side, and the seeds and rows that choose the place decide on it as well: in simulations weights that
are worth nothing are taken in 3 to 8 % of the runs (tests/curator/test_line_search.py), by a place named beforehand in
2.5 %. What a run publishes is never worse than the prior, within its interval, for trainings of that length: what helps
a short one may harm a longer one.

Where a token budget is named, each training has only so many of the lake's rows that it repeats them as often as the
budget will repeat them all: the more a domain is repeated, the less its weight helps.

All places are tried with one seed, the two best and the prior with half of the seeds, then the better one and the prior
with the others: between places near each other one seed tells little. Finished trainings are kept, so a run that was
stopped goes on with them.

A refresh asks one more question, of two sides: whether models trained on what was taken are worse than models trained
on the weights that the lake has (`against_last`). Both are trained with all seeds in the same way on the lake as it is
now and measured on the same rows, so that no loss of an earlier run, on other rows, enters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from curator import intervals
from curator.config import LineSearchConfig
from curator.intervals import Estimate, Losses, mean_token_loss
from curator.progress import ProgressCallback
from curator.retrain import Trained, Training, training_config
from curator.tokens import TokenCache
from curator.trainings import Name, train_all
from curator.worker import WorkerJob, WorkerResult, share_caps
from optim import launch
from optim.data_weights import capped, on_path
from optim.diagnostics import Verdict

_PRIOR = 0.0


@dataclass(frozen=True, kw_only=True)
class LineSearch:
    """What was tried and taken.

    `place` is the s that was taken, 0 for the prior; `val_losses` the mean token loss on the rows kept out at each of
    `places`, by the first seed, and `differences` those to the prior in nats per token, each over the first
    `num_seeds` seeds, those of its place. `difference` is that of the best place, with the ends of its interval
    over all seeds; 0 where the prior itself was best.
    """

    places: list[float]
    val_losses: list[float]
    differences: list[float]
    num_seeds: list[int]
    place: float
    difference: float
    difference_low: float
    difference_high: float
    num_rows: int
    compute_tokens: float
    weights: list[float]

    @property
    def verdict(self) -> str:
        """In words, with the figures."""
        interval = f"{100 * intervals.LEVEL:.0f} % interval [{self.difference_low:+.3f}, {self.difference_high:+.3f}]"
        if self.place:
            far = "" if self.place == 1 else f", taken {self.place:g} times as far from the prior,"
            return (
                f"models trained on the learned weights{far} beat the prior's on {self.num_rows} "
                f"target rows kept out: {self.difference:+.3f} nats per token, {interval}"
            )
        if self.difference:
            return (
                f"models trained on the learned weights do not beat those of the prior on {self.num_rows} target rows "
                f"kept out ({self.difference:+.3f} nats per token, {interval}), so the prior is kept"
            )
        return (
            f"of the prior and the weights learned, the prior does best on {self.num_rows} target rows kept out, "
            "so it is kept"
        )

    def applied_to(self, result: WorkerResult) -> WorkerResult:
        """The run's result with the weights taken, and a verdict that says why."""
        learned = result.verdict
        verdict = (
            dataclasses.replace(learned, reason=f"{learned.reason}; {self.verdict}")
            if self.place
            else Verdict(status="no gain", reason=self.verdict)
        )
        return dataclasses.replace(
            result.at(self.weights, self.place),
            verdict=verdict,
            compute_tokens=result.compute_tokens + self.compute_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Against:
    """How much higher the loss of models trained on the weights taken is than that of the last version's weights.

    In nats per token on `num_rows` target rows kept out, with the ends of its interval over all seeds and rows.
    """

    difference: float
    difference_low: float
    difference_high: float
    num_rows: int
    compute_tokens: float


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Trains models on mixtures of a job's corpus and measures them on the target rows that it keeps out."""

    job: WorkerJob
    workdir: Path
    device: launch.Device
    tell: ProgressCallback

    @property
    def tokens_N(self) -> NDArray[np.int64]:
        """Of the rows kept out."""
        first, end = self._rows
        return np.asarray(TokenCache.open(self.job.target).num_targets[first:end])

    @property
    def seeds(self) -> range:
        """Of the trainings of a mixture."""
        return range(self.job.learn.seed, self.job.learn.seed + self.job.learn.line_search.seeds)

    def train(self, mixtures: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> dict[Name, Trained]:
        """One model for each mixture (D,), by what it is in words, and seed."""
        learn = self.job.learn
        steps, tokens_per_step = learn.search_size
        config = training_config(learn, steps=steps, tokens_per_step=tokens_per_step, seeds=learn.line_search.seeds)
        data_share = _data_share(learn.weights.budget_tokens, config.steps * config.tokens_per_step)
        trainings = {
            (name, seed): Training(
                corpus=self.job.corpus,
                test=self.job.target,
                test_rows=self._rows,
                weights=tuple(weights_D.tolist()),
                seed=seed,
                model=dataclasses.replace(self.job.model, seed=seed),
                config=config,
                folder=self.workdir / "trainings",
                data_share=data_share,
            )
            for seed in seeds
            for name, weights_D in mixtures.items()
        }
        return train_all(trainings, config, self.device, self.tell)

    @property
    def _rows(self) -> tuple[int, int]:
        num_rows = TokenCache.open(self.job.target).num_rows
        return self.job.learn.num_fit_rows(num_rows, len(self.job.prior)), num_rows


def against_last(
    job: WorkerJob,
    taken: Sequence[float],
    last: Sequence[float],
    workdir: Path,
    device: launch.Device,
    on_progress: ProgressCallback,
) -> Against:
    """Compare the weights that a run took with those of the last version, one for each domain.

    Trainings that a line search has made are not made again. A domain that the last version did not have weighs 0 in
    it: no row of it had a weight.

    Raises:
        LearningError: a training failed.
        InterruptedRunError: stopped by the user.
    """
    judge = _Judge(job=job, workdir=workdir, device=device, tell=on_progress)
    ours, theirs = "the weights taken", "the last version's weights"
    mixtures = {ours: torch.tensor(taken, dtype=torch.float64), theirs: torch.tensor(last, dtype=torch.float64)}
    trained, tokens_N = judge.train(mixtures, judge.seeds), judge.tokens_N
    loss_KN, last_KN = (np.array([trained[name, seed].losses for seed in judge.seeds]) for name in (ours, theirs))
    found = mean_token_loss(loss_KN - last_KN, tokens_N)
    return Against(
        difference=found.mean,
        difference_low=found.low,
        difference_high=found.high,
        num_rows=len(tokens_N),
        compute_tokens=float(sum(trained[theirs, seed].tokens for seed in judge.seeds)),
    )


def line_search(
    job: WorkerJob, learned: Sequence[float], workdir: Path, device: launch.Device, on_progress: ProgressCallback
) -> LineSearch:
    """Try places between the prior and `learned` (one weight per domain), and beyond.

    Raises:
        LearningError: a training failed.
        InterruptedRunError: stopped by the user.
    """
    judge = _Judge(job=job, workdir=workdir, device=device, tell=on_progress)
    prior_D, learned_D = torch.tensor(job.prior), torch.tensor(learned, dtype=torch.float64)
    cap_D = share_caps(job.learn, TokenCache.open(job.corpus))
    places = sorted({_PRIOR, *job.learn.line_search.places})
    mixtures = {place: capped(on_path(prior_D, learned_D, place), cap_D) for place in places}
    trained: dict[Name, Trained] = {}

    def losses(of: Sequence[float], seeds: Sequence[int]) -> dict[tuple[float, int], Losses]:
        made = judge.train({_label(place): mixtures[place] for place in of}, seeds)
        trained.update(made)
        return {(place, seed): np.array(made[_label(place), seed].losses) for place in of for seed in seeds}

    choice = choose(losses, places, judge.seeds, job.learn.line_search, judge.tokens_N)
    return LineSearch(
        places=places,
        val_losses=choice.val_losses,
        differences=choice.differences,
        num_seeds=choice.num_seeds,
        place=choice.place,
        difference=choice.difference.mean,
        difference_low=choice.difference.low,
        difference_high=choice.difference.high,
        num_rows=len(judge.tokens_N),
        compute_tokens=float(sum(result.tokens for result in trained.values())),
        weights=mixtures[choice.place].tolist(),
    )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The place that is taken, and what it rests on; see `LineSearch` for each."""

    place: float
    difference: Estimate
    val_losses: list[float]
    differences: list[float]
    num_seeds: list[int]


def choose(
    losses: Callable[[Sequence[float], Sequence[int]], Mapping[tuple[float, int], Losses]],
    places: Sequence[float],
    seeds: Sequence[int],
    search: LineSearchConfig,
    tokens_N: NDArray[np.int64],
) -> Choice:
    """Try all places with one seed, the best two and the prior with more, and ask whether the better one helps.

    Args:
        losses: the rows' summed losses (N,) by models trained at some places with some seeds.
        places: 0, the prior, and others.
        seeds: of all trainings.
        search: how many go on.
        tokens_N: of the rows.
    """
    loss_N: dict[tuple[float, int], Losses] = {}

    def against_prior(place: float) -> tuple[float, int]:
        """(Mean difference over the seeds that the place was tried with, their number)."""
        own = [float((loss_N[place, seed] - loss_N[_PRIOR, seed]).sum()) for seed in seeds if (place, seed) in loss_N]
        return sum(own) / len(own) / float(tokens_N.sum()), len(own)

    loss_N |= losses(places, seeds[:1])
    contenders = sorted((place for place in places if place), key=against_prior)[: search.num_contenders]
    loss_N |= losses([_PRIOR, *contenders], seeds[1 : search.num_choosing_seeds])
    best = min(contenders, key=against_prior)
    difference = Estimate(mean=0.0, low=0.0, high=0.0)
    if against_prior(best)[0] < 0:
        loss_N |= losses([_PRIOR, best], seeds[search.num_choosing_seeds :])
        difference_KN = np.array([loss_N[best, seed] - loss_N[_PRIOR, seed] for seed in seeds])
        difference = mean_token_loss(difference_KN, tokens_N)
    return Choice(
        place=best if difference.high < 0 else _PRIOR,
        difference=difference,
        val_losses=[float(loss_N[place, seeds[0]].sum() / tokens_N.sum()) for place in places],
        differences=[against_prior(place)[0] for place in places],
        num_seeds=[against_prior(place)[1] for place in places],
    )


def _label(place: float) -> str:
    return f"place {place:g} of the line search"


def _data_share(budget_tokens: int | None, tokens: int) -> float:
    """What a training of so many tokens may have of the rows, to repeat them as one of the budget repeats all."""
    return 1.0 if budget_tokens is None else min(1.0, tokens / budget_tokens)
