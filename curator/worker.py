"""The program of a worker process: sampler + solver + Megatron-Core backend, one rank of the layout.

The only module that knows both the data and `optim.mcore`. Rank 0 appends every step's record to `trajectory.jsonl`
in the run folder, where the parent reads its progress.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from curator.config import LearnConfig
from curator.sampler import Sampler, SamplerSettings
from curator.tokens import TokenCache
from optim.backend import AdamWSettings, BackendInfo, ModelSource
from optim.blocks import BlockSchedule
from optim.data_weights import DataWeightSettings
from optim.diagnostics import StepRecord, Summary, Verdict
from optim.schedules import LearningRate
from optim.solver import SolverSettings, solve

TRAJECTORY = "trajectory.jsonl"


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """What every rank is handed; `prior` has one entry per domain of the corpus cache."""

    run_dir: Path
    corpus: Path
    target: Path
    learn: LearnConfig
    model: ModelSource
    prior: list[float]


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What rank 0 brings back; `weights` are the averaged domain weights, in the order of the corpus cache."""

    weights: list[float]
    summary: Summary
    verdict: Verdict
    backend: BackendInfo


def solver_settings(learn: LearnConfig, num_layers: int) -> SolverSettings:
    """The solver's settings out of the user's.

    Raises:
        ValueError: a combination that makes no sense, such as a block larger than the model.
    """
    warmup = min(round(learn.weights.warmup_share * learn.steps), learn.steps - 1)
    return SolverSettings(
        num_steps=learn.steps,
        warmup_steps=warmup,
        penalty=learn.penalty,
        inner_steps=learn.weights.inner_steps,
        average_share=learn.weights.average_share,
        blocks=BlockSchedule(
            num_layers=num_layers,
            size=learn.blocks.size,
            period=learn.blocks.period,
            edges=learn.blocks.edges,
            seed=learn.seed,
        ),
        learning_rate=LearningRate(
            peak=learn.learning_rate, num_steps=learn.steps, warmup_steps=min(20, learn.steps // 10)
        ),
        data_weights=DataWeightSettings(
            optimizer=learn.weights.optimizer,
            learning_rate=learn.weights.learning_rate,
            prior_pull=learn.weights.prior_pull,
            floor=learn.weights.floor,
        ),
    )


def run_worker(job: WorkerJob) -> WorkerResult | None:
    """One rank's whole run; rank 0 returns the result. Collective: every rank of the torch.distributed world."""
    from optim.mcore.backend import mcore_backend

    rank = torch.distributed.get_rank()
    learn = job.learn
    sampler = Sampler(
        TokenCache.open(job.corpus),
        TokenCache.open(job.target),
        SamplerSettings(
            sequence_length=learn.sequence_length,
            rows_per_domain=learn.rows_per_domain,
            domains_per_step=learn.domains_per_step,
            target_rows=learn.target_rows,
            seed=learn.seed,
        ),
    )
    optimizer = AdamWSettings(weight_decay=learn.weight_decay, moments_on_switch=learn.blocks.moments)
    with mcore_backend(
        job.model,
        layout=learn.layout,
        optimizer=optimizer,
        micro_batch_rows=learn.micro_batch_rows,
        dtype=learn.dtype,
    ) as backend:
        settings = solver_settings(learn, backend.info.num_layers)
        prior_D = torch.tensor(job.prior, dtype=torch.float64)
        with _trajectory(job.run_dir, rank) as write:
            solution = solve(backend, sampler, prior_D, settings, on_step=write)
        info = backend.info
    if rank:
        return None
    return WorkerResult(
        weights=solution.weights_D.tolist(), summary=solution.summary, verdict=solution.verdict, backend=info
    )


@contextmanager
def _trajectory(run_dir: Path, rank: int) -> Iterator[Callable[[StepRecord], None]]:
    """A writer of step records, one JSON line each; only rank 0 writes."""
    if rank:
        yield lambda _: None
        return
    with (run_dir / TRAJECTORY).open("a", encoding="utf-8", buffering=1) as sink:
        yield lambda record: print(json.dumps(dataclasses.asdict(record)), file=sink, flush=True)
