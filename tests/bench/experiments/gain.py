"""Is a model better for the half of the rows that weigh most than for any half of them?

Run: python tests/bench/experiments/gain.py [--seeds 3] [--work bench-work]

The lake of `rows.py --tasks noise`: one domain, half of it damaged; its runs are taken from the work folder, or
learned. Of each run a fresh model is trained on the heavier half of the rows, on a random half, and on the sound rows,
about half of them: what somebody would choose who knew. All on as many tokens, judged on test rows of sound pairs.
The rows, what is learned and the random half differ by seed; initial weights are the same. Ends with what must be
shown, and writes `results/rows/gain.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
from lakes import clean_pairs, is_ready
from results import provenance
from rows import RESULTS, TASKS, learned, open_lake, rows_of, write_lake
from run import DEFAULT_TOKENS_PER_STEP, Teller
from scipy.stats import t

import curator

HALVES = ("heavier", "random", "sound")
WANTED_SHARE = 0.6
"""Of the way from a random half to the sound rows."""


def main() -> int:
    """The exit code says whether everything that must be shown was."""
    arguments = _arguments()
    if not is_ready(arguments.work):
        return 2
    found = [_seed(arguments.work.resolve(), seed) for seed in range(arguments.seeds)]
    losses = np.array([[one[half] for half in HALVES] for one in found])
    differences = losses[:, 0] - losses[:, 1]
    margin = t.ppf(0.975, len(found) - 1) * differences.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.inf
    share = differences.mean() / (losses[:, 2] - losses[:, 1]).mean()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "gain.json").write_text(
        json.dumps(provenance() | {"test_loss": found}, indent=1) + "\n", encoding="utf-8"
    )
    print("| | " + " | ".join(HALVES) + " |\n|---|---|---|---|")
    for seed, row in enumerate(losses):
        print(f"| seed {seed} | " + " | ".join(f"{loss:.4f}" for loss in row) + " |")
    shown = (differences.mean() + margin < 0, share >= WANTED_SHARE)
    print(f"{_said(shown[0])} the heavier half is better by {differences.mean():+.3f} ± {margin:.3f} nats per token")
    print(f"{_said(shown[1])} that is {share:.0%} of what the sound rows give (wanted {WANTED_SHARE:.0%})")
    return int(not all(shown))


def _said(shown: np.bool | bool) -> str:
    return "shown " if shown else "MISSED"


def _seed(work: Path, seed: int) -> dict[str, float]:
    """The test loss of a model trained on each half."""
    task, folder = TASKS["noise"](), work / "rows" / "defaults" / f"noise-{seed}"
    now, _ = rows_of(task, seed)
    write_lake(task, now, folder)
    with open_lake(folder) as lake:
        weights = pl.from_arrow(learned(lake, folder, seed, {}).samples())
    assert isinstance(weights, pl.DataFrame)
    rows = now.join(weights.select("sample_id", "sample_weight"), left_on="key", right_on="sample_id")
    half = len(rows) // 2
    parts = {
        "heavier": rows.sort("sample_weight", descending=True)[:half],
        "random": rows.sample(half, seed=seed, shuffle=True),
        "sound": rows.filter(pl.col("group") == task.sound),
    }
    place = work / "gain" / f"noise-{seed}"
    if not place.exists():
        (place / "lake").mkdir(parents=True)
        texts = [part.select("text", domain=pl.lit(name)) for name, part in parts.items()]
        pl.concat(texts).write_parquet(place / "lake" / "halves.parquet")
        pl.DataFrame({"text": clean_pairs()[2]}).write_parquet(place / "test.parquet")
    with curator.open_lake(str(place / "lake")) as lake:
        comparison = lake.compare(
            *((name, {name: 1.0}) for name in HALVES),
            target=str(folder / "target.parquet"),
            test=str(place / "test.parquet"),
            seeds=1,
            tokens_per_step=DEFAULT_TOKENS_PER_STEP,
            on_progress=Teller(place.name),
        )
    return {name: comparison[name].test_loss for name in HALVES}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
