"""One experiment: learn weights by several methods and seeds, train fresh models on each, compare them with uniform.

Run: python tests/bench/experiments/run.py EXPERIMENT [--methods scalebio,doge,…] [--seeds 3] [--work bench-work]

Everything is kept in the work folder, so a run that was stopped goes on; default settings throughout, but for what the
command line says. Seed k's models are trained on what seed k's learning found, so the intervals hold for the whole
procedure. Ends with one line for each thing that the experiment must show, and with the record of it all (`results`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import results
from checks import CHECKS, weights
from lakes import BUILDERS, Parts, is_ready

import curator
from curator.compare import Comparison
from curator.progress import Progress
from curator.run import Run

TOKENS_PER_STEP = {"multilingual-easy": 1024, "multilingual-hard": 1024}
"""Of the trainings that compare: 300 steps of short sentences are to be about one pass over what a mixture picks."""
DEFAULT_TOKENS_PER_STEP = 2048


def main() -> int:
    """The exit code says whether everything that must be shown was."""
    arguments = _arguments()
    if not is_ready(arguments.work):
        return 2
    folder = arguments.work.resolve() / arguments.experiment
    parts = BUILDERS[arguments.experiment]()
    if not folder.exists():
        parts.write(folder)
    with curator.open_lake(str(folder / "lake"), text="text", domain="domain") as lake:
        weights = {"budget_tokens": budget_tokens(arguments.experiment)}
        runs = {
            method: learned(lake, folder, method, arguments.seeds, model=arguments.model, weights=weights)
            for method in arguments.methods
        }
        comparison = _compared(lake, folder, parts, runs, arguments)
    (folder / "comparison.md").write_text(comparison.to_markdown(), encoding="utf-8")
    print(comparison.to_markdown())
    for method, found in runs.items():
        print(f"{method}: {_shown(found)}; {_compute(found):.2f} M tokens of compute a seed")
        for run in found:
            print(f"  {run.verdict}")
    shown = [check(comparison, runs.get("scalebio", [])) for check in CHECKS[arguments.experiment]]
    for holds, sentence in shown:
        print(f"{'shown ' if holds else 'MISSED'}  {sentence}")
    print(f"recorded in {results.write(arguments.experiment, comparison, runs, shown)}")
    return int(not all(holds for holds, _ in shown))


def budget_tokens(experiment: str) -> int:
    """What the compared models train on, which learning is told."""
    return curator.CompareConfig().steps * TOKENS_PER_STEP.get(experiment, DEFAULT_TOKENS_PER_STEP)


def learned(lake: curator.Lake, folder: Path, method: str, seeds: int, *, model: str, **over: Any) -> list[Run]:
    """A run by each seed, learned now or found from before."""
    known = {_key(run.record["learn"]): run for run in lake.runs()}
    found = []
    for seed in range(seeds):
        run = known.get(_key({"method": method, "seed": seed, "model": model, **over}))
        if run is None:
            tell = Teller(f"{method} {seed}")
            target = str(folder / "target.parquet")
            run = lake.learn(target, method=method, seed=seed, model=model, on_progress=tell, **over)
            tell.end(repr(run))
        found.append(run)
    return found


def _key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the runs of an experiment apart."""
    return (*(settings[name] for name in ("method", "seed", "model")), settings["weights"]["budget_tokens"])


def _compared(
    lake: curator.Lake, folder: Path, parts: Parts, runs: dict[str, list[Run]], arguments: argparse.Namespace
) -> Comparison:
    named = [f"{method}={','.join(run.run_id for run in found)}" for method, found in runs.items()]
    tell = Teller("compare")
    comparison = lake.compare(
        "natural",
        *parts.hand.items(),
        *named,
        target=str(folder / "target.parquet"),
        test=str(folder / "test.parquet"),
        seeds=arguments.seeds,
        model=arguments.model,
        tokens_per_step=TOKENS_PER_STEP.get(arguments.experiment, DEFAULT_TOKENS_PER_STEP),
        on_progress=tell,
    )
    tell.end("done")
    return comparison


def _shown(runs: list[Run]) -> str:
    """Mean weights over the seeds, largest first."""
    leading = sorted(weights(runs).items(), key=lambda item: -item[1])
    return " ".join(f"{name} {weight:.3f}" for name, weight in leading)


def _compute(runs: list[Run]) -> float:
    return sum(run.record["compute_tokens"] for run in runs) / len(runs) / 1e6


class Teller:
    """Says on stderr, now and then, how far the work is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = -1

    def __call__(self, progress: Progress) -> None:
        tenth = 10 * progress.done // max(1, progress.total)
        if progress.stage in ("learn", "rows", "train") and tenth != self._last:
            self._last = tenth
            print(f"{self._name}: {progress.stage} {10 * tenth} %", file=sys.stderr, flush=True)

    def end(self, what: str) -> None:
        print(f"{self._name}: {what}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiment", choices=BUILDERS)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["scalebio"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
