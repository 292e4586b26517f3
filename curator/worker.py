"""The program of a worker process: sampler + solver + Megatron-Core backend, one rank of the layout.

The only module that knows both the data and `optim.mcore`. Rank 0 appends every step's record to `trajectory.jsonl`
in the run folder, where the parent reads its progress, and writes `result.json` there at the end. A run folder with
checkpoints is gone on with, so running a job again is resuming it.

`Lake.learn` starts the workers itself. `torchrun … -m curator.worker RUN_DIR` runs them where it does, on one machine
or many that share the run folder; `curator learn LAKE --resume RUN_DIR` then records the run.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from scipy.special import expit, logit

from curator.config import EXECUTION_FIELDS, LearnConfig
from curator.errors import CuratorError, StorageError, TryAgainError, one_line
from curator.files import write_atomically
from curator.places import CHECKPOINTS, JOB, RESULT
from curator.row_pairs import RowPairs
from curator.sampler import Sampler, SamplerSettings
from curator.tokens import TokenCache
from curator.trajectory import LINES
from optim.backend import AdamWSettings, Backend, BackendInfo, ModelSource
from optim.checkpoint import Checkpoint, Checkpoints, Saveable
from optim.data_weights import DataWeightSettings
from optim.diagnostics import StepRecord, Summary, Verdict
from optim.errors import CheckpointError, OptimError, StoppedError
from optim.job import is_peer_lost, is_timeout
from optim.launch import COLLECTIVE_TIMEOUT
from optim.learners.registry import make_learner
from optim.schedules import LearningRate
from optim.solver import SolverSettings, conclude, solve
from optim.state import SolverState

_LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """What every rank is handed; `prior` has one entry per domain of the corpus cache.

    So has `start`, where the weights begin if not at the prior.
    """

    run_dir: Path
    corpus: Path
    target: Path
    learn: LearnConfig
    model: ModelSource
    prior: list[float]
    start: list[float] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be equal for a checkpoint to be resumed."""
        warm = {"start": self.start} if self.start else {}  # those of before runs could have one have none
        return warm | {
            "learn": self.learn.model_dump(mode="json", exclude=set(EXECUTION_FIELDS)),
            "model": _model_to_json(self.model),
            "tokens": self.corpus.parent.name,
            "prior": self.prior,
        }

    def to_json(self) -> dict[str, Any]:
        """As values of JSON."""
        return {
            "run_dir": str(self.run_dir),
            "corpus": str(self.corpus),
            "target": str(self.target),
            "learn": self.learn.model_dump(mode="json"),
            "model": _model_to_json(self.model),
            "prior": self.prior,
            "start": self.start,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> WorkerJob:
        """The inverse of `to_json`."""
        model = dict(values["model"])
        folder = model.pop("folder")
        return WorkerJob(
            run_dir=Path(values["run_dir"]),
            corpus=Path(values["corpus"]),
            target=Path(values["target"]),
            learn=LearnConfig.model_validate(values["learn"]),
            model=ModelSource(**model, folder=Path(folder) if folder else None),
            prior=values["prior"],
            start=values.get("start"),
        )


def _model_to_json(model: ModelSource) -> dict[str, Any]:
    return {
        "hf_config": dict(model.hf_config),
        "folder": str(model.folder) if model.folder else None,
        "seed": model.seed,
    }


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What a run found; `weights` are the averaged domain weights, in the order of the corpus cache.

    `summary` is None for a run that takes no steps of the solver, `backend` for one that opens no model.
    `compute_tokens` is what it took (see `optim.learners.learner.StepResult`).
    """

    weights: list[float]
    summary: Summary | None
    verdict: Verdict
    backend: BackendInfo | None
    compute_tokens: float

    def at(self, weights: list[float], place: float) -> WorkerResult:
        """With the weights at a place between the prior (0) and those learned (1), and beyond; intervals go along.

        An interval's way from the weight, in log-odds, is multiplied by the place. Weights of the prior were not
        learned and have none.
        """
        summary = self.summary
        if place == 1 and weights == self.weights:
            return self
        if summary is None or summary.ci_low is None or summary.ci_high is None:
            return dataclasses.replace(self, weights=weights)
        learned_D, taken_D = _log_odds(self.weights), _log_odds(weights)

        def moved(ends: list[float]) -> list[float] | None:
            found: list[float] = expit(taken_D + place * (_log_odds(ends) - learned_D)).tolist()
            return found if place else None

        summary = dataclasses.replace(summary, ci_low=moved(summary.ci_low), ci_high=moved(summary.ci_high))
        return dataclasses.replace(self, weights=weights, summary=summary)

    def write(self, run_dir: Path) -> None:
        """Write it as `result.json`, wholly or not at all."""
        write_atomically(run_dir / RESULT, json.dumps(dataclasses.asdict(self), indent=1))

    @staticmethod
    def read(run_dir: Path) -> WorkerResult:
        """What `write` wrote."""
        values = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
        return WorkerResult(
            weights=values["weights"],
            summary=values["summary"] and Summary(**values["summary"]),
            verdict=Verdict(**values["verdict"]),
            backend=values["backend"] and BackendInfo(**values["backend"]),
            compute_tokens=values["compute_tokens"],
        )


def _log_odds(share_D: Sequence[float]) -> NDArray[np.float64]:
    """log(p/(1 − p)), finite for shares of 0 and 1, too."""
    found_D: NDArray[np.float64] = logit(np.clip(share_D, np.finfo(float).tiny, 1 - np.finfo(float).eps))
    return found_D


def solver_settings(learn: LearnConfig, num_layers: int) -> SolverSettings:
    """The solver's settings out of the user's.

    Raises:
        ValueError: a combination that makes no sense, such as a block larger than the model.
    """
    learner = make_learner(learn.method, penalty=learn.penalty, branch_steps=learn.branch_steps, num_steps=learn.steps)
    asked = min(round(learn.weights.warmup_share * learn.steps), learn.steps - 1)
    return SolverSettings(
        num_steps=learn.steps,
        warmup_steps=max(asked, learner.reference_steps),
        learner=learner,
        inner_steps=learn.weights.inner_steps,
        average_share=learn.weights.average_share,
        blocks=learn.block_schedule(num_layers),
        learning_rate=LearningRate(
            peak=learn.peak_learning_rate,
            num_steps=learn.steps,
            warmup_steps=min(20, learn.steps // 10),
            shape="constant",
            restart=learner.reference_steps,
        ),
        data_weights=DataWeightSettings(
            optimizer=learn.weights.optimizer,
            learning_rate=learn.weights.usual_rate,
            prior_pull=learn.weights.prior_pull,
            floor=learn.weights.floor,
        ),
    )


def share_caps(learn: LearnConfig, corpus: TokenCache) -> torch.Tensor:
    """The largest share (D,) that each domain can have at the token budget without more than `max_epochs` passes."""
    tokens_D = torch.from_numpy(corpus.domain_tokens()).double()
    if learn.weights.budget_tokens is None:
        return torch.ones_like(tokens_D)
    return (learn.weights.max_epochs * tokens_D / learn.weights.budget_tokens).clamp(max=1.0)


def run_worker(job: WorkerJob) -> None:
    """One rank's whole run, gone on with from its newest checkpoint; rank 0 writes the result into the run folder.

    Collective: every rank of the torch.distributed world.

    Raises:
        StoppedError: after SIGTERM or Ctrl-C, when a checkpoint has been written.
        CheckpointError: a checkpoint cannot be written, or is not of this job.
        TryAgainError: another process is at work on this run.
    """
    with _sole_worker(job.run_dir), _stop_requests() as stop:
        result = _Work(job, stop).done()
    if dist.get_rank() == 0:
        result.write(job.run_dir)


class _Work:
    """The phases of a run: the steps of the solver, then pair after pair; each opens the copies of the model anew."""

    def __init__(self, job: WorkerJob, stop: threading.Event) -> None:
        learn = job.learn
        corpus, target = TokenCache.open(job.corpus), TokenCache.open(job.target)
        num_domains = len(corpus.domains)
        self._job = job
        self._stop = stop
        self._num_steps = learn.num_solver_steps(num_domains)
        self._pair_starts = learn.pair_starts(num_domains)
        self._num_total = learn.num_total_steps(num_domains)
        self._prior_D = torch.tensor(job.prior, dtype=torch.float64)
        self._sampler = Sampler(
            corpus,
            target.rows(0, learn.num_fit_rows(target.num_rows, num_domains)),
            SamplerSettings(
                sequence_length=learn.sequence_length,
                rows_per_domain=learn.num_rows_per_domain(num_domains),
                domains_per_step=learn.domains_per_step,
                target_rows=learn.target_rows,
                seed=learn.seed,
            ),
        )
        self._pairs = RowPairs(corpus, self._sampler, learn, job.run_dir) if self._pair_starts else None
        self._checkpoints = Checkpoints(job.run_dir / CHECKPOINTS, identity=job.identity, keep=learn.checkpoint.keep)

    def done(self) -> WorkerResult:
        """Take all steps that are left."""
        found = self._checkpoints.newest()
        if self._pairs and found:
            self._pairs.load(found.folder)
        floor, start = self._job.learn.weights.floor, self._job.start
        start_D = None if start is None else torch.tensor(start, dtype=torch.float64)
        state = found.state if found else SolverState.initial(self._prior_D, start_D, floor=floor)
        with _Trajectory.open(self._job.run_dir, found, min(state.step, self._num_steps)) as trajectory:
            state, info = self._phase(state, found, trajectory)
            while state.step < self._num_total:
                state, info = self._phase(state, None, trajectory)
            result = self._result(state, info, trajectory.records)
        if self._pairs:
            self._pairs.save(self._job.run_dir)
        return result

    def _phase(
        self, state: SolverState, found: Checkpoint | None, trajectory: _Trajectory
    ) -> tuple[SolverState, BackendInfo]:
        """Take the steps of the phase that `state` is in, of which `found` holds the copies unless it begins."""
        pairs = self._pairs if state.step >= self._num_steps else None
        with _open_backend(self._job, pairs.index(state.step) if pairs else None) as backend:
            info = backend.info
            if found and state.step not in (0, *self._pair_starts):
                backend.load(found.folder)
            keeper = _Keeper(
                self._checkpoints,
                _Together(backend, self._pairs) if self._pairs else backend,
                trajectory,
                self._stop,
                60 * self._job.learn.checkpoint.every_minutes,
            )
            if pairs:
                weights_D = state.average_D / state.average_D.sum()
                state = pairs.train(backend, weights_D, state, num_layers=info.num_layers, after_step=keeper)
            else:
                solution = solve(
                    backend,
                    self._sampler,
                    self._prior_D,
                    solver_settings(self._job.learn, info.num_layers),
                    start=state,
                    records=trajectory.records,
                    on_step=trajectory.write,
                    after_step=keeper,
                )
                state = solution.state
        return state, info

    def _result(self, state: SolverState, info: BackendInfo, records: list[StepRecord]) -> WorkerResult:
        taken = self._pairs.compute_tokens if self._pairs else 0.0
        if not self._num_steps:
            verdict = Verdict(status="converged", reason="the lake has one domain")
            return WorkerResult(weights=[1.0], summary=None, verdict=verdict, backend=info, compute_tokens=taken)
        solution = conclude(state, records, solver_settings(self._job.learn, info.num_layers))
        return WorkerResult(
            weights=solution.weights_D.tolist(),
            summary=solution.summary,
            verdict=solution.verdict,
            backend=info,
            compute_tokens=solution.summary.compute_tokens + taken,
        )


def _open_backend(job: WorkerJob, pair: int | None) -> AbstractContextManager[Backend]:
    """The two copies at their start; those of a pair start from other initial weights, where these are drawn."""
    from optim.mcore.backend import mcore_backend

    learn = job.learn
    return mcore_backend(
        job.model if pair is None else dataclasses.replace(job.model, seed=job.model.seed + 1 + pair),
        layout=learn.layout,
        optimizer=AdamWSettings(weight_decay=learn.weight_decay, moments_on_switch=learn.blocks.moments),
        micro_batch_tokens=learn.micro_batch_tokens,
        dtype=learn.dtype,
        recompute=learn.recompute,
    )


@contextmanager
def _sole_worker(run_dir: Path) -> Iterator[None]:
    """Rank 0 keeps other runs out of the folder until it ends, however it ends.

    Raises:
        TryAgainError: on rank 0, if another process is at work there.
    """
    if dist.get_rank():
        yield
        return
    with (run_dir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgainError(
                f"another process is at work on the run in {run_dir}", hint="wait for it, or stop it and resume"
            ) from None
        yield


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM or a first Ctrl-C sets, instead of ending the process; only the main thread can be asked.

    Ctrl-C reaches the workers of torchrun, and one that was started alone; those of `launch` are out of its reach.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _: object) -> None:
        event.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])  # the second one ends the process at once

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Trajectory:
    """The growing file of step records, one JSON line each; only rank 0 writes."""

    def __init__(self, records: list[StepRecord], sink: BinaryIO | None) -> None:
        self.records = records
        self._sink = sink

    @staticmethod
    @contextmanager
    def open(run_dir: Path, found: Checkpoint | None, num_steps: int) -> Iterator[_Trajectory]:
        """The records of the `num_steps` steps before the checkpoint; what a killed run wrote after it is cut off."""
        path = run_dir / LINES
        kept = int(found.extra["trajectory_bytes"]) if found else 0
        records = _records(path, kept)
        if found and len(records) != num_steps:
            raise CheckpointError(
                f"{path} does not hold the {num_steps} steps before checkpoint {found.folder}; "
                "restore it, or learn anew"
            )
        dist.barrier()
        if dist.get_rank():
            yield _Trajectory(records, None)
            return
        path.touch()
        os.truncate(path, kept)
        with path.open("ab") as sink:
            yield _Trajectory(records, sink)

    def write(self, record: StepRecord) -> None:
        """Append a step.

        Raises:
            StorageError: the disk does not take it.
        """
        self.records.append(record)
        if self._sink is None:
            return
        line = json.dumps(dataclasses.asdict(record)).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._sink.fileno(), line) :]  # no buffer, which would fail again when closed
        except OSError as error:
            raise StorageError(
                f"{self._sink.name} cannot be written ({error.strerror})", hint="free the disk, then resume the run"
            ) from error

    def sync(self) -> int:
        """Wait until all is on disk; the length of the file in bytes."""
        if self._sink is None:
            return 0
        os.fsync(self._sink.fileno())
        return os.fstat(self._sink.fileno()).st_size


def _records(path: Path, num_bytes: int) -> list[StepRecord]:
    """The records in the first `num_bytes` of a trajectory; none if they cannot be read."""
    if not num_bytes:
        return []
    try:
        with path.open("rb") as source:
            return [StepRecord(**json.loads(line)) for line in source.read(num_bytes).splitlines()]
    except (OSError, ValueError, TypeError):
        return []


@dataclass(frozen=True)
class _Together:
    """The parts of a run that a checkpoint holds."""

    backend: Backend
    pairs: RowPairs

    def save(self, folder: Path) -> None:
        """Write both into an empty folder; collective."""
        self.backend.save(folder)
        self.pairs.save(folder)


class _Keeper:
    """Called after every step: writes a checkpoint when one is due, and one more before it stops the run."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        saveable: Saveable,
        trajectory: _Trajectory,
        stop: threading.Event,
        seconds: float,
    ) -> None:
        self._checkpoints = checkpoints
        self._saveable = saveable
        self._trajectory = trajectory
        self._stop = stop
        self._seconds = seconds
        self._last = time.monotonic()

    def __call__(self, state: SolverState) -> None:
        stop, due = self._agreed(self._stop.is_set(), time.monotonic() - self._last > self._seconds)
        if stop or due:
            self._checkpoints.save(self._saveable, state, {"trajectory_bytes": self._trajectory.sync()})
            self._last = time.monotonic()
        if stop:
            raise StoppedError(f"stopped after step {state.step}, with a checkpoint; the run can be resumed")

    def _agreed(self, *flags: bool) -> list[bool]:
        """Each flag, true if it is on any rank: all ranks have to do the same."""
        if dist.get_world_size() == 1:
            return list(flags)
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        values = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(value) for value in values.tolist()]


def main(argv: list[str]) -> int:
    """One rank under torchrun, or the only one without it; the exit status: 0, 1, or 75 when it can be run again."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m curator.worker RUN_DIR\n")
        return 2
    rank = os.environ.get("RANK", "0")
    try:
        values = json.loads((Path(argv[0]) / JOB).read_text(encoding="utf-8"))
        job = dataclasses.replace(WorkerJob.from_json(values["job"]), run_dir=Path(argv[0]).resolve())
        with _world():
            run_worker(job)
    except (CuratorError, OptimError, OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not (is_timeout(error) or is_peer_lost(error)):
            raise  # nothing that is known to happen: the traceback is worth more than a sentence
        sys.stderr.write(f"curator.worker: rank {rank}: {type(error).__name__}: {one_line(error)}\n")
        return 75 if isinstance(error, (StoppedError, TryAgainError)) else 1
    except KeyboardInterrupt:
        sys.stderr.write(f"curator.worker: rank {rank}: interrupted\n")
        return 128 + signal.SIGINT
    return 0


@contextmanager
def _world() -> Iterator[None]:
    """The torch.distributed world that torchrun describes in the environment, or one of this process alone."""
    has_gpu = torch.cuda.is_available()
    backend = "nccl" if has_gpu else "gloo"
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT))
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
