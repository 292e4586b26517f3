"""All of a run that comes before its workers: check, ingest, tokenize, and write their orders into the run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import xxhash

from connectors.connector import read_corpus
from connectors.errors import SchemaError
from connectors.parquet import check_schemas, iter_batches
from connectors.plain import Corpus
from curator.begun import Begun, LastVersion, explaining_interruptions
from curator.clusters import Clusters, clustered
from curator.config import PRIORS, CompareConfig, LearnConfig, TargetConfig
from curator.drift import CONTENT, ContentCounter
from curator.errors import ConfigError, InputError, StorageError, one_line
from curator.files import appearing_whole
from curator.leaks import LeakCounter, LeakReport
from curator.progress import Progress, ProgressCallback
from curator.publish import check_column_names
from curator.tokens import RowBatch, TokenCache, Tokenizer, load_tokenizer, train_tokenizer, write_cache
from optim import launch
from optim.families import check_family
from optim.layout import check_layout_fits_machine, check_layout_fits_model
from optim.learners.fixed import proportional, uniform
from optim.presets import PRESETS, preset

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.worker import WorkerJob
    from optim.backend import ModelSource

_TOKENIZER_BYTES = 4_000_000
"""Of text that a preset's tokenizer is trained on, in equal parts from every domain and the target."""

_LEAKS = "leaks.json"
"""In a folder of token caches: the report on rows that stand in the target."""
_CACHE_VERSION = "3"
"""Changes when equal rows would give another cache."""

_LEAST_JUDGED_ROWS = 8
"""Distinct target rows of which a line search can keep some out."""
_LEAST_FIT_ROWS = 4
"""Distinct target rows to learn from."""
_LEAST_START = 0.01
"""Of its share in the prior, what a domain has at least where a run begins at the last version's weights: from 0 no
gradient would bring it back."""
_LEAST_TARGET_ROWS = 4
"""Target rows of a step for each of the workers that a run gets unasked."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A set of rows outside the lake: the target, or its test part."""

    corpus: Corpus
    text: str
    leaks: Literal["exclude", "keep"] = "exclude"

    @property
    def url(self) -> str:
        """The address: the file, if it is one, else the folder; without credentials."""
        return self.corpus.store.describe(self.corpus.files[0].path if len(self.corpus.files) == 1 else "")


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """The token caches of a lake and its target, and the rows that stand in both."""

    corpus: TokenCache
    target: TokenCache
    leaks: LeakReport


def prepare(
    lake: Lake,
    target: TargetConfig,
    config: LearnConfig,
    run_dir: Path | None,
    on_progress: ProgressCallback,
    *,
    elsewhere: bool = False,
    last: LastVersion | None = None,
    warm_start: bool = False,
) -> Begun:
    """Do all that comes before the workers, and write their orders into the run folder.

    `elsewhere` says that they will not run on this machine, whose size then does not matter. `last` is the version that
    the run is compared with; with `warm_start` it begins at its weights.
    """
    launch.check_train_extra()
    hf_config = model_config(config)
    num_layers = check_model(config, hf_config)
    goal = find_goal(lake, target)
    lake.check_run_dir(run_dir)
    lake.check_destination()
    check_solver(config, num_layers)
    if elsewhere and not config.is_stepwise:
        raise ConfigError(
            f"method {config.method!r} has no workers to run on other machines",
            hint="learn without --prepare, or choose another method",
        )
    if elsewhere:  # the trainings of a line search would run here, on a machine that need not be able to
        unjudged = config.line_search.model_copy(update={"places": ()})
        config = config.model_copy(update={"line_search": unjudged})
    else:
        config = with_data_parallel(config, check_machine(config))
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    folder = _new_run_dir(run_dir or lake.workdir / "runs" / run_id)
    with explaining_interruptions(lake, folder):
        indexed = lake.ingest(on_progress)
        check_column_names(lake)
        caches = tokenized(lake, goal, config, on_progress)
        prior = starting_weights(config.weights.prior, caches.corpus)
        start = _warm_start(last, caches.corpus.domains, prior) if last and warm_start else None
        if config.granularity == "cluster":
            corpus = clustered(lake, caches.corpus, config.clusters, on_progress)
            clusters, tokens_K = Clusters.of(corpus), corpus.domain_tokens()
            prior, start = clusters.spread(prior, tokens_K), start and clusters.spread(start, tokens_K)
            caches = dataclasses.replace(caches, corpus=corpus)
        check_target_size(config, caches.target.num_rows, len(caches.corpus.domains), goal)
        _check_budget(config, caches)
        begun = Begun(
            run_id=run_id,
            snapshot_id=lake.snapshot_id,
            target_url=goal.url,
            target_text=goal.text,
            leaks=caches.leaks,
            duplicates={"num_duplicates": indexed.num_duplicates, "share": indexed.duplicate_share},
            job=worker_job(folder, caches.corpus, caches.target, config, hf_config, prior, start),
            last=last,
        )
        begun.write()
    return begun


def _kept(folder: Path) -> Tokenized | None:
    """What an earlier run left there, if it is whole."""
    try:
        return _open(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _open(folder: Path) -> Tokenized:
    (folder / CONTENT).stat()  # caches of before it was kept have none, and are made again
    return Tokenized(
        corpus=TokenCache.open(folder / "corpus"),
        target=TokenCache.open(folder / "target"),
        leaks=LeakReport.from_json(json.loads((folder / _LEAKS).read_text(encoding="utf-8"))),
    )


def check_target_size(config: LearnConfig, num_rows: int, num_domains: int, goal: Goal) -> None:
    """Refuse a target that is too small to learn from, or to keep rows out of.

    Args:
        config: says how many are kept out.
        num_rows: distinct rows of the target.
        num_domains: of the lake.
        goal: the target.
    """
    if config.is_judged(num_domains) and num_rows < _LEAST_JUDGED_ROWS:
        raise InputError(
            f"target {goal.url} has {num_rows} distinct rows",
            hint=f"to judge the weights on rows kept out it "
            f"needs at least {_LEAST_JUDGED_ROWS}: add rows, or set learn.line_search.places = []",
        )
    if num_rows < _LEAST_FIT_ROWS:
        raise InputError(
            f"target {goal.url} has {num_rows} distinct rows", hint=f"at least {_LEAST_FIT_ROWS} are needed: add rows"
        )
    num_fit = config.num_fit_rows(num_rows, num_domains)
    if num_fit < _LEAST_FIT_ROWS:
        raise ConfigError(
            f"learn.line_search.validation_share={config.line_search.validation_share} leaves {max(num_fit, 0)} of the "
            f"{num_rows} distinct rows of {goal.url} to learn from",
            hint=f"at least {_LEAST_FIT_ROWS} are needed: lower it, or add rows",
        )


def _check_budget(config: LearnConfig, caches: Tokenized) -> None:
    """Refuse a token budget that no mixture of the lake fills."""
    budget, epochs = config.weights.budget_tokens, config.weights.max_epochs
    total = int(caches.corpus.domain_tokens().sum())
    if budget is not None and budget > epochs * total:
        raise ConfigError(
            f"learn.weights.budget_tokens={budget} is more than {epochs:g} passes (learn.weights.max_epochs) over the "
            f"lake's {total:,} tokens",
            hint="lower the budget, or allow more passes",
        )


def model_config(config: LearnConfig | CompareConfig) -> dict[str, Any]:
    """The Hugging Face configuration of the preset or folder that `config.model` names."""
    if config.model in PRESETS:
        return preset(config.model, vocab_size=config.vocab_size, sequence_length=config.sequence_length)
    path = Path(config.model) / "config.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {config.model!r} is neither a preset ({', '.join(PRESETS)}) nor a Hugging Face model folder: "
            f"{path} cannot be read ({type(error).__name__})"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a model's configuration: it holds a {type(values).__name__}, not an object")
    return values


def check_model(config: LearnConfig | CompareConfig, hf_config: dict[str, Any]) -> int:
    """Refuse a model that is none, or cannot be split as asked; returns its number of layers."""
    check_family(hf_config)
    try:
        check_layout_fits_model(config.layout, hf_config)
        int(hf_config["vocab_size"])
        _check_length(config, hf_config)
        return int(hf_config.get("num_hidden_layers") or hf_config["n_layer"])
    except KeyError as error:
        raise InputError(
            f"config.json of model {config.model!r} lacks {error}; it is not a decoder this engine knows"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"config.json of model {config.model!r} holds a size that is no number: {error}") from error


def _check_length(config: LearnConfig | CompareConfig, hf_config: dict[str, Any]) -> None:
    positions = hf_config.get("max_position_embeddings") or hf_config.get("n_positions")
    if positions and config.sequence_length > int(positions):
        raise ConfigError(
            f"sequence_length={config.sequence_length} is more than the {positions} positions of model "
            f"{config.model!r}",
            hint=f"set it to {positions} or less",
        )


def check_solver(config: LearnConfig, num_layers: int) -> None:
    """Refuse solver settings that cannot work. Imports torch."""
    from curator.worker import solver_settings
    from optim.learners.registry import PROBING

    _check_granularity(config)
    if not config.is_stepwise:
        return
    if config.method in PROBING and config.dtype == "bfloat16":
        raise ConfigError(
            f"method {config.method!r} compares losses at small distances, which bfloat16 rounds away",
            hint="set learn.dtype = 'float32', or choose another method",
        )
    try:
        solver_settings(config, num_layers)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_granularity(config: LearnConfig) -> None:
    """Refuse weights of rows where nothing would tell them apart."""
    if config.granularity == "cluster" and not config.is_stepwise:
        raise ConfigError(
            f"learn.granularity = 'cluster' takes steps between clusters, which method {config.method!r} does not",
            hint="set learn.granularity = 'domain', or choose another method",
        )
    if config.granularity == "sample" and config.method != "scalebio":
        raise ConfigError(
            f"learn.granularity = 'sample' compares the two copies of method 'scalebio', which {config.method!r} does "
            "not train",
            hint="set learn.granularity = 'domain', or leave the method out",
        )


def check_machine(config: LearnConfig | CompareConfig) -> launch.Device:
    """Refuse a world that is too large for this machine; returns the device's kind. Imports torch."""
    import torch

    device: launch.Device = "cuda" if torch.cuda.is_available() else "cpu"
    check_layout_fits_machine(config.layout, num_devices=launch.device_count(device), device=device)
    return device


def with_data_parallel(config: LearnConfig, device: launch.Device) -> LearnConfig:
    """The settings with a number of workers for the batch, where none was given: one a core for the small presets.

    Two workers take a step 1.3 to 1.8 times as fast as one process with two threads (tests/bench/bench_layouts.py).
    Every worker holds both copies of the model, so a model folder gets more of them only when asked.
    """
    if config.data_parallel is not None or not config.is_stepwise or device != "cpu" or config.model not in PRESETS:
        return config
    cores = launch.device_count(device) // (config.tensor_parallel * config.pipeline_parallel)
    chosen = max(1, min(cores, config.target_rows // _LEAST_TARGET_ROWS))
    return config.model_copy(update={"data_parallel": chosen})


def _new_run_dir(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run folder {folder} is not an empty folder", hint="name a new one, nothing is overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"run folder {folder} cannot be created ({error.strerror})", hint="choose another with --run-dir"
        ) from error
    return folder.resolve()


def find_goal(lake: Lake, target: TargetConfig) -> Goal:
    """The target's files and their text column, before any work is done for it."""
    if not target.url:
        raise ConfigError(
            "no target was named, a few hundred rows of what the model should be good at",
            hint="pass --target URL or set target.url",
        )
    corpus = read_corpus(target.url, lake.config.storage_options)
    text = target.text or lake.config.text
    try:
        check_schemas(corpus.files, text=text)
    except SchemaError as error:
        raise InputError(f"{one_line(error)} (a target's by --target-text or target.text)") from error
    return Goal(corpus=corpus, text=text, leaks=target.leaks)


def tokenized(lake: Lake, goal: Goal, config: LearnConfig | CompareConfig, on_progress: ProgressCallback) -> Tokenized:
    """Token caches of the lake's usable rows and the target; kept in the work folder for the next use of this data.

    Rows of the lake that stand in the target are told to `on_progress`, and left out of the cache unless the target's
    `leaks` says otherwise.

    Raises:
        InputError: domains that cannot be told apart, a domain with too few rows, a target inside the lake or
            without text.
    """
    domains = usable_domains(lake, config)
    _check_outside(lake, goal)
    texts = distinct_texts(goal, "target")
    known = None if config.model in PRESETS else load_tokenizer(Path(config.model))
    spec = known.fingerprint if known else f"bpe-{config.vocab_size}"
    parts = [_CACHE_VERSION, lake.snapshot_id, spec, goal.leaks, *texts]
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=10).hexdigest()
    folder = lake.workdir / "tokens" / digest
    found = _kept(folder)
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)  # damaged, if it is there: it can be made again
        names = [name for name, _ in domains]
        tokenizer = known or tokenizer_for(lake, names, texts, config)
        with appearing_whole(folder) as place:
            corpus, target = place / "corpus", place / "target"
            corpus.mkdir()
            target.mkdir()
            counter = LeakCounter(texts, names, keep=goal.leaks == "keep")
            rows = _counted(lake.text_batches(names), sum(rows for _, rows in domains), on_progress)
            looks = ContentCounter(domains)
            write_cache(corpus, tokenizer, looks.watched(_guarded(rows, counter)), names)
            looks.found().write(place / CONTENT)
            write_cache(target, tokenizer, [row_batch(texts)], ["target"])
            (place / _LEAKS).write_text(json.dumps(counter.report().to_json()), encoding="utf-8")
        found = _open(folder)
    leaks = found.leaks
    on_progress(Progress(stage="leaks", done=leaks.num_rows, total=leaks.num_rows, detail=f"rows: {leaks}"))
    _check_enough_left(lake, found, goal)
    return found


def usable_domains(lake: Lake, config: LearnConfig | CompareConfig) -> list[tuple[str, int]]:
    """(domain, usable rows), checked: of enough rows each, and at least two unless rows are weighed, too."""
    weighs_rows = isinstance(config, LearnConfig) and config.granularity != "domain"
    columns, domains = lake.config, lake.domain_counts()
    if not domains:
        raise InputError(f"{lake.url} has no row with text; nothing can be learned from it")
    if len(domains) < (1 if weighs_rows else 2):
        raise InputError(
            f"column {columns.domain!r} of {lake.url} holds one domain only, {domains[0][0]!r}",
            hint="weights are learned "
            "between at least two: name another column with --domain, or weigh its rows with --granularity sample",
        )
    for name, rows in domains:
        if rows < columns.min_domain_rows:
            raise InputError(
                f"domain {name!r} of {lake.url} has {rows} usable rows, fewer than min_domain_rows="
                f"{columns.min_domain_rows}",
                hint="merge it into another domain, add rows, or lower --min-domain-rows",
            )
    return domains


def _check_outside(lake: Lake, goal: Goal) -> None:
    inside = {lake.corpus.store.full_path(file.path) for file in lake.corpus.files}
    shared = [file.path for file in goal.corpus.files if goal.corpus.store.full_path(file.path) in inside]
    if shared:
        raise InputError(
            f"target file {shared[0]!r} is also a file of the lake {lake.url}",
            hint="weights would reward copies of the target: keep it outside the lake",
        )


def _check_enough_left(lake: Lake, found: Tokenized, goal: Goal) -> None:
    """Refuse domains that hardly consist of anything but the target."""
    left = np.bincount(found.corpus.domain, minlength=len(found.corpus.domains))
    for name, rows in zip(found.corpus.domains, left, strict=True):
        if rows < lake.config.min_domain_rows:
            raise InputError(_too_few_left(lake, goal, name, rows, found.leaks))


def _too_few_left(lake: Lake, goal: Goal, name: str, rows: int, leaks: LeakReport) -> str:
    return (
        f"domain {name!r} of {lake.url} has {rows} rows beside the {leaks.by_domain.get(name, 0)} that also stand in "
        f"the target {goal.url}, fewer than min_domain_rows={lake.config.min_domain_rows}; take the target's rows from "
        'elsewhere, or set target.leaks = "keep"'
    )


def _guarded(batches: Iterable[RowBatch], counter: LeakCounter) -> Iterator[RowBatch]:
    """The batches without the rows that `counter` excludes, empty ones too."""
    for batch in batches:
        kept = np.flatnonzero(~counter.excluded(batch.sample_id, batch.text, batch.domain))
        yield RowBatch(
            sample_id=batch.sample_id.take(pa.array(kept)),
            text=[batch.text[int(i)] for i in kept],
            domain=batch.domain[kept],
        )


def distinct_texts(goal: Goal, what: str) -> list[str]:
    """The usable texts of a goal, distinct, in an order that does not depend on its files.

    Raises:
        InputError: there is none; `what` names the goal.
    """
    texts: set[str] = set()
    for file in goal.corpus.files:
        try:
            for batch in iter_batches(goal.corpus.store, file, [goal.text]):
                column = batch[goal.text].cast(pa.large_string())
                texts.update(text for text in column.to_pylist() if text and text.strip())
        except UnicodeDecodeError as error:
            raise InputError(
                f"column {goal.text!r} of {what} {goal.corpus.store.describe(file.path)} is not valid UTF-8",
                hint="write the text as UTF-8",
            ) from error
    if not texts:
        raise InputError(
            f"column {goal.text!r} of {what} {goal.url} has no row with text",
            hint=f"the {what} needs rows of the kind the model should be good at",
        )
    return sorted(texts)


def tokenizer_for(
    lake: Lake, names: Sequence[str], target: Sequence[str], config: LearnConfig | CompareConfig
) -> Tokenizer:
    """The model folder's tokenizer; of a preset, one that is trained on these domains and the target's texts."""
    if config.model not in PRESETS:
        return load_tokenizer(Path(config.model))
    return train_tokenizer(_tokenizer_sample(lake, names, target), config.vocab_size)


def _tokenizer_sample(lake: Lake, names: Sequence[str], target: Sequence[str]) -> Iterator[str]:
    budget = _TOKENIZER_BYTES // (len(names) + 1)
    yield from lake.text_sample(budget)
    used = 0
    for text in target:
        yield text
        used += len(text.encode())
        if used > budget:
            return


def fingerprint(sample_ids: pa.Array[Any]) -> str:
    """Names what a target holds, by the ids of `row_batch`: equal for equal texts, whatever files they come from."""
    return xxhash.xxh3_128_hexdigest("\n".join(sorted(sample_ids.to_pylist())).encode())


def row_batch(texts: Sequence[str]) -> RowBatch:
    """Texts of a goal as rows of one domain, with ids of their content."""
    ids = pa.array([xxhash.xxh3_128_hexdigest(text.encode()) for text in texts])
    return RowBatch(sample_id=ids, text=texts, domain=np.zeros(len(texts), dtype=np.int32))


def _counted(batches: Iterable[RowBatch], total: int, on_progress: ProgressCallback) -> Iterator[RowBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.text)
        on_progress(Progress(stage="tokenize", done=done, total=total, detail="rows"))


def worker_job(
    folder: Path,
    corpus: TokenCache,
    target: TokenCache,
    config: LearnConfig,
    hf_config: dict[str, Any],
    prior: Sequence[float],
    start: Sequence[float] | None = None,
) -> WorkerJob:
    """What the workers of a run in `folder` are handed; its weights start at `prior`, one for each domain of `corpus`.

    With `start` they begin there instead, and tilt the prior all the same.

    Raises:
        ConfigError: a floor that leaves nothing to learn.
    """
    from curator.worker import WorkerJob

    num_domains = len(corpus.domains)
    if config.weights.floor * num_domains >= 1:
        raise ConfigError(
            f"learn.weights.floor={config.weights.floor} leaves nothing to learn for {num_domains} domains",
            hint=f"it must be below {1 / num_domains:.4f}",
        )
    return WorkerJob(
        run_dir=folder,
        corpus=corpus.folder,
        target=target.folder,
        learn=config,
        model=model_source(config, hf_config, corpus.vocab_size, config.seed),
        prior=list(prior),
        start=list(start) if start else None,
    )


def _warm_start(last: LastVersion, domains: Sequence[str], prior: Sequence[float]) -> list[float] | None:
    """The last version's weights of these domains, none below a hundredth of its share in the prior, (D,).

    A domain that it did not have has its share of the prior. None if it had none of them.
    """
    weights = last.weights_of(domains)
    if weights is None:
        return None
    prior_D, known_D = np.array(prior), np.array([name in last.domains for name in domains])
    start_D = np.where(known_D, np.array(weights) * prior_D[known_D].sum(), prior_D)
    start_D = np.maximum(start_D, _LEAST_START * prior_D)
    return [float(share) for share in start_D / start_D.sum()]


def starting_weights(named: str, corpus: TokenCache) -> list[float]:
    """Where the weights start, one share for each domain of the cache."""
    from curator.mixtures import weights_in

    if named in PRIORS:
        p_D = uniform(len(corpus.domains)) if named == "uniform" else proportional(corpus.domain_tokens())
        return [float(share) for share in p_D]
    found = weights_in(Path(named), corpus.domains)
    if len(found) != 1:
        raise ConfigError(
            f"learn.weights.prior={named!r} holds {len(found)} mixtures, and a run starts at one",
            hint="write the one that is meant into a file of its own",
        )
    (weights,) = found.values()
    without = [name for name, weight in zip(corpus.domains, weights, strict=True) if not weight]
    if without:
        raise ConfigError(
            f"learn.weights.prior={named!r} gives domain {without[0]!r} no weight, which learning could never change",
            hint="give every domain a weight above 0",
        )
    return list(weights)


def model_source(
    config: LearnConfig | CompareConfig, hf_config: dict[str, Any], vocab_size: int, seed: int
) -> ModelSource:
    """Where the copies of a model start: at a preset's initial weights by `seed`, or at a folder's."""
    from optim.backend import ModelSource

    if config.model in PRESETS:
        return ModelSource(hf_config=hf_config | {"vocab_size": vocab_size}, seed=seed)
    if vocab_size > int(hf_config["vocab_size"]):
        raise InputError(
            f"the tokenizer in {config.model} has {vocab_size} tokens, more than the model's vocab_size="
            f"{hf_config['vocab_size']}",
            hint="use the tokenizer that belongs to the model",
        )
    return ModelSource(hf_config=hf_config, folder=Path(config.model).resolve(), seed=seed)
