"""One learning run: tokenize → start workers → read their result → a run folder with the weight artifact.

Before the workers start, `job.json` in the run folder says all that finishing the run takes, so that a run that was
stopped, or killed, can be resumed from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from connectors.parquet import check_schemas, iter_batches
from connectors.plain import Corpus, list_parquet
from curator.config import LearnConfig, TargetConfig, override
from curator.errors import ConfigError, InputError, InterruptedRunError, LearningError, StorageError, one_line
from curator.files import appearing_whole, write_atomically
from curator.places import CHECKPOINTS, JOB
from curator.progress import Progress, ProgressCallback
from curator.publish import check_column_names
from curator.slurm import slurm_script
from curator.tokens import RowBatch, TokenCache, load_tokenizer, train_tokenizer, write_cache
from curator.weights import WeightTable, from_domain_weights
from optim import launch
from optim.errors import StoppedError, WorkerError
from optim.families import check_family
from optim.layout import check_layout_fits_machine, check_layout_fits_model
from optim.presets import PRESETS, preset

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.worker import WorkerJob, WorkerResult
    from optim.backend import ModelSource

SCHEMA_VERSION = 1
SLURM = "slurm.sh"
RECORD = "run.json"
WEIGHTS = "weights.parquet"
_TOKENIZER_CHARS = 4_000_000
"""Characters that a preset's tokenizer is trained on, in equal parts from every domain and the target."""

_CHECKPOINT_GRACE_SECONDS = 600.0
"""How long workers may take to write a checkpoint when a run is stopped; stopping it once more ends them at once."""
_LONGEST_RECORD = 1 << 20
"""Bytes of a trajectory that certainly hold its last line."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is known before anything is tokenized."""

    target: Corpus
    target_text: str
    domains: list[tuple[str, int]]

    @property
    def target_url(self) -> str:
        """The target's address: the file, if it is one, else the folder; without credentials."""
        return self.target.store.describe(self.target.files[0].path if len(self.target.files) == 1 else "")


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run whose workers have their orders: what `job.json` says."""

    run_id: str
    snapshot_id: str
    target_url: str
    target_text: str
    job: WorkerJob

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.job.run_dir

    def write(self) -> None:
        """Write `job.json`, and `slurm.sh` for workers that are to run on other machines."""
        values = {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "snapshot_id": self.snapshot_id,
            "target": {"url": self.target_url, "text": self.target_text},
            "job": self.job.to_json(),
        }
        write_atomically(self.folder / JOB, json.dumps(values, indent=1))
        write_atomically(self.folder / SLURM, slurm_script(self.folder, self.job.learn.layout.world_size))

    @staticmethod
    def read(folder: Path) -> Begun:
        """What `write` wrote.

        Raises:
            ConfigError: there is none, or it is damaged.
        """
        from curator.worker import WorkerJob

        path = folder / JOB
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Begun(
                run_id=values["run_id"],
                snapshot_id=values["snapshot_id"],
                target_url=values["target"]["url"],
                target_text=values["target"]["text"],
                job=dataclasses.replace(WorkerJob.from_json(values["job"]), run_dir=folder),
            )
        except FileNotFoundError:
            raise ConfigError(
                f"{folder} holds no run that was begun: there is no {JOB}; name the folder that `curator learn` made"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({type(error).__name__}: {one_line(error)}); learn anew") from error


def learn(
    lake: Lake, target: TargetConfig, config: LearnConfig, run_dir: Path | None, on_progress: ProgressCallback
) -> str:
    """Learn domain weights of `lake` for `target` and record the run; returns its id.

    Everything is written under the run folder first; the record that makes the run known to the lake comes last.
    """
    started = time.monotonic()
    begun = prepare(lake, target, config, run_dir, on_progress)
    with _explaining_interruptions(lake, begun.folder):
        _finish(lake, begun, started, on_progress)
    return begun.run_id


def prepare(
    lake: Lake,
    target: TargetConfig,
    config: LearnConfig,
    run_dir: Path | None,
    on_progress: ProgressCallback,
    *,
    elsewhere: bool = False,
) -> Begun:
    """Do all that comes before the workers, and write their orders into the run folder.

    `elsewhere` says that they will not run on this machine, whose size then does not matter.
    """
    launch.check_train_extra()
    hf_config = _model_config(config)
    num_layers = _check_model(config, hf_config)
    goal, goal_text = _target(lake, target)
    lake.check_run_dir(run_dir)
    lake.check_destination()
    _check_solver(config, num_layers)
    if not elsewhere:
        _check_machine(config)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    folder = _new_run_dir(run_dir or lake.workdir / "runs" / run_id)
    with _explaining_interruptions(lake, folder):
        lake.ingest(on_progress)
        check_column_names(lake)
        plan = _plan(lake, goal, goal_text)
        corpus, target_cache = _tokenized(lake, plan, config, on_progress)
        begun = Begun(
            run_id=run_id,
            snapshot_id=lake.snapshot_id,
            target_url=plan.target_url,
            target_text=plan.target_text,
            job=_job(folder, corpus, target_cache, config, hf_config),
        )
        begun.write()
    return begun


def resume(lake: Lake, folder: Path, layout: Mapping[str, Any], on_progress: ProgressCallback) -> str:
    """Go on with the run in `folder` from its newest checkpoint, under another layout if one is given.

    Raises:
        ConfigError: there is no unfinished run there.
        InputError: the lake or the token cache is not what the run began with.
    """
    started = time.monotonic()
    launch.check_train_extra()
    folder = folder.resolve()
    begun = Begun.read(folder)
    if (folder / RECORD).exists():
        raise ConfigError(f"run {begun.run_id} in {folder} is finished; there is nothing to resume")
    _check_only_execution(layout)
    config = override(begun.job.learn, **layout)
    _check_solver(config, _check_model(config, dict(begun.job.model.hf_config)))
    lake.check_destination()
    begun = dataclasses.replace(begun, job=dataclasses.replace(begun.job, learn=config))
    with _explaining_interruptions(lake, folder):
        lake.ingest(on_progress)
        if lake.snapshot_id != begun.snapshot_id:
            raise InputError(
                f"{lake.url} has changed since run {begun.run_id} began (snapshot {begun.snapshot_id}, now "
                f"{lake.snapshot_id}); its checkpoints belong to the old rows: learn anew, or restore the files"
            )
        gone = [cache for cache in (begun.job.corpus, begun.job.target) if not cache.is_dir()]
        if gone:
            raise InputError(f"the token cache {gone[0]} of run {begun.run_id} is gone; learn anew")
        begun.write()
        _finish(lake, begun, started, on_progress)
    return begun.run_id


def _check_only_execution(settings: Mapping[str, Any]) -> None:
    from curator.worker import EXECUTION_FIELDS

    changed = sorted(settings.keys() - EXECUTION_FIELDS)
    if changed:
        raise ConfigError(
            f"{changed[0]} cannot change when a run is resumed; only how it is executed can: "
            f"{', '.join(sorted(EXECUTION_FIELDS & LearnConfig.model_fields.keys()))}"
        )


@contextmanager
def _explaining_interruptions(lake: Lake, folder: Path) -> Iterator[None]:
    """Say what is left of a run that does not come to its end, and how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        _remove_if_empty(folder)
        left = f", what it wrote so far is in {folder}" if folder.exists() else ""
        raise InterruptedRunError(
            f"stopped before the run ended; nothing was published{left}{_how_to_go_on(lake, folder)}"
        ) from None
    except (StoppedError, WorkerError) as error:
        kind = InterruptedRunError if isinstance(error, StoppedError) else LearningError
        raise kind(f"{one_line(error)}{_how_to_go_on(lake, folder)}") from error
    except BaseException:
        _remove_if_empty(folder)
        raise


def _how_to_go_on(lake: Lake, folder: Path) -> str:
    """What to add to a message where there is a checkpoint to go on from."""
    if not any((folder / CHECKPOINTS).glob("step-*")):
        return ""
    return f"; go on with `curator learn {shlex.quote(lake.config.url)} --resume {shlex.quote(str(folder))}`"


def _finish(lake: Lake, begun: Begun, started: float, on_progress: ProgressCallback) -> None:
    """Run the workers, unless they have been at their end before, and record what they found."""
    from curator.worker import RESULT, WorkerResult

    folder = begun.folder
    lake.release()
    if not (folder / RESULT).exists():
        _run_workers(begun.job, _check_machine(begun.job.learn), on_progress)
    result = WorkerResult.read(folder)
    table = _weight_table(TokenCache.open(begun.job.corpus), result)
    pq.write_table(table.samples, folder / WEIGHTS, compression="zstd")
    record = _record(lake, begun, result, table, time.monotonic() - started)
    write_atomically(folder / RECORD, json.dumps(record, indent=1))
    with lake.writing():
        lake.record_run(folder, record)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _model_config(config: LearnConfig) -> dict[str, Any]:
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


def _check_model(config: LearnConfig, hf_config: dict[str, Any]) -> int:
    """Refuse a model that is none, or cannot be split as asked; returns its number of layers."""
    check_family(hf_config)
    try:
        check_layout_fits_model(config.layout, hf_config)
        int(hf_config["vocab_size"])
        return int(hf_config.get("num_hidden_layers") or hf_config["n_layer"])
    except KeyError as error:
        raise InputError(
            f"config.json of model {config.model!r} lacks {error}; it is not a decoder this engine knows"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"config.json of model {config.model!r} holds a size that is no number: {error}") from error


def _check_solver(config: LearnConfig, num_layers: int) -> None:
    """Refuse solver settings that cannot work. Imports torch."""
    from curator.worker import solver_settings

    try:
        solver_settings(config, num_layers)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_machine(config: LearnConfig) -> launch.Device:
    """Refuse a world that is too large for this machine; returns the device's kind. Imports torch."""
    import torch

    device: launch.Device = "cuda" if torch.cuda.is_available() else "cpu"
    check_layout_fits_machine(config.layout, num_devices=launch.device_count(device), device=device)
    return device


def _new_run_dir(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run folder {folder} is not an empty folder; name a new one, nothing is overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"run folder {folder} cannot be created ({error.strerror}); choose another with --run-dir"
        ) from error
    return folder.resolve()


def _target(lake: Lake, target: TargetConfig) -> tuple[Corpus, str]:
    """The target's files and their text column, before any work is done for it."""
    if not target.url:
        raise ConfigError("no target was named; pass --target URL or set target.url")
    corpus = list_parquet(target.url, lake.config.storage_options)
    text = target.text or lake.config.text
    check_schemas(corpus.files, text=text)
    return corpus, text


def _plan(lake: Lake, corpus: Corpus, text: str) -> _Plan:
    """Check that the domains can be told apart and that the target lies outside the lake."""
    config = lake.config
    domains = lake.domain_counts()
    if not domains:
        raise InputError(f"{lake.url} has no row with text; nothing can be learned from it")
    if len(domains) < 2:
        raise InputError(
            f"column {config.domain!r} of {lake.url} holds one domain only, {domains[0][0]!r}; weights are learned "
            "between at least two: name another column with --domain"
        )
    for name, rows in domains:
        if rows < config.min_domain_rows:
            raise InputError(
                f"domain {name!r} of {lake.url} has {rows} usable rows, fewer than min_domain_rows="
                f"{config.min_domain_rows}; merge it into another domain, add rows, or lower --min-domain-rows"
            )
    inside = {lake.corpus.store.full_path(file.path) for file in lake.corpus.files}
    shared = [file.path for file in corpus.files if corpus.store.full_path(file.path) in inside]
    if shared:
        raise InputError(
            f"target file {shared[0]!r} is also a file of the lake {lake.url}; weights would reward copies of the "
            "target: keep it outside the lake"
        )
    return _Plan(target=corpus, target_text=text, domains=domains)


def _tokenized(
    lake: Lake, plan: _Plan, config: LearnConfig, on_progress: ProgressCallback
) -> tuple[TokenCache, TokenCache]:
    """Token caches of corpus and target; kept in the lake's work folder for the next run on the same data."""
    texts = _target_texts(plan)
    if not texts:
        raise InputError(
            f"column {plan.target_text!r} of target {plan.target_url} has no row with text; "
            "the target needs rows of the kind the model should be good at"
        )
    tokenizer = None if config.model in PRESETS else load_tokenizer(Path(config.model))
    spec = tokenizer.fingerprint if tokenizer else f"bpe-{config.vocab_size}"
    digest = hashlib.blake2b("\0".join([lake.snapshot_id, spec, *texts]).encode(), digest_size=10).hexdigest()
    folder = lake.workdir / "tokens" / digest
    if not folder.exists():
        names = [name for name, _ in plan.domains]
        tokenizer = tokenizer or train_tokenizer(_tokenizer_sample(lake, names, texts), config.vocab_size)
        with appearing_whole(folder) as place:
            corpus, target = place / "corpus", place / "target"
            corpus.mkdir()
            target.mkdir()
            total = sum(rows for _, rows in plan.domains)
            write_cache(corpus, tokenizer, _counted(lake.text_batches(names), total, on_progress), names)
            write_cache(target, tokenizer, [_target_batch(texts)], ["target"])
    return TokenCache.open(folder / "corpus"), TokenCache.open(folder / "target")


def _target_texts(plan: _Plan) -> list[str]:
    """The usable texts of the target, distinct, in an order that does not depend on its files."""
    texts: set[str] = set()
    for file in plan.target.files:
        try:
            for batch in iter_batches(plan.target.store, file, [plan.target_text]):
                column = batch[plan.target_text].cast(pa.large_string())
                texts.update(text for text in column.to_pylist() if text and text.strip())
        except UnicodeDecodeError as error:
            raise InputError(
                f"column {plan.target_text!r} of target {plan.target.store.describe(file.path)} is not valid UTF-8; "
                "write the text as UTF-8"
            ) from error
    return sorted(texts)


def _tokenizer_sample(lake: Lake, names: Sequence[str], target: Sequence[str]) -> Iterator[str]:
    budget = _TOKENIZER_CHARS // (len(names) + 1)
    yield from lake.text_sample(budget)
    used = 0
    for text in target:
        yield text
        used += len(text)
        if used > budget:
            return


def _target_batch(texts: Sequence[str]) -> RowBatch:
    ids = pa.array([xxhash.xxh3_128_hexdigest(text.encode()) for text in texts])
    return RowBatch(sample_id=ids, text=texts, domain=np.zeros(len(texts), dtype=np.int32))


def _counted(batches: Iterable[RowBatch], total: int, on_progress: ProgressCallback) -> Iterator[RowBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.text)
        on_progress(Progress(stage="tokenize", done=done, total=total, detail="rows"))


def _job(
    folder: Path, corpus: TokenCache, target: TokenCache, config: LearnConfig, hf_config: dict[str, Any]
) -> WorkerJob:
    from curator.worker import WorkerJob

    num_domains = len(corpus.domains)
    if config.weights.floor * num_domains >= 1:
        raise ConfigError(
            f"learn.weights.floor={config.weights.floor} leaves nothing to learn for {num_domains} domains; "
            f"it must be below {1 / num_domains:.4f}"
        )
    tokens = corpus.domain_tokens()
    natural = tokens / tokens.sum()
    uniform = np.full(num_domains, 1 / num_domains)
    return WorkerJob(
        run_dir=folder,
        corpus=corpus.folder,
        target=target.folder,
        learn=config,
        model=_model_source(config, hf_config, corpus.vocab_size),
        prior=(natural if config.weights.prior == "natural" else uniform).tolist(),
    )


def _model_source(config: LearnConfig, hf_config: dict[str, Any], vocab_size: int) -> ModelSource:
    from optim.backend import ModelSource

    if config.model in PRESETS:
        return ModelSource(hf_config=hf_config | {"vocab_size": vocab_size}, seed=config.seed)
    if vocab_size > int(hf_config["vocab_size"]):
        raise InputError(
            f"the tokenizer in {config.model} has {vocab_size} tokens, more than the model's vocab_size="
            f"{hf_config['vocab_size']}; use the tokenizer that belongs to the model"
        )
    return ModelSource(hf_config=hf_config, folder=Path(config.model).resolve(), seed=config.seed)


def _run_workers(job: WorkerJob, device: launch.Device, on_progress: ProgressCallback) -> None:
    from curator.worker import TRAJECTORY

    follow = _Follower(job.run_dir / TRAJECTORY, TokenCache.open(job.corpus).domains, job.learn.steps, on_progress)
    launch.launch(
        "curator.worker:run_worker",
        job,
        world_size=job.learn.layout.world_size,
        device=device,
        preload=("optim.mcore.backend",),
        on_poll=follow,
        grace_seconds=_CHECKPOINT_GRACE_SECONDS,
        log=job.run_dir / "workers.log",
    )
    follow()


class _Follower:
    """Tells of the last line of a trajectory, which grows, and is cut back first when a run is resumed."""

    def __init__(self, path: Path, domains: Sequence[str], total: int, on_progress: ProgressCallback) -> None:
        self._path = path
        self._domains = domains
        self._total = total
        self._tell = on_progress
        self._last = b""

    def __call__(self) -> None:
        try:
            with self._path.open("rb") as source:
                size = source.seek(0, os.SEEK_END)
                source.seek(max(0, size - _LONGEST_RECORD))
                complete, newline, _ = source.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        last = complete.rpartition(b"\n")[2]
        if not newline or last == self._last:
            return
        self._last = last
        record = json.loads(last)
        self._tell(
            Progress(
                stage="learn", done=record["step"] + 1, total=self._total, detail=_described(record, self._domains)
            )
        )


def _described(record: dict[str, Any], domains: Sequence[str]) -> str:
    top = sorted(zip(record["weights"], domains, strict=True), reverse=True)[:3]
    speed = record["tokens"] / max(record["seconds"], 1e-9)
    leading = ", ".join(f"{name} {weight:.2f}" for weight, name in top)
    return f"target loss {record['val_loss']:.3f}, {speed:,.0f} tokens/s, {leading}"


def _weight_table(corpus: TokenCache, result: WorkerResult) -> WeightTable:
    return from_domain_weights(
        corpus.sample_ids(),
        np.asarray(corpus.domain),
        np.asarray(corpus.num_targets),
        corpus.domains,
        np.array(result.weights),
    )


def _record(lake: Lake, begun: Begun, result: WorkerResult, table: WeightTable, seconds: float) -> dict[str, Any]:
    """Everything worth knowing about a finished run, as JSON."""
    summary = {k: v if v is None or np.isfinite(v) else None for k, v in dataclasses.asdict(result.summary).items()}
    target = TokenCache.open(begun.job.target)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": begun.run_id,
        "status": "finished",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "run_dir": str(begun.folder),
        "snapshot_id": begun.snapshot_id,
        "lake": lake.config.model_dump(include={"url", "text", "domain", "key", "skip_bad_rows"}),
        "target": {
            "url": begun.target_url,
            "text": begun.target_text,
            "num_samples": target.num_rows,
            "num_tokens": int(target.domain_tokens().sum()),
        },
        "learn": begun.job.learn.model_dump(mode="json"),
        "backend": dataclasses.asdict(result.backend),
        "domains": [dataclasses.asdict(domain) for domain in table.domains],
        "summary": summary,
        "verdict": dataclasses.asdict(result.verdict),
    }


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
