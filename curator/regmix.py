"""Weights by RegMix (`optim.learners.regmix`): one small model for each of many mixtures, then a regression.

The models are trained and measured as the Performance Evaluator does it, with the target's rows, which no model trains
on, for validation. Finished trainings are kept, so a run that was stopped goes on with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curator.progress import ProgressCallback
from curator.retrain import Training, training_config
from curator.tokens import TokenCache
from curator.trainings import train_all
from curator.worker import WorkerResult
from optim import launch
from optim.diagnostics import Verdict
from optim.learners.fixed import with_floor
from optim.learners.regmix import Regression, best_mixture, fit, random_mixtures

if TYPE_CHECKING:
    from curator.worker import WorkerJob

MIXTURES_PER_DOMAIN = 4
LEAST_MIXTURES = 16


def find_weights(job: WorkerJob, workdir: Path, device: launch.Device, on_progress: ProgressCallback) -> WorkerResult:
    """Train on random mixtures around the job's prior, each for all of its steps, and take the best by a regression.

    Raises:
        LearningError: a training failed.
        InterruptedRunError: stopped by the user.
    """
    corpus, target = TokenCache.open(job.corpus), TokenCache.open(job.target)
    prior_D, seed = np.array(job.prior), job.learn.seed
    rows = job.learn.num_rows_per_domain(len(corpus.domains)) * min(len(corpus.domains), job.learn.domains_per_step)
    config = training_config(  # as many tokens a step as a step of the solver draws from the lake at most
        job.learn, steps=job.learn.steps, tokens_per_step=rows * job.learn.sequence_length, seeds=1
    )
    num_mixtures = max(LEAST_MIXTURES, MIXTURES_PER_DOMAIN * len(corpus.domains))
    mixtures_ND = random_mixtures(prior_D, num_mixtures, seed=seed)
    wanted = {
        (f"random mixture {place}", seed): Training(
            corpus=job.corpus,
            test=job.target,
            weights=tuple(mixture_D.tolist()),
            seed=seed,
            model=job.model,
            config=config,
            folder=workdir / "trainings",
        )
        for place, mixture_D in enumerate(mixtures_ND)
    }
    trained = train_all(wanted, config, device, on_progress)
    num_tokens = int(target.num_targets.sum())
    losses_N = np.array([sum(trained[name].losses) / num_tokens for name in wanted])
    regression = fit(mixtures_ND, losses_N)
    return WorkerResult(
        weights=with_floor(best_mixture(regression, prior_D, seed=seed), job.learn.weights.floor).tolist(),
        summary=None,
        verdict=verdict(regression, losses_N),
        backend=None,
        compute_tokens=float(sum(result.tokens for result in trained.values())),
    )


def verdict(regression: Regression, losses_N: NDArray[np.float64]) -> Verdict:
    """Whether the regression tells mixtures apart: it has to beat the guess that all have the same loss."""
    spread = float(np.log(losses_N).std())
    figures = (
        f"the regression is {regression.error:.2%} off the loss of a mixture it has not seen, and the losses of the "
        f"{len(losses_N)} mixtures spread by {spread:.2%}"
    )
    if regression.error < spread:
        return Verdict(status="converged", reason=figures)
    return Verdict(status="not converged", reason=f"{figures}; take more steps, so that mixtures differ by more")
