"""Performance Evaluator: is a model that is trained on these weights better on held-out rows of the target?

Every mixture trains fresh models on the same number of tokens of the finite lake, each seed with equal initial weights
and equal data order. What counts is the mean token loss on test rows that neither learning nor training has seen, as
a difference to `uniform`, paired by seed and row, with a 95 % interval over both (`curator.intervals`).

A finished training is kept in the work folder, so a comparison that was stopped goes on where it was, and another one
on the same data shares what it can.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from connectors.store import write_object
from curator.catalog import COMPARISON_FOLDER, COMPARISON_RECORD
from curator.comparison import Comparison, MixtureResult, judged
from curator.config import CompareConfig, TargetConfig
from curator.errors import ConfigError, InputError, InterruptedRunError, one_line
from curator.files import appearing_whole
from curator.intervals import mean_token_loss
from curator.leaks import LeakGuard
from curator.mixtures import Mixture, Spec, mixtures
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

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.retrain import Trained, Training
    from curator.trainings import Name

_TABLE = "comparison.md"


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What a comparison would train: `num_trainings` of `tokens` tokens each, of which `num_finished` are there.

    One model for every mixture and seed; mixtures with equal weights share theirs.
    """

    mixtures: tuple[str, ...]
    seeds: int
    steps: int
    tokens: int
    num_trainings: int
    num_finished: int
    num_test_rows: int
    num_test_tokens: int
    num_left_out: int


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A comparison before its first training."""

    goal: Goal
    held_out: Goal
    caches: Tokenized
    test: TokenCache
    num_left_out: int
    mixtures: list[Mixture]
    config: CompareConfig
    trainings: dict[Name, Training]

    @property
    def tokens(self) -> int:
        """Tokens that each model is trained on."""
        return self.config.steps * self.config.tokens_per_step


def compare(
    lake: Lake,
    specs: Sequence[Spec],
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
    prepared = _prepare(lake, specs, target, test, config, on_progress, each_domain=each_domain)
    lake.check_destination()
    lake.release()

    from curator.trainings import train_all

    try:
        trained = train_all(prepared.trainings, config, check_machine(config), on_progress)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{one_line(error)}, the same command goes on with them") from error
    comparison = _comparison(lake, prepared, trained)
    with lake.writing():  # the record, which makes it known, last
        home = f"{COMPARISON_FOLDER}/{comparison.comparison_id}"
        write_object(lake.destination, f"{home}/{_TABLE}", comparison.to_markdown().encode())
        record = json.dumps(comparison.to_json(), indent=1)
        write_object(lake.destination, f"{home}/{COMPARISON_RECORD}", record.encode())
    lake.forget_views()
    return comparison


def plan(
    lake: Lake,
    specs: Sequence[Spec],
    target: TargetConfig,
    test: TargetConfig,
    config: CompareConfig,
    on_progress: ProgressCallback,
    *,
    each_domain: bool = False,
) -> ComparisonPlan:
    """What `compare` would train; the lake is ingested and tokenized for that. Raises what it would raise before."""
    prepared = _prepare(lake, specs, target, test, config, on_progress, each_domain=each_domain)
    from curator.trainings import finished

    keys = {training.key for training in prepared.trainings.values()}
    there = {prepared.trainings[name].key for name in finished(prepared.trainings)}
    return ComparisonPlan(
        mixtures=tuple(mixture.name for mixture in prepared.mixtures),
        seeds=config.seeds,
        steps=config.steps,
        tokens=prepared.tokens,
        num_trainings=len(keys),
        num_finished=len(there),
        num_test_rows=prepared.test.num_rows,
        num_test_tokens=int(np.sum(prepared.test.num_targets)),
        num_left_out=prepared.num_left_out,
    )


def _prepare(
    lake: Lake,
    specs: Sequence[Spec],
    target: TargetConfig,
    test: TargetConfig,
    config: CompareConfig,
    on_progress: ProgressCallback,
    *,
    each_domain: bool,
) -> _Prepared:
    """Check everything that was given, cheap checks first, and lay out the trainings."""
    launch.check_train_extra()
    _check_sizes(config)
    hf_config = model_config(config)
    _check_blocks(config, check_model(config, hf_config))
    check_machine(config)
    goal, held_out = find_goal(lake, target), find_goal(lake, test)
    lake.ingest(on_progress)
    chosen = mixtures(lake, [name for name, _ in lake.domain_counts()], specs, each_domain=each_domain)
    _check_seeds(chosen, config)
    caches = tokenized(lake, goal, config, on_progress)
    test_cache, num_left_out = _test_rows(lake, goal, held_out, caches, on_progress)

    from curator.retrain import Training

    model = partial(model_source, config, hf_config, caches.corpus.vocab_size)
    trainings = {
        (mixture.name, seed): Training(
            corpus=_cache_of(mixture, caches).folder,
            test=test_cache.folder,
            weights=mixture.weights_on(_cache_of(mixture, caches), seed),
            seed=seed,
            model=model(seed),
            config=config,
            folder=lake.workdir / "trainings",
        )
        for seed in range(config.seeds)
        for mixture in chosen
    }
    return _Prepared(
        goal=goal,
        held_out=held_out,
        caches=caches,
        test=test_cache,
        num_left_out=num_left_out,
        mixtures=chosen,
        config=config,
        trainings=trainings,
    )


def _check_blocks(config: CompareConfig, num_layers: int) -> None:
    try:
        config.blocks.schedule(num_layers, seed=0)
    except ValueError as error:
        raise ConfigError(f"compare.blocks: {error}") from error


def _check_sizes(config: CompareConfig) -> None:
    if config.tokens_per_step < config.sequence_length:
        raise ConfigError(
            f"compare.tokens_per_step={config.tokens_per_step} is less than compare.sequence_length="
            f"{config.sequence_length}",
            hint="a step takes whole sequences: make it at least as large",
        )


def _check_seeds(chosen: Sequence[Mixture], config: CompareConfig) -> None:
    for mixture in chosen:
        if mixture.by_seed and len(mixture.by_seed) != config.seeds:
            raise ConfigError(
                f"mixture {mixture.name!r} names {len(mixture.by_seed)} runs, but there are {config.seeds} seeds",
                hint="name one run for all seeds, or one for each",
            )


def _test_rows(
    lake: Lake, goal: Goal, held_out: Goal, caches: Tokenized, on_progress: ProgressCallback
) -> tuple[TokenCache, int]:
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
                f"every row of the test part {held_out.url} also stands in the target or in the lake",
                hint="a test needs rows that nothing was trained on",
            )
        with appearing_whole(folder) as place:
            write_cache(place, read_tokenizer(caches.corpus.folder), [row_batch(kept)], ["test"])
    cache = TokenCache.open(folder)
    num_left_out = len(texts) - cache.num_rows
    told = f"rows: {num_left_out:,} test rows also stand in the target or in the lake; left out"
    on_progress(Progress(stage="test", done=len(texts), total=len(texts), detail=told))
    return cache, num_left_out


def _cache_of(mixture: Mixture, caches: Tokenized) -> TokenCache:
    return caches.target if mixture.is_oracle else caches.corpus


def _comparison(lake: Lake, prepared: _Prepared, trained: Mapping[Name, Trained]) -> Comparison:
    config, test = prepared.config, prepared.test
    now = datetime.now(UTC)
    comparison_id = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    return Comparison(
        comparison_id=comparison_id,
        created_at=now.isoformat(timespec="seconds"),
        snapshot_id=lake.snapshot_id,
        target=prepared.goal.url,
        test=prepared.held_out.url,
        num_test_rows=test.num_rows,
        num_test_tokens=int(np.sum(test.num_targets)),
        num_left_out=prepared.num_left_out,
        tokens=prepared.tokens,
        compare=config.model_dump(mode="json"),
        results=tuple(_result(mixture, prepared, trained) for mixture in prepared.mixtures),
        location=lake.destination.describe(f"{COMPARISON_FOLDER}/{comparison_id}"),
    )


def _result(mixture: Mixture, prepared: _Prepared, trained: Mapping[Name, Trained]) -> MixtureResult:
    reference = prepared.mixtures[0]
    tokens_N = np.asarray(prepared.test.num_targets)
    own = [trained[mixture.name, seed] for seed in range(prepared.config.seeds)]
    loss_KN = _losses(own)
    loss = mean_token_loss(loss_KN, tokens_N)
    reference_KN = _losses([trained[reference.name, seed] for seed in range(prepared.config.seeds)])
    difference = mean_token_loss(loss_KN - reference_KN, tokens_N)
    cache = _cache_of(mixture, prepared.caches)
    weights_KD = np.array([mixture.weights_on(cache, seed) for seed in range(prepared.config.seeds)])
    epochs_D = weights_KD.max(axis=0) * prepared.tokens / cache.domain_tokens()
    return MixtureResult(
        mixture=mixture.name,
        run_id=mixture.run_id,
        judgement="reference" if mixture is reference else judged(difference),
        test_loss=loss.mean,
        test_loss_low=loss.low,
        test_loss_high=loss.high,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
        train_loss=float(np.mean([one.train_loss for one in own])),
        train_tokens=float(np.mean([one.tokens for one in own])),
        max_epochs=float(epochs_D.max()),
        most_repeated=cache.domains[int(epochs_D.argmax())],
        learn_seconds=mixture.learn_seconds,
        learn_tokens=mixture.learn_tokens,
        train_seconds=sum(one.seconds for one in own),
        weights={} if mixture.is_oracle else dict(zip(cache.domains, mixture.weights_on(cache), strict=True)),
    )


def _losses(trained: Sequence[Trained]) -> NDArray[np.float64]:
    """Summed token loss of every row by every seed's model, (seeds, rows), nats."""
    return np.array([one.losses for one in trained])
