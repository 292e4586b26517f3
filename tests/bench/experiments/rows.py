"""Weights of rows against what people, or the experiment, know of the rows; the learner knows nothing of it.

Run: python tests/bench/experiments/rows.py [--tasks noise,clickbait,spam,nl2bash] [--seeds 3] [--work bench-work]
[--penalty 1 --pair-steps 100 --pairs 4]

Of every task a lake of one domain, a target of sound rows, and a label: the area under the curve (AUC) says how often a
sound row scores above another one. Beside the learned weight: length; low loss, u's own; DSIR's importance an n-gram;
low loss of a model of the target alone (validation loss, CCNet's filter); how far that is below u's (RHO-loss). Rows
that came after the run are compared under the copies that it kept, and scored by its scorer, if it may be used. Default
settings throughout, but for what the command line says. Ends with one line for each thing that must be shown, and
writes `results/rows/TASK.json`; with other settings than the defaults it writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from lakes import DATA, clean_pairs, damaged, is_ready
from numpy.typing import NDArray
from results import provenance, rows_table
from run import Teller
from scipy.stats import rankdata

import curator
from curator.begun import Begun
from curator.dsir import ngram_buckets
from curator.prepare import check_machine
from curator.retrain import Training, training_config
from curator.run import Run
from curator.trainings import train_all
from optim.learners.dsir import bucket_counts, log_importance, log_ratios

RESULTS = Path(__file__).parent / "results" / "rows"
LATER = 0.2
"""Share of the rows that come to the lake after the run."""

LATER_ROWS = {"copies": "kept copies, on later rows", "text": "scorer, on later rows"}
VALIDATION_STEPS = 100
"""Of 2,048 tokens, of the model of the target alone: as many as a pair of copies takes."""

Score = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Rows (text, group) of which those in `sound` are good, a target, and the least AUC of the other groups."""

    rows: list[tuple[str, str]]
    target: list[str]
    wanted: Mapping[str, float | None]
    sound: str = "sound"


def noise() -> Task:
    """Half of 6,000 instruction pairs are sound, a sixth each mispaired, scrambled and with random characters."""
    pairs, target, _ = clean_pairs()
    rng = np.random.default_rng(10)
    rows = []
    for place, (instruction, response) in enumerate(pairs):
        kind = ("mispaired", "scrambled", "characters")[place % 3] if place < len(pairs) // 2 else "sound"
        if kind == "mispaired":
            response = pairs[(place + 600) % len(pairs)][1]
        elif kind != "sound":
            response = damaged(response, kind, rng)
        rows.append((f"{instruction}\n{response}", kind))
    return Task(rows, target, {"characters": 0.95, "scrambled": 0.75, "mispaired": None})


def clickbait() -> Task:
    """Headlines; those of newspapers are sound, and 500 of them are known to be."""
    table = pl.read_parquet(DATA / "quality" / "clickbait.parquet")
    return _labelled(table["text"], table["clickbait"] == 0, "clickbait", num_target=500, wanted=0.98)


def spam() -> Task:
    """Mails; those that were wanted are sound, and 300 of them are known to be."""
    table = pl.read_parquet(DATA / "quality" / "spamassassin.parquet")
    return _labelled(table["text"], table["spam"] == 0, "spam", num_target=300, wanted=0.95)


def nl2bash() -> Task:
    """Commands written by models; sound if most judges accepted them. The target are pairs by experts."""
    table = pl.read_parquet(DATA / "quality" / "nl2bash_judgements.parquet")
    texts = table["instruction"] + "\n" + table["response"]
    labels = pl.select(pl.when(table["correct_command"] > 0.5).then(pl.lit("sound")).otherwise(pl.lit("refused")))
    experts = pl.read_parquet(DATA / "instruct" / "nl2bash.parquet").sample(600, seed=0, shuffle=True)
    target = (experts["instruction"] + "\n" + experts["response"]).to_list()
    return Task(list(zip(texts, labels.to_series(), strict=True)), target, {"refused": 0.68})


TASKS: dict[str, Callable[[], Task]] = {"noise": noise, "clickbait": clickbait, "spam": spam, "nl2bash": nl2bash}


def main() -> int:
    """The exit code says whether everything that must be shown was."""
    arguments = _arguments()
    if not is_ready(arguments.work):
        return 2
    over = {"penalty": arguments.penalty, "steps": arguments.pair_steps, "pairs": arguments.pairs}
    over = {name: value for name, value in over.items() if value is not None}
    folder = arguments.work.resolve() / "rows" / "-".join(["defaults", *(f"{k}={v:g}" for k, v in over.items())])
    shown = True
    for name in arguments.tasks:
        task = TASKS[name]()
        found = [_seed(task, folder / f"{name}-{seed}", seed, over) for seed in range(arguments.seeds)]
        values = provenance() | {"seeds": arguments.seeds, "wanted": dict(task.wanted), "auc": found}
        if not over:
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        print(rows_table(name, values))
        for group, wanted in task.wanted.items():
            mean = float(np.mean([one["learned"][group] for one in found]))
            if wanted is None:
                print(f"       {name}: {group} {mean:.3f}")
                continue
            shown &= mean >= wanted
            print(f"{'shown ' if mean >= wanted else 'MISSED'}  {name}: {group} {mean:.3f} (wanted {wanted:g})")
    return int(not shown)


def rows_of(task: Task, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Those that the run sees, and those that come later; in an order of the seed's own."""
    order = np.random.default_rng(seed).permutation(len(task.rows))
    rows = pl.DataFrame([task.rows[i] for i in order], schema=["text", "group"], orient="row")
    rows = rows.with_columns(domain=pl.lit("all"), key=pl.int_range(pl.len()).cast(pl.String))
    return rows[: -round(LATER * len(rows))], rows[-round(LATER * len(rows)) :]


def write_lake(task: Task, now: pl.DataFrame, folder: Path) -> None:
    """As `lake/now.parquet` and `target.parquet`, unless they are there."""
    (folder / "lake").mkdir(parents=True, exist_ok=True)
    if not (folder / "lake" / "now.parquet").exists():
        now.write_parquet(folder / "lake" / "now.parquet")
        pl.DataFrame({"text": task.target}).write_parquet(folder / "target.parquet")


def open_lake(folder: Path) -> curator.Lake:
    """The lake of `write_lake`."""
    return curator.open_lake(str(folder / "lake"), text="text", domain="domain", key="key")


def learned(lake: curator.Lake, folder: Path, seed: int, over: Mapping[str, Any]) -> Run:
    """Its run, learned now or found from before."""
    runs, tell = lake.runs(), Teller(folder.name)
    settings = {"seed": seed, "granularity": "sample", "on_progress": tell, "rows": dict(over)}
    run = runs[0] if runs else lake.learn(str(folder / "target.parquet"), **settings)
    tell.end(repr(run))
    return run


def _seed(task: Task, folder: Path, seed: int, over: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The AUC of every group by every score, of one run."""
    now, later = rows_of(task, seed)
    write_lake(task, now, folder)
    with open_lake(folder) as lake:
        run = learned(lake, folder, seed, over)
        gaps = lake.sql(f"SELECT sample_id AS key, gap, loss FROM row_gaps WHERE run_id = '{run.run_id}'").pl()
        measured = now.join(gaps, on="key")
        if not (folder / "lake" / "later.parquet").exists():
            later.write_parquet(folder / "lake" / "later.parquet")
        lake.ingest()
        found = {"learned": _aucs(task, measured, -measured["gap"])}
        for way in run.ways_to_score:
            lake.score(run, folder / way, way=way)
            scored = pl.read_parquet(str(folder / way / "**" / "*.parquet"))
            predicted = later.join(scored, left_on="key", right_on="sample_id")
            found[LATER_ROWS[way]] = _aucs(task, predicted, predicted["row_weight"])
        measured = measured.join(_validation_losses(lake, run, seed), on="key")
    texts = measured["text"].to_list()
    return found | {
        "low loss": _aucs(task, measured, -measured["loss"]),
        "validation loss": _aucs(task, measured, -measured["validation"]),
        "RHO": _aucs(task, measured, measured["loss"] - measured["validation"]),
        "DSIR": _aucs(task, measured, pl.Series(_importance(texts, task.target))),
        "length": _aucs(task, measured, measured["text"].str.len_chars()),
    }


def _validation_losses(lake: curator.Lake, run: Run, seed: int) -> pl.DataFrame:
    """Loss per token of every row of the lake under a model that is trained on the target alone."""
    job = Begun.read(run.run_dir).job
    config = training_config(job.learn, steps=VALIDATION_STEPS, tokens_per_step=2048, seeds=1)
    training = Training(
        corpus=job.target,
        test=job.corpus,
        weights=(1.0,),
        seed=seed,
        model=job.model,
        config=config,
        folder=lake.workdir / "trainings",
    )
    name = ("validation", seed)
    trained = train_all({name: training}, config, check_machine(config), Teller("validation"))[name]
    rows = training.open_test()
    losses = np.array(trained.losses) / np.asarray(rows.num_targets)
    return pl.DataFrame({"key": rows.sample_ids().to_pylist(), "validation": losses})


def _aucs(task: Task, rows: pl.DataFrame, score: pl.Series) -> dict[str, float]:
    group, value = rows["group"].to_numpy(), score.to_numpy()
    return {other: auc(value[group == task.sound], value[group == other]) for other in task.wanted}


def _importance(texts: Sequence[str], target: Sequence[str]) -> Score:
    """DSIR's, the mean over a row's n-grams."""
    buckets, row = ngram_buckets(texts)
    ratio = log_ratios(bucket_counts(ngram_buckets(target)[0]), bucket_counts(buckets))
    return log_importance(buckets, row, len(texts), ratio) / np.maximum(np.bincount(row, minlength=len(texts)), 1)


def auc(sound: Score, other: Score) -> float:
    """The chance that a sound row scores above another one; ties count half (Mann and Whitney 1947)."""
    ranks = rankdata(np.concatenate([sound, other]))[: len(sound)]
    return float((ranks.sum() - len(sound) * (len(sound) + 1) / 2) / (len(sound) * len(other)))


def _labelled(texts: pl.Series, is_sound: pl.Series, other: str, *, num_target: int, wanted: float) -> Task:
    order = np.random.default_rng(7).permutation(len(texts))
    rows = [(texts[int(i)], "sound" if is_sound[int(i)] else other) for i in order]
    known = [place for place, (_, group) in enumerate(rows) if group == "sound"][:num_target]
    taken = set(known)
    rest = [row for place, row in enumerate(rows) if place not in taken]
    return Task(rest, [rows[place][0] for place in known], {other: wanted})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--penalty", type=float)
    parser.add_argument("--pair-steps", type=int)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
