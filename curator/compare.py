"""Performance Evaluator: is a model that is trained on these weights better on held-out rows of the target?

Every mixture trains fresh models on the same number of tokens of the finite lake, each seed with equal initial weights
and equal data order. What counts is the mean token loss on test rows that neither learning nor training has seen, as
a difference to `uniform`, paired by seed and row, with a 95 % interval over both (`curator.intervals`).

A finished training is kept in the work folder, so a comparison that was stopped goes on where it was, and another one
on the same data shares what it can.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from connectors.store import write_object
from curator.catalog import COMPARISON_FOLDER, COMPARISON_RECORD
from curator.config import CompareConfig, TargetConfig
from curator.errors import InputError, InterruptedRunError, LearningError, one_line
from curator.files import appearing_whole
from curator.intervals import Estimate, mean_token_loss
from curator.leaks import LeakGuard
from curator.mixtures import UNIFORM, Mixture, mixtures
from curator.prepare import (
    Goal,
    Tokenized,
    check_machine,
    check_model,
    distinct_texts,
    find_goal,
    model_config,
    model_source,
    row_batch,
    tokenized,
)
from curator.progress import Progress, ProgressCallback
from curator.tokens import TokenCache, read_tokenizer, write_cache
from optim import launch
from optim.errors import OptimError
from optim.presets import PRESETS

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.retrain import Trained, Training

_SCHEMA_VERSION = 1
_POLL_SECONDS = 0.5

Judgement = Literal["reference", "better", "no gain", "worse", "not judged"]


@dataclass(frozen=True, kw_only=True)
class MixtureResult:
    """One mixture's models on the test rows.

    `test_loss` is in nats per token; `difference` is to `uniform`, below 0 where the mixture is better; both with the
    ends of their 95 % intervals (NaN with one seed). `max_epochs` is how often the most repeated domain was seen,
    `learn_seconds` what finding the weights took.
    """

    mixture: str
    run_id: str | None
    judgement: Judgement
    test_loss: float
    test_loss_low: float
    test_loss_high: float
    difference: float
    difference_low: float
    difference_high: float
    train_loss: float
    max_epochs: float
    most_repeated: str
    learn_seconds: float
    train_seconds: float
    weights: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mixtures of one lake, judged by models trained on them; `results` in the order they were asked for."""

    comparison_id: str
    created_at: str
    snapshot_id: str
    target: str
    test: str
    num_test_rows: int
    num_test_tokens: int
    num_left_out: int
    tokens: int
    compare: dict[str, Any]
    results: tuple[MixtureResult, ...]

    def __getitem__(self, mixture: str) -> MixtureResult:
        """The result of a mixture."""
        return next(result for result in self.results if result.mixture == mixture)

    @property
    def sentences(self) -> list[str]:
        """What is said of each mixture but the reference."""
        return [_sentence(result) for result in self.results if result.judgement != "reference"]

    @property
    def verdict(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    def to_json(self) -> dict[str, Any]:
        """As values of JSON; a number that is none becomes null."""
        values = dataclasses.asdict(self) | {"schema_version": _SCHEMA_VERSION, "verdict": self.verdict}
        values["results"] = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            for row in values["results"]
        ]
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`."""
        names = {field.name for field in dataclasses.fields(Comparison)}
        results = tuple(MixtureResult(**_numbers(row)) for row in values["results"])
        return Comparison(**({k: v for k, v in values.items() if k in names} | {"results": results}))

    def __repr__(self) -> str:
        return f"Comparison({self.comparison_id!r}: {self.verdict})"


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A result as JSON has it, with the numbers that are none."""
    return {k: math.nan if v is None and k != "run_id" else v for k, v in row.items()}


def compare(
    lake: Lake,
    specs: Sequence[str | tuple[str, Mapping[str, float]]],
    target: TargetConfig,
    test: TargetConfig,
    config: CompareConfig,
    on_progress: ProgressCallback,
    *,
    each_domain: bool = False,
) -> Comparison:
    """Train models on every mixture, record how they do on the test rows, and return that.

    Raises:
        ConfigError: a mixture or setting that cannot be used.
        InputError: a lake, target, test part or model that cannot be used.
        LearningError: a training failed.
        InterruptedRunError: stopped by the user; the same call goes on.
    """
    launch.check_train_extra()
    hf_config = model_config(config)
    check_model(config, hf_config)
    goal, held_out = find_goal(lake, target), find_goal(lake, test)
    device = check_machine(config)
    lake.check_destination()
    lake.ingest(on_progress)
    caches = tokenized(lake, goal, config, on_progress)
    if each_domain:
        specs = [*specs, *(f"domain:{name}" for name in caches.corpus.domains)]
    chosen = mixtures(lake, caches.corpus, specs)
    test_cache, num_left_out = _test_rows(lake, goal, held_out, caches)
    lake.release()

    def training(mixture: Mixture, seed: int, progress: Path) -> Training:
        from curator.retrain import Training

        return Training(
            corpus=(caches.target if mixture.is_oracle else caches.corpus).folder,
            test=test_cache.folder,
            weights=mixture.weights or (1.0,),
            seed=seed,
            model=model_source(config, hf_config, caches.corpus.vocab_size, seed),
            config=config,
            progress=progress / f"{mixture.name.replace('/', '_')}-{seed}",
        )

    seeds = range(config.seeds)
    with scratch_folder(lake.workdir) as scratch:
        wanted = {(mixture.name, seed): training(mixture, seed, scratch) for seed in seeds for mixture in chosen}
        trained = train_all(wanted, lake.workdir / "trainings", config, device, on_progress)
    tokens_N = np.asarray(test_cache.num_targets)
    comparison = Comparison(
        comparison_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        snapshot_id=lake.snapshot_id,
        target=goal.url,
        test=held_out.url,
        num_test_rows=test_cache.num_rows,
        num_test_tokens=int(tokens_N.sum()),
        num_left_out=num_left_out,
        tokens=config.steps * config.tokens_per_step,
        compare=config.model_dump(mode="json"),
        results=tuple(_result(m, chosen[0], trained, tokens_N, caches, config) for m in chosen),
    )
    with lake.writing():
        path = f"{COMPARISON_FOLDER}/{comparison.comparison_id}/{COMPARISON_RECORD}"
        write_object(lake.destination, path, json.dumps(comparison.to_json(), indent=1).encode())
    lake.forget_views()
    return comparison


def _test_rows(lake: Lake, goal: Goal, held_out: Goal, caches: Tokenized) -> tuple[TokenCache, int]:
    """The token cache of the test rows that stand neither in the target nor in the lake, and how many others do."""
    texts = distinct_texts(held_out, "test part")
    digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=10).hexdigest()
    folder = caches.corpus.folder.parent / f"test-{digest}"
    if not folder.exists():
        guard = LeakGuard(texts)
        guard.find(distinct_texts(goal, "target"))
        for batch in lake.text_batches(caches.corpus.domains):
            guard.find(batch.text)
        kept = [text for text, seen in zip(texts, guard.hit, strict=True) if not seen]
        if not kept:
            raise InputError(
                f"every row of the test part {held_out.url} also stands in the target or in the lake; "
                "a test needs rows that nothing was trained on"
            )
        with appearing_whole(folder) as place:
            write_cache(place, read_tokenizer(caches.corpus.folder), [row_batch(kept)], ["test"])
    cache = TokenCache.open(folder)
    return cache, len(texts) - cache.num_rows


@contextmanager
def scratch_folder(workdir: Path) -> Iterator[Path]:
    """A folder for the progress of trainings, removed on exit."""
    folder = workdir / f".trainings-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train_all(
    wanted: Mapping[tuple[str, int], Training],
    folder: Path,
    config: CompareConfig,
    device: launch.Device,
    on_progress: ProgressCallback,
) -> dict[tuple[str, int], Trained]:
    """The result of every training, from `folder` where it was made before."""
    from curator.retrain import Trained

    done = {name: Trained.read(folder / f"{training.key}.json") for name, training in wanted.items()}
    open_ = [name for name, result in done.items() if result is None]
    stop = threading.Event()

    def run(name: tuple[str, int], threads: int) -> None:
        training = wanted[name]
        if stop.is_set():
            return
        result = launch.launch(
            "curator.retrain:run_training",
            training,
            world_size=config.layout.world_size,
            device=device,
            preload=("optim.mcore.backend",),
            threads=threads,
            on_poll=lambda: _stop_if(stop),
            log=training.progress.with_suffix(".log"),
        )[0]
        result.write(folder / f"{training.key}.json")
        done[name] = result

    at_once = min(_at_once(config, device), max(1, len(open_)))
    threads = max(1, launch.device_count("cpu") // (at_once * config.layout.world_size))
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, name, threads) for name in open_]
        try:
            _follow(futures, wanted, done, config.steps, on_progress)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "stopped before the comparison ended; finished trainings are kept, the same command goes on with them"
            ) from None
        except OptimError as error:
            raise LearningError(one_line(error)) from error
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    return {name: result for name, result in done.items() if result is not None}


def _follow(
    futures: Sequence[Future[None]],
    wanted: Mapping[tuple[str, int], Training],
    done: Mapping[tuple[str, int], Trained | None],
    steps: int,
    on_progress: ProgressCallback,
) -> None:
    """Tell how far the trainings are until all have ended; raises what one of them raised."""
    pending = set(futures)
    while True:
        counts = [steps if done[name] else _noted(training.progress) for name, training in wanted.items()]
        finished = sum(result is not None for result in done.values())
        detail = f"steps, {finished} of {len(wanted)} trainings done"
        on_progress(Progress(stage="train", done=sum(counts), total=steps * len(wanted), detail=detail))
        if not pending:
            return
        ended, pending = wait(pending, timeout=_POLL_SECONDS)
        for future in ended:
            future.result()


def _at_once(config: CompareConfig, device: launch.Device) -> int:
    if config.at_once is not None:
        return config.at_once
    if device != "cpu" or config.model not in PRESETS:
        return 1
    return max(1, launch.device_count(device) // config.layout.world_size)


def _noted(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


class _StoppedError(Exception):
    """Ends a training whose comparison has ended."""


def _stop_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise _StoppedError


def _result(
    mixture: Mixture,
    reference: Mixture,
    trained: Mapping[tuple[str, int], Trained],
    tokens_N: NDArray[np.int64],
    caches: Tokenized,
    config: CompareConfig,
) -> MixtureResult:
    seeds = range(config.seeds)
    loss_KN = np.array([trained[mixture.name, seed].losses for seed in seeds])
    reference_KN = np.array([trained[reference.name, seed].losses for seed in seeds])
    loss = mean_token_loss(loss_KN, tokens_N)
    difference = mean_token_loss(loss_KN - reference_KN, tokens_N)
    cache = caches.target if mixture.is_oracle else caches.corpus
    epochs = np.array(mixture.weights or (1.0,)) * config.steps * config.tokens_per_step / cache.domain_tokens()
    return MixtureResult(
        mixture=mixture.name,
        run_id=mixture.run_id,
        judgement="reference" if mixture is reference else _judgement(difference),
        test_loss=loss.mean,
        test_loss_low=loss.low,
        test_loss_high=loss.high,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
        train_loss=float(np.mean([trained[mixture.name, seed].train_loss for seed in seeds])),
        max_epochs=float(epochs.max()),
        most_repeated=cache.domains[int(epochs.argmax())],
        learn_seconds=mixture.learn_seconds,
        train_seconds=sum(trained[mixture.name, seed].seconds for seed in seeds),
        weights=dict(zip(caches.corpus.domains, mixture.weights, strict=False)),
    )


def _judgement(difference: Estimate) -> Judgement:
    if math.isnan(difference.low):
        return "not judged"
    if difference.high < 0:
        return "better"
    return "worse" if difference.low > 0 else "no gain"


def _sentence(result: MixtureResult) -> str:
    by = f"{result.difference:+.3f} nats per token"
    interval = f"[{result.difference_low:+.3f}, {result.difference_high:+.3f}]"
    said = {
        "better": f"is better than {UNIFORM}: {by}, 95 % interval {interval}.",
        "worse": f"is worse than {UNIFORM}: {by}, 95 % interval {interval}.",
        "no gain": f"brings no gain over {UNIFORM}: {by}, 95 % interval {interval} includes 0.",
        "not judged": f"differs from {UNIFORM} by {by}; one seed tells no interval.",
        "reference": "",
    }
    return f"{result.mixture} {said[result.judgement]}"
