"""Judge learned weights before they count: a line search from the prior through them, on rows kept out of learning.

A part of the target's rows is kept out of learning. Fresh models are trained on a few mixtures of the line
p ∝ prior^(1 − s)·learned^s and measured on those rows. The place s that does best is taken if its models beat those of
the prior by a 90 % interval that excludes 0; otherwise the weights stay at the prior, and the run says "no gain". The
question has one side, so weights that are worth nothing are taken in 5 % of the runs. What a run publishes is never
worse than the prior, within its interval, for trainings of that length: what helps a short one may harm a longer one.

Where a token budget is named, each training has only so many of the lake's rows that it repeats them as often as the
budget will repeat them all: the more a domain is repeated, the less its weight helps.

All places are tried with one seed, then the best one and the prior with the others. Finished trainings are kept, so a
run that was stopped goes on with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from curator.intervals import Estimate, mean_token_loss
from curator.progress import ProgressCallback
from curator.retrain import Trained, Training, training_config
from curator.tokens import TokenCache
from curator.trainings import Name, train_all
from curator.worker import WorkerJob, WorkerResult, share_caps
from optim import launch
from optim.data_weights import capped, on_path
from optim.diagnostics import Summary, Verdict

LEVEL = 0.9
"""Coverage of the interval that decides: its upper end alone counts."""


@dataclass(frozen=True, kw_only=True)
class LineSearch:
    """What was tried and taken.

    `place` is the s that was taken, 0 for the prior; `val_losses` the mean token loss on the rows kept out at each of
    `places`, by the first seed. `difference` is that of the best place to the prior, nats per token, with the ends of
    its 90 % interval over all seeds; 0 where the prior itself was best.
    """

    places: list[float]
    val_losses: list[float]
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
        interval = f"{100 * LEVEL:.0f} % interval [{self.difference_low:+.3f}, {self.difference_high:+.3f}]"
        if self.place:
            return (
                f"models trained on the weights at {self.place:g} of the way beat the prior's on {self.num_rows} "
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
            result,
            weights=self.weights,
            summary=self._moved_intervals(result),
            verdict=verdict,
            compute_tokens=result.compute_tokens + self.compute_tokens,
        )

    def _moved_intervals(self, result: WorkerResult) -> Summary | None:
        """The summary with the weights' intervals taken along: the log-odds' way from the weight times the place."""
        if result.summary is None:
            return None
        learned_D, taken_D = _log_odds(result.weights), _log_odds(self.weights)

        def moved(ends: list[float]) -> list[float]:
            found: list[float] = expit(taken_D + self.place * (_log_odds(ends) - learned_D)).tolist()
            return found

        summary = result.summary
        return dataclasses.replace(summary, ci_low=moved(summary.ci_low), ci_high=moved(summary.ci_high))


def _log_odds(share_D: Sequence[float]) -> NDArray[np.float64]:
    """log(p/(1 − p)), finite for shares of 0 and 1, too."""
    found_D: NDArray[np.float64] = logit(np.clip(share_D, np.finfo(float).tiny, 1 - np.finfo(float).eps))
    return found_D


def line_search(
    job: WorkerJob, learned: Sequence[float], workdir: Path, device: launch.Device, on_progress: ProgressCallback
) -> LineSearch:
    """Try places between the prior and `learned` (one weight per domain), and beyond.

    Raises:
        LearningError: a training failed.
        InterruptedRunError: stopped by the user.
    """
    settings = job.learn.line_search
    target = TokenCache.open(job.target)
    first = job.learn.num_fit_rows(target.num_rows, len(job.prior))
    tokens_N = np.asarray(target.num_targets[first:])
    prior_D, learned_D = torch.tensor(job.prior), torch.tensor(learned, dtype=torch.float64)
    cap_D = share_caps(job.learn, TokenCache.open(job.corpus))
    mixtures = {s: capped(on_path(prior_D, learned_D, s), cap_D) for s in sorted({0.0, *settings.places})}
    config = training_config(
        job.learn, steps=job.learn.num_search_steps, tokens_per_step=settings.tokens_per_step, seeds=settings.seeds
    )

    data_share = _data_share(job.learn.weights.budget_tokens, config.steps * config.tokens_per_step)

    def train(wanted: Sequence[tuple[float, int]]) -> dict[Name, Trained]:
        trainings = {
            (str(place), seed): Training(
                corpus=job.corpus,
                test=job.target,
                test_rows=(first, target.num_rows),
                weights=tuple(mixtures[place].tolist()),
                seed=seed,
                model=dataclasses.replace(job.model, seed=seed),
                config=config,
                folder=workdir / "trainings",
                data_share=data_share,
            )
            for place, seed in wanted
        }
        return train_all(trainings, config, device, on_progress)

    seeds = range(job.learn.seed, job.learn.seed + settings.seeds)
    trained = train([(place, seeds[0]) for place in mixtures])
    val_losses = [sum(trained[str(place), seeds[0]].losses) / float(tokens_N.sum()) for place in mixtures]
    best = list(mixtures)[int(np.argmin(val_losses))]
    difference = Estimate(mean=0.0, low=0.0, high=0.0)
    if best:
        trained |= train([(place, seed) for seed in seeds[1:] for place in (0.0, best)])
        difference = _difference(trained, str(best), seeds, tokens_N)
    taken = best if difference.high < 0 else 0.0
    return LineSearch(
        places=list(mixtures),
        val_losses=val_losses,
        place=taken,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
        num_rows=len(tokens_N),
        compute_tokens=float(sum(result.tokens for result in trained.values())),
        weights=mixtures[taken].tolist(),
    )


def _data_share(budget_tokens: int | None, tokens: int) -> float:
    """What a training of so many tokens may have of the rows, to repeat them as one of the budget repeats all."""
    return 1.0 if budget_tokens is None else min(1.0, tokens / budget_tokens)


def _difference(
    trained: dict[Name, Trained], place: str, seeds: Sequence[int], tokens_N: NDArray[np.int64]
) -> Estimate:
    loss_KN = np.array([trained[place, seed].losses for seed in seeds])
    prior_KN = np.array([trained["0.0", seed].losses for seed in seeds])
    return mean_token_loss(loss_KN - prior_KN, tokens_N, LEVEL)
