"""What a run on a lake will take, before it is begun: rows, tokens, steps, time, memory, bytes that publishing writes.

Rows are counted. Tokens are estimated from some rows of every domain: with b_i bytes and t_i tokens of row i, the
ratio r_d = Σt_i/Σb_i of the rows looked at times the bytes B_d of the whole domain, which the index knows; its
variance is B_d²·(1 − n_d/N_d)·s²/(n_d·b̄_d²) with s² that of the residuals t_i − r_d·b_i (Cochran, Sampling Techniques,
1977, section 6.5). Time is measured: the run's own workers take a few steps on those rows, in the layout that the
run would have, on this machine as busy as it is now.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curator import prepare, trajectory
from curator.clusters import num_clusters
from curator.config import LearnConfig, TargetConfig
from curator.intervals import Estimate
from curator.learn import run_workers
from curator.progress import Progress, ProgressCallback
from curator.tokens import RowBatch, TokenCache, write_cache
from optim import launch
from optim.learners.fixed import uniform
from optim.learners.learner import FORWARD_SHARE

if TYPE_CHECKING:
    from curator.lake import Lake

CALIBRATION_STEPS = 8
"""Steps that are timed unless another number is asked for."""
_WARM_STEPS = 2
"""Taken before these and not timed: memory is laid out, kernels are chosen."""
_SAMPLE_ROWS = 8192
"""Rows that are tokenized, about, in equal parts of the domains."""
_LEAST_OF_DOMAIN = 32
_WEIGHT_BYTES = 8
"""Of a row in a published file at most: two float32, before compression; the run's id is one entry of a dictionary."""
_FOOTER_BYTES = 4096
"""Of a row group's share of a footer for three more columns, at most."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Steps that were timed: how many, seconds of one with the 95 % interval of their mean, compute tokens of one.

    `start_seconds` went by before the first step: starting workers, building the model.
    """

    num_steps: int
    step_seconds: Estimate
    step_compute_tokens: float
    start_seconds: float

    def seconds_of(self, compute_tokens: float) -> Estimate:
        """Of other work of the same model, by its target tokens through forward and backward."""
        share = compute_tokens / self.step_compute_tokens
        found = self.step_seconds
        return Estimate(mean=share * found.mean, low=share * found.low, high=share * found.high)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take; an `Estimate` has the ends of its interval.

    `tokens` are those of all usable rows, `step_tokens` the target tokens of a step at most. `search_trainings` are the
    models of the line search: at least those of every place, at most also those of the other seeds. `publish_bytes` is
    what a version by copies writes; on S3 the service copies nearly all of it by itself. `data_parallel` and `device`
    are how the workers would run here. `seconds` are of the whole run, with its parts in `parts`; None without a
    calibration, or for a method that takes no steps.
    """

    num_files: int
    num_rows: int
    num_domains: int
    num_sampled: int
    num_target_rows: int
    tokens: Estimate
    steps: int
    step_tokens: int
    search_trainings: tuple[int, int]
    publish_bytes: Estimate
    data_parallel: int
    device: launch.Device
    calibration: Calibration | None
    seconds: Estimate | None
    parts: dict[str, Estimate]


def forecast(
    lake: Lake,
    target: TargetConfig,
    config: LearnConfig,
    on_progress: ProgressCallback,
    *,
    calibration_steps: int = CALIBRATION_STEPS,
) -> Forecast:
    """Say what `lake.learn` with these settings will take; everything is checked that it checks before its workers.

    Only the local index is brought up to date; the sample and what is trained on it are removed again.

    Raises:
        InputError, ConfigError: what `learn` would refuse.
        LearningError: the workers failed.
    """
    launch.check_train_extra()
    hf_config = prepare.model_config(config)
    num_layers = prepare.check_model(config, hf_config)
    goal = prepare.find_goal(lake, target)
    prepare.check_solver(config, num_layers)
    device = prepare.check_machine(config)
    config = prepare.with_data_parallel(config, device)
    lake.ingest(on_progress)
    domains = prepare.usable_domains(lake, config)
    texts = prepare.distinct_texts(goal, "target")
    prepare.check_target_size(config, len(texts), len(domains), goal)
    with tempfile.TemporaryDirectory(prefix="lake-curator-plan-") as folder:
        sample = _sample(lake, [name for name, _ in domains], texts, config, Path(folder))
        prior, num_parts = prepare.starting_weights(config.weights.prior, sample.corpus), len(domains)
        if config.granularity == "cluster":
            sample = _in_parts(sample, num_clusters(lake, [rows for _, rows in domains], config.clusters))
            num_parts = len(sample.corpus.domains)
            prior = uniform(num_parts).tolist()
        made = None
        if calibration_steps and config.is_stepwise:
            made = _calibrate(lake, sample, config, prior, device, calibration_steps, on_progress)
    size = sum(file.size_bytes for file in lake.corpus.files)
    added = _WEIGHT_BYTES * lake.corpus.num_rows + _FOOTER_BYTES * sum(
        file.num_row_groups for file in lake.corpus.files
    )
    trainings = _trainings(config, num_parts)
    parts = _parts(made, sample, config, num_parts, trainings) if made else {}
    in_step = min(config.domains_per_step, num_parts)
    return Forecast(
        num_files=len(lake.corpus.files),
        num_rows=lake.corpus.num_rows,
        num_domains=len(domains),
        num_sampled=sample.corpus.num_rows,
        num_target_rows=len(texts),
        tokens=sample.tokens,
        steps=config.num_total_steps(num_parts),
        step_tokens=(config.num_rows_per_domain(num_parts) * in_step + config.target_rows) * config.sequence_length,
        search_trainings=trainings,
        publish_bytes=Estimate(mean=size + added / 2, low=size, high=size + added),
        data_parallel=config.layout.data_parallel,
        device=device,
        calibration=made,
        seconds=_sum(list(parts.values())) if made else None,
        parts=parts,
    )


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Some rows of every domain as the caches of a run, with what they tell of the whole lake."""

    folder: Path
    corpus: TokenCache
    target: TokenCache
    tokens: Estimate
    num_rows: int
    tokenize_seconds: Estimate


def _sample(lake: Lake, names: Sequence[str], texts: Sequence[str], config: LearnConfig, folder: Path) -> _Sample:
    started = time.monotonic()
    tokenizer = prepare.tokenizer_for(lake, names, texts, config)
    train_seconds = time.monotonic() - started
    query = "SELECT domain, count(*), sum(num_bytes) FROM sample_index WHERE usable GROUP BY domain"
    whole = {str(name): (rows, size) for name, rows, size in lake.connection.execute(query).fetchall()}
    rows_D, bytes_D = np.array([whole[name] for name in names], np.float64).T
    batches = list(_rows(lake, names))
    places = [folder / "corpus", folder / "target"]
    for place in places:
        place.mkdir()
    started = time.monotonic()
    corpus = write_cache(places[0], tokenizer, batches, names)
    seconds = time.monotonic() - started
    bytes_R = _num_bytes(batches)
    per_byte = seconds / bytes_R.sum()
    taken = train_seconds + per_byte * bytes_D.sum()
    return _Sample(
        folder=folder,
        corpus=corpus,
        target=write_cache(places[1], tokenizer, [prepare.row_batch(texts)], ["target"]),
        tokens=_tokens(np.asarray(corpus.num_targets), bytes_R, np.asarray(corpus.domain), rows_D, bytes_D),
        num_rows=int(rows_D.sum()),
        tokenize_seconds=Estimate(mean=taken, low=taken, high=taken),
    )


def _rows(lake: Lake, names: Sequence[str]) -> Iterator[RowBatch]:
    """The rows of every domain whose ids come first by md5, equally many of each as far as there are."""
    most = max(_LEAST_OF_DOMAIN, _SAMPLE_ROWS // len(names))
    first = (
        "SELECT sample_id FROM (SELECT sample_id, row_number() OVER "
        "(PARTITION BY domain ORDER BY md5(sample_id), sample_id) AS place FROM sample_index WHERE usable) "
        f"WHERE place <= {most}"
    )
    yield from lake.text_batches(names, condition=f"AND sample_id IN ({first})")


def _num_bytes(batches: Sequence[RowBatch]) -> NDArray[np.float64]:
    """The bytes of rows as the index counts them, in the order of a cache: that of their ids."""
    ids = pa.concat_arrays([batch.sample_id.cast(pa.string()) for batch in batches])
    texts = pa.chunked_array([pa.array(batch.text, pa.large_string()) for batch in batches])
    found: NDArray[np.float64] = pc.binary_length(texts).take(pc.sort_indices(ids)).to_numpy().astype(np.float64)
    return found


def _tokens(
    tokens_R: NDArray[np.int64],
    bytes_R: NDArray[np.float64],
    domain_R: NDArray[np.int32],
    rows_D: NDArray[np.float64],
    bytes_D: NDArray[np.float64],
) -> Estimate:
    """Target tokens of the whole lake, with the 95 % interval of the sum over domains (see the module)."""
    mean = variance = 0.0
    for d, (num_rows, num_bytes) in enumerate(zip(rows_D, bytes_D, strict=True)):
        own = domain_R == d
        tokens_N, bytes_N, num = tokens_R[own], bytes_R[own], int(own.sum())
        ratio = float(tokens_N.sum() / bytes_N.sum())
        mean += ratio * num_bytes
        if num > 1:
            residuals = float(((tokens_N - ratio * bytes_N) ** 2).sum()) / (num - 1)
            variance += num_bytes**2 * max(0.0, 1 - num / num_rows) * residuals / (num * bytes_N.mean() ** 2)
    margin = 1.96 * math.sqrt(variance)
    return Estimate(mean=mean, low=mean - margin, high=mean + margin)


def _in_parts(sample: _Sample, num_D: Sequence[int]) -> _Sample:
    """The sample with its domains in so many parts each, as clusters would be: any parts cost the same."""
    domain_R = np.asarray(sample.corpus.domain)
    num_D = np.minimum(num_D, np.bincount(domain_R, minlength=len(num_D))).tolist()  # none of them empty
    rank_R = np.empty(len(domain_R), np.int64)
    for domain in range(len(num_D)):
        own = np.flatnonzero(domain_R == domain)
        rank_R[own] = np.arange(len(own)) % num_D[domain]
    label_R = (np.cumsum(num_D) - num_D)[domain_R] + rank_R
    places = sample.folder / "parts"
    places.mkdir()
    sample.corpus.relabelled(places, label_R.astype(np.int32), [str(k) for k in range(sum(num_D))])
    return dataclasses.replace(sample, corpus=TokenCache.open(places))


def _calibrate(
    lake: Lake,
    sample: _Sample,
    config: LearnConfig,
    prior: Sequence[float],
    device: launch.Device,
    num_steps: int,
    on_progress: ProgressCallback,
) -> Calibration:
    """Let the run's workers take some steps on the sample, with nothing after them."""
    steps = _WARM_STEPS + num_steps
    short = config.model_copy(update={"steps": steps, "granularity": "domain"})
    run = sample.folder / "run"
    run.mkdir()
    job = prepare.worker_job(run, sample.corpus, sample.target, short, prepare.model_config(config), prior)
    lake.release()

    def tell(state: Progress) -> None:
        on_progress(Progress(stage="calibrate", done=state.done, total=state.total, detail="steps timed"))

    started = time.monotonic()
    run_workers(job, device, tell)
    wall = time.monotonic() - started
    records = [json.loads(line) for line in (run / trajectory.LINES).read_text(encoding="utf-8").splitlines()]
    seconds = [record["seconds"] for record in records]
    timed = [after - before for before, after in pairwise(seconds)][-num_steps:]
    return Calibration(
        num_steps=len(timed),
        step_seconds=_mean(timed),
        step_compute_tokens=float(np.mean([record["compute_tokens"] for record in records[-num_steps:]])),
        start_seconds=max(0.0, wall - seconds[-1]),
    )


def _mean(values: Sequence[float]) -> Estimate:
    """The mean with its 95 % interval by Student; without ends of one value alone."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean=mean, low=0.0, high=math.inf)
    margin = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean=mean, low=max(0.0, mean - margin), high=mean + margin)


def _trainings(config: LearnConfig, num_domains: int) -> tuple[int, int]:
    """Models that the line search trains, at least and at most: with the other seeds unless the prior does best."""
    if not config.is_judged(num_domains):
        return 0, 0
    search = config.line_search
    first = len({0.0, *search.places})
    chosen = first + (search.num_contenders + 1) * (search.num_choosing_seeds - 1)
    return chosen, chosen + 2 * (search.seeds - search.num_choosing_seeds)


def _parts(
    made: Calibration, sample: _Sample, config: LearnConfig, num_domains: int, trainings: tuple[int, int]
) -> dict[str, Estimate]:
    """Seconds of the parts of a run."""
    num_steps, num_pairs = config.num_solver_steps(num_domains), len(config.pair_starts(num_domains))
    step, start = made.step_seconds, made.start_seconds
    parts = {
        "tokenize": sample.tokenize_seconds,
        "learn": Estimate(
            mean=start + num_steps * step.mean,
            low=start + num_steps * step.low,
            high=start + num_steps * step.high,
        ),
    }
    if num_pairs:
        share = min(1.0, config.rows.max_rows / sample.num_rows)
        measured = 2 * FORWARD_SHARE * share * sample.tokens.mean
        trained = config.num_pair_steps * made.step_compute_tokens
        parts["rows"] = made.seconds_of(num_pairs * (trained + measured))
    if trainings[1]:
        each = made.seconds_of(math.prod(config.search_size))
        few, many = trainings
        parts["judge"] = Estimate(mean=many * each.mean, low=few * each.low, high=many * each.high)
    return parts


def _sum(parts: Sequence[Estimate]) -> Estimate:
    """Their ends added up, too: parts of a run are slow together where the machine is."""
    mean, low, high = (sum(getattr(part, end) for part in parts) for end in ("mean", "low", "high"))
    return Estimate(mean=mean, low=low, high=high)
