"""The program of a worker that trains one fresh model on a mixture and measures it on the test rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from curator.config import EXECUTION_FIELDS, CompareConfig, LearnConfig
from curator.files import write_atomically
from curator.sampler import MixtureSampler, RowSet
from curator.tokens import TokenCache
from optim.backend import AdamWSettings, ModelSource
from optim.retrain import TrainRecord, summed_losses, train
from optim.schedules import LearningRate

# What may differ without the result being another one.
_EXECUTION_FIELDS = (EXECUTION_FIELDS & CompareConfig.model_fields.keys()) | {"seeds", "at_once"}
_STEPS_BETWEEN_NOTES = 5
_VERSION = 2
"""Changes when an equal training would give another result."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model to train: on `corpus` with `weights` (one per domain of that cache), then to measure on `test`.

    `test_rows` names a part of the test cache, from one row to before another; None: all of it. `data_share` is the
    share of each domain's rows that it trains on (see `MixtureSampler`). Its files are in `folder`, named by its key:
    the result, and while it runs its progress and its workers' output.
    """

    corpus: Path
    test: Path
    weights: tuple[float, ...]
    seed: int
    model: ModelSource
    config: CompareConfig
    folder: Path
    test_rows: tuple[int, int] | None = None
    data_share: float = 1.0

    def open_test(self) -> TokenCache:
        """The rows to measure on."""
        whole = TokenCache.open(self.test)
        return whole.rows(*self.test_rows) if self.test_rows else whole

    @property
    def result(self) -> Path:
        """Where the result is kept."""
        return self.folder / f"{self.key}.json"

    @property
    def progress(self) -> Path:
        """Where the steps that were taken are noted."""
        return self.folder / f"{self.key}.steps"

    @property
    def log(self) -> Path:
        """Where the workers' output goes."""
        return self.folder / f"{self.key}.log"

    @cached_property
    def key(self) -> str:
        """Equal for trainings with equal results."""
        values = {
            "version": _VERSION,
            "corpus": f"{self.corpus.parent.name}/{self.corpus.name}",
            "test": [f"{self.test.parent.name}/{self.test.name}", self.test_rows],
            "weights": [round(weight, 9) for weight in self.weights],
            "seed": self.seed,
            "model": dict(self.model.hf_config),
            "folder": _fingerprint(self.model.folder),
            "config": self.config.model_dump(mode="json", exclude=set(_EXECUTION_FIELDS)),
        }
        if self.data_share != 1:  # the keys of all others stay what they were
            values["data_share"] = self.data_share
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to: summed test loss of every row (nats), its last training loss, tokens and seconds."""

    losses: list[float]
    train_loss: float
    tokens: int
    seconds: float

    @staticmethod
    def read(training: Training) -> Trained | None:
        """What an earlier comparison kept of this training, if it is whole."""
        try:
            values: Mapping[str, Any] = json.loads(training.result.read_text(encoding="utf-8"))
            found = Trained(**values)
            is_whole = len(found.losses) == training.open_test().num_rows
            is_whole &= bool(np.isfinite([*found.losses, found.train_loss, found.tokens, found.seconds]).all())
        except (OSError, ValueError, TypeError):
            return None
        return found if is_whole else None

    def write(self, training: Training) -> None:
        """Keep it for later comparisons."""
        write_atomically(training.result, json.dumps(dataclasses.asdict(self)))


def training_config(learn: LearnConfig, *, steps: int, tokens_per_step: int, seeds: int) -> CompareConfig:
    """Trainings of a learning run's model in its layout, by its blocks: they fit where the run does."""
    shared = CompareConfig.model_fields.keys() & LearnConfig.model_fields.keys()
    values = learn.model_dump(include=set(shared)) | {
        "data_parallel": learn.data_parallel or 1,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "seeds": seeds,
    }
    return CompareConfig(**values)


def run_trainings(trainings: Sequence[Training]) -> None:
    """Every rank's part of some trainings, one after the other; each result is kept as soon as it is there.

    One start of the workers serves them all. Collective: every rank of the torch.distributed world.
    """
    for training in trainings:
        result = run_training(training)
        if dist.get_rank() == 0:
            result.write(training)
            training.progress.unlink(missing_ok=True)


def run_training(training: Training) -> Trained:
    """One rank's whole training. Collective: every rank of the torch.distributed world."""
    from optim.mcore.backend import mcore_backend

    config = training.config
    sampler = MixtureSampler(
        TokenCache.open(training.corpus),
        np.array(training.weights),
        sequence_length=config.sequence_length,
        tokens_per_step=config.tokens_per_step,
        seed=training.seed,
        data_share=training.data_share,
    )
    rows = RowSet(training.open_test(), config.sequence_length)
    schedule = LearningRate(
        peak=config.peak_learning_rate, num_steps=config.steps, warmup_steps=min(20, config.steps // 10)
    )

    progress = training.progress

    def note(record: TrainRecord) -> None:
        if dist.get_rank() == 0 and (record.step + 1) % _STEPS_BETWEEN_NOTES == 0:
            write_atomically(progress, str(record.step + 1))

    with mcore_backend(
        training.model,
        layout=config.layout,
        optimizer=AdamWSettings(weight_decay=config.weight_decay, moments_on_switch=config.blocks.moments),
        micro_batch_tokens=config.micro_batch_tokens,
        dtype=config.dtype,
        recompute=config.recompute,
    ) as backend:
        blocks = config.blocks.schedule(backend.info.num_layers, training.seed)
        last = train(backend, sampler.batches(config.steps), blocks, schedule, note)
        losses = rows.by_row(summed_losses(backend, rows.batches()).numpy())
    return Trained(losses=losses.tolist(), train_loss=last.loss, tokens=last.tokens, seconds=last.seconds)


def _fingerprint(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    return [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(folder.glob("*.*"))]
