"""One learning run: prepare it → start workers → read their result → a run folder with the weight artifact."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curator import row_gaps, trajectory
from curator.begun import Begun, LastVersion, explaining_interruptions
from curator.clusters import Clusters
from curator.config import EXECUTION_FIELDS, LearnConfig, TargetConfig, override
from curator.drift import CONTENT
from curator.errors import ConfigError, InputError
from curator.files import write_atomically
from curator.memory import is_kept
from curator.places import CHECKPOINTS, PAIRS, RESULT
from curator.prepare import check_machine, check_model, check_solver, distinct_texts, find_goal, fingerprint, prepare
from curator.progress import Progress, ProgressCallback
from curator.stopwatch import Stopwatch
from curator.tokens import TokenCache
from curator.weights import WEIGHTS, WeightTable, weight_table
from optim import launch

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.line_search import LineSearch
    from curator.row_gaps import RowWeights
    from curator.worker import WorkerJob, WorkerResult
    from optim.diagnostics import Verdict

SCHEMA_VERSION = 1
RECORD = "run.json"
_CHECKPOINT_GRACE_SECONDS = 600.0
"""How long workers may take to write a checkpoint when a run is stopped; stopping it once more ends them at once."""
_LONGEST_RECORD = 1 << 20
"""Bytes of a trajectory that certainly hold its last line."""


def learn(
    lake: Lake,
    target: TargetConfig,
    config: LearnConfig,
    run_dir: Path | None,
    on_progress: ProgressCallback,
    *,
    last: LastVersion | None = None,
    warm_start: bool = False,
) -> str:
    """Learn domain weights of `lake` for `target` and record the run; returns its id.

    Everything is written under the run folder first; the record that makes the run known to the lake comes last. What
    was found is compared with the version `last`, if there is one, and begins at its weights with `warm_start`.
    """
    started = time.monotonic()
    begun = prepare(lake, target, config, run_dir, on_progress, last=last, warm_start=warm_start)
    watch = Stopwatch(begun.folder, on_progress, already=time.monotonic() - started)
    with explaining_interruptions(lake, begun.folder):
        if config.method == "dsir":
            _count_words(lake, target, begun, watch)
        _finish(lake, begun, watch)
    return begun.run_id


def resume(lake: Lake, folder: Path, layout: Mapping[str, Any], on_progress: ProgressCallback) -> str:
    """Go on with the run in `folder` from its newest checkpoint, under another layout if one is given.

    Raises:
        ConfigError: there is no unfinished run there.
        InputError: the lake or the token cache is not what the run began with.
    """
    launch.check_train_extra()
    folder = folder.resolve()
    begun = Begun.read(folder)
    watch = Stopwatch(folder, on_progress)
    if (folder / RECORD).exists():
        raise ConfigError(f"run {begun.run_id} in {folder} is finished; there is nothing to resume")
    if begun.job.learn.method == "dsir":
        raise ConfigError("a run by dsir has nothing to go on from", hint="learn anew")
    _check_only_execution(layout)
    config = override(begun.job.learn, **layout)
    check_solver(config, check_model(config, dict(begun.job.model.hf_config)))
    lake.check_destination()
    begun = dataclasses.replace(begun, job=dataclasses.replace(begun.job, learn=config))
    with explaining_interruptions(lake, folder):
        lake.ingest(watch)
        if lake.snapshot_id != begun.snapshot_id:
            raise InputError(
                f"{lake.url} has changed since run {begun.run_id} began (snapshot {begun.snapshot_id}, now "
                f"{lake.snapshot_id})",
                hint="its checkpoints belong to the old rows: learn anew, or restore the files",
            )
        gone = [cache for cache in (begun.job.corpus, begun.job.target) if not cache.is_dir()]
        if gone:
            raise InputError(f"the token cache {gone[0]} of run {begun.run_id} is gone", hint="learn anew")
        begun.write()
        _finish(lake, begun, watch)
    return begun.run_id


def _check_only_execution(settings: Mapping[str, Any]) -> None:
    changed = sorted(settings.keys() - EXECUTION_FIELDS)
    if changed:
        raise ConfigError(
            f"{changed[0]} cannot change when a run is resumed",
            hint=f"only how it is executed can: "
            f"{', '.join(sorted(EXECUTION_FIELDS & LearnConfig.model_fields.keys()))}",
        )


def _finish(lake: Lake, begun: Begun, watch: Stopwatch) -> None:
    """Run the workers, unless they have been at their end before, judge what they found, and record it."""
    folder = begun.folder
    lake.release()
    if not (folder / RESULT).exists():
        _search(lake, begun, watch)
    result, search = _judged(lake, begun, watch)
    compared = _compared(lake, begun, result, watch)
    corpus, rows, clusters = TokenCache.open(begun.job.corpus), None, None
    if begun.job.learn.granularity == "sample":
        rows = _weigh_rows(lake, begun, corpus, watch)
        result = dataclasses.replace(result, verdict=_with_rows(result.verdict, rows, len(corpus.domains)))
    table = _weight_table(corpus, result, rows.weights if rows else None)
    prior, start = begun.job.prior, begun.job.start
    parts = table.domains
    if begun.job.learn.granularity == "cluster":
        clusters = Clusters.of(corpus).learned(parts)
        clusters.write(folder / row_gaps.CLUSTERS)
        table = _of_domains(corpus, table, clusters)
        prior, start = clusters.fold(prior), start and clusters.fold(start)
    pq.write_table(table.samples, folder / WEIGHTS, compression="zstd")
    fold = clusters.fold if clusters else None
    trajectory.write(folder, begun.run_id, [domain.domain for domain in table.domains], fold)
    record = _record(lake, begun, result, table, watch.seconds, prior=prior, start=start)
    record["line_search"] = search and dataclasses.asdict(search)
    record["last_version"] = compared
    record["content"] = _keep_content(begun)
    record["rows"] = rows and rows.figures
    record["clusters"] = clusters and clusters.figures(parts)
    write_atomically(folder / RECORD, json.dumps(record, indent=1))
    with lake.writing():
        lake.record_run(folder, record)
    for name in (CHECKPOINTS, PAIRS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _search(lake: Lake, begun: Begun, watch: Stopwatch) -> None:
    """Look for the weights; what was found is written into the run folder."""
    device = check_machine(begun.job.learn)
    if begun.job.learn.method == "regmix":
        _search_mixtures(lake, begun, device, watch)
    else:
        run_workers(begun.job, device, watch)


def _judged(lake: Lake, begun: Begun, watch: Stopwatch) -> tuple[WorkerResult, LineSearch | None]:
    """What was found, or as much of it as a line search bears out, and the line search, if there was one."""
    from curator.worker import WorkerResult

    result = WorkerResult.read(begun.folder)
    if not begun.job.learn.is_judged(len(begun.job.prior)):
        return result.at(_capped(begun.job, result.weights), 1), None
    if result.verdict.status == "no gain":  # nothing to judge: what was learned is noise
        return result.at(_capped(begun.job, begun.job.prior), 0), None
    search = _judge(lake, begun, result, watch)
    return search.applied_to(result), search


def _keep_content(begun: Begun) -> bool:
    """Put beside the weights what the rows look like; a run that an older version of this package began has nothing."""
    content = begun.job.target.parent / CONTENT
    if not content.exists():
        return False
    shutil.copyfile(content, begun.folder / CONTENT)
    return True


def _compared(lake: Lake, begun: Begun, result: WorkerResult, on_progress: ProgressCallback) -> dict[str, Any] | None:
    """What was found against the weights of the version before: figures, or why there are none."""
    if begun.last is None:
        return None
    job, corpus = begun.job, TokenCache.open(begun.job.corpus)
    told = {"version": begun.last.version, "run_id": begun.last.run_id}
    last = begun.last.weights_of(corpus.domains)
    if not job.learn.is_judged(len(job.prior)):
        return told | {"why_not": "its weights were not judged on target rows kept out (learn.line_search)"}
    if job.learn.granularity == "cluster":
        return told | {"why_not": "the clusters of a run have no weights in another"}
    if last is None:
        return told | {"why_not": "that version had no weights of the domains that there are now"}
    from curator.line_search import against_last

    found = against_last(job, result.weights, last, lake.workdir, check_machine(job.learn), on_progress)
    return told | dataclasses.asdict(found)


def _weigh_rows(lake: Lake, begun: Begun, corpus: TokenCache, on_progress: ProgressCallback) -> row_gaps.RowWeights:
    from curator import copies
    from curator.unmeasured import score_unmeasured

    measured, settings = row_gaps.MeasuredRows.read(begun.folder), begun.job.learn.rows
    scored = None
    if settings.scorer:
        target = TokenCache.open(begun.job.target)
        scored = score_unmeasured(lake, corpus, target, measured, settings.sharpness, on_progress)
    by_content = lake.config.key is None
    rows = row_gaps.weigh_rows(
        begun.folder,
        begun.run_id,
        corpus,
        measured,
        scored,
        sharpness=settings.sharpness,
        near_duplicates=settings.near_duplicates,
        by_content=by_content,
    )
    kept = copies.keep(
        begun.run_id,
        begun.folder,
        begun.folder / row_gaps.COPIES,
        measured,
        corpus,
        begun.job.model.hf_config,
        sequence_length=begun.job.learn.sequence_length,
        worst_share=settings.worst_share,
        reliability=rows.reliability,
        sharpness=settings.sharpness,
    )
    return dataclasses.replace(rows, copies=kept)


def _count_words(lake: Lake, target: TargetConfig, begun: Begun, on_progress: ProgressCallback) -> None:
    from curator.dsir import dsir_weights
    from curator.worker import WorkerResult
    from optim.diagnostics import Verdict

    texts = distinct_texts(find_goal(lake, target), "target")
    corpus, settings = TokenCache.open(begun.job.corpus), begun.job.learn
    weights = dsir_weights(
        lake, texts, corpus, floor=settings.weights.floor, seed=settings.seed, on_progress=on_progress
    )
    WorkerResult(
        weights=weights.tolist(),
        summary=None,
        verdict=Verdict(status="converged", reason="dsir counts words and iterates nothing"),
        backend=None,
        compute_tokens=0.0,
    ).write(begun.folder)


def _capped(job: WorkerJob, weights: Sequence[float]) -> list[float]:
    """The weights without more of a domain than the token budget allows."""
    import torch

    from curator.worker import share_caps
    from optim.data_weights import capped

    cap_D = share_caps(job.learn, TokenCache.open(job.corpus))
    return capped(torch.tensor(weights, dtype=torch.float64), cap_D).tolist()


def _judge(lake: Lake, begun: Begun, result: WorkerResult, on_progress: ProgressCallback) -> LineSearch:
    from curator.line_search import line_search

    device = check_machine(begun.job.learn)
    return line_search(begun.job, result.weights, lake.workdir, device, on_progress)


def _search_mixtures(lake: Lake, begun: Begun, device: launch.Device, on_progress: ProgressCallback) -> None:
    from curator.regmix import find_weights

    find_weights(begun.job, lake.workdir, device, on_progress).write(begun.folder)


def run_workers(job: WorkerJob, device: launch.Device, on_progress: ProgressCallback) -> None:
    """Start the workers of a job and follow them to their end.

    Raises:
        WorkerError: one of them failed.
    """
    from curator.row_pairs import PROGRESS

    follow_steps = _Follower(
        job.run_dir / trajectory.LINES, TokenCache.open(job.corpus).domains, job.learn.steps, on_progress
    )

    follow_rows = _RowFollower(job.run_dir / PROGRESS, on_progress)

    def follow() -> None:
        follow_steps()
        follow_rows()

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


class _RowFollower:
    """Tells how far the comparison of rows is (`curator.row_pairs`), if there are any."""

    def __init__(self, path: Path, on_progress: ProgressCallback) -> None:
        self._path = path
        self._tell = on_progress
        self._last = ""

    def __call__(self) -> None:
        try:
            noted = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        if noted != self._last:
            self._last = noted
            done, total = map(int, noted.split())
            self._tell(Progress(stage="rows", done=done, total=total, detail="passes of rows"))


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
    loss = "" if record["val_loss"] is None else f"target loss {record['val_loss']:.3f}, "
    return f"{loss}{speed:,.0f} tokens/s, {leading}"


def _with_rows(verdict: Verdict, rows: RowWeights, num_domains: int) -> Verdict:
    """The verdict on the domains and what is said of their rows; of a lake of one domain, on its rows alone."""
    if num_domains > 1 or verdict.status == "unstable":
        return dataclasses.replace(verdict, reason=f"{verdict.reason}; {rows.sentence}")
    found = "its" if rows.reliability > 0 else "nothing but noise tells them apart, so its"
    return dataclasses.replace(
        verdict,
        status="converged" if rows.reliability > 0 else "no gain",
        reason=f"the lake has one domain, and {found} {rows.sentence}",
    )


def _weight_table(corpus: TokenCache, result: WorkerResult, row_weights: NDArray[np.float64] | None) -> WeightTable:
    table = weight_table(
        corpus.sample_ids(),
        np.asarray(corpus.domain),
        np.asarray(corpus.num_targets),
        corpus.domains,
        np.array(result.weights),
        row_weights,
    )
    found = result.summary
    if found is None:
        return table
    unknown = [None] * len(table.domains)
    ends = zip(found.ci_low or unknown, found.ci_high or unknown, found.tokens, strict=True)
    domains = (
        domain.measured(low, high, tokens) for domain, (low, high, tokens) in zip(table.domains, ends, strict=True)
    )
    return dataclasses.replace(table, domains=tuple(domains))


def _of_domains(corpus: TokenCache, parts: WeightTable, clusters: Clusters) -> WeightTable:
    """The table of clusters as one of domains, whose rows weigh within them what their clusters do."""
    label_N = np.asarray(corpus.domain)
    table = weight_table(
        corpus.sample_ids(),
        clusters.domain_K[label_N].astype(np.int32),
        np.asarray(corpus.num_targets),
        clusters.domains,
        np.array(clusters.fold([row.domain_weight for row in parts.domains])),
        clusters.ratio_K[label_N],
    )
    return dataclasses.replace(table, domains=clusters.of_domains(parts.domains, table.domains))


def _record(
    lake: Lake,
    begun: Begun,
    result: WorkerResult,
    table: WeightTable,
    seconds: float,
    *,
    prior: Sequence[float],
    start: Sequence[float] | None,
) -> dict[str, Any]:
    """Everything worth knowing about a finished run, as JSON."""
    figures = result.summary and dataclasses.asdict(result.summary)
    summary = figures and {
        k: v if v is None or np.isfinite(v) else None for k, v in figures.items() if not isinstance(v, list)
    }
    target = TokenCache.open(begun.job.target)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": begun.run_id,
        "status": "finished",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "run_dir": str(begun.folder),
        "snapshot_id": begun.snapshot_id,
        "lake": lake.config.model_dump(include={"text", "domain", "key", "id_hash", "skip_bad_rows"})
        | {"url": lake.address},
        "target": {
            "url": begun.target_url,
            "text": begun.target_text,
            "in_memory": is_kept(lake.workdir, begun.target_url),
            "num_samples": target.num_rows,
            "num_tokens": int(target.domain_tokens().sum()),
            "fingerprint": fingerprint(target.sample_ids()),
        },
        "leaks": begun.leaks.to_json(),
        "duplicates": dict(begun.duplicates),
        "learn": begun.job.learn.model_dump(mode="json"),
        "start": start and {row.domain: share for row, share in zip(table.domains, start, strict=True)},
        "prior": {row.domain: share for row, share in zip(table.domains, prior, strict=True)},
        "backend": result.backend and dataclasses.asdict(result.backend),
        "domains": [dataclasses.asdict(domain) for domain in table.domains],
        "summary": summary,
        "compute_tokens": result.compute_tokens,
        "verdict": dataclasses.asdict(result.verdict),
    }
