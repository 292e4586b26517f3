"""The demo's promise over five seeds: the corrupted domain loses weight, the related one gains it.

Prints learned weight over natural share of every domain and seed, and the worst seed against the bounds that the test
of one seed asserts. Run: python tests/bench/bench_demo_seeds.py [SEEDS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from curator.demo import MAX_CORRUPTED_RATIO, MIN_RELATED_RATIO, run_demo


def main(num_seeds: int) -> int:
    """One line a seed; the exit code says whether every seed kept the promise."""
    worst_related, worst_corrupted = float("inf"), 0.0
    for seed in range(num_seeds):
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            result = run_demo(Path(folder) / "demo", seed=seed)
            seconds = time.monotonic() - started
        ratios = result.ratios
        worst_related = min(worst_related, ratios[result.related])
        worst_corrupted = max(worst_corrupted, ratios[result.corrupted])
        shown = "  ".join(f"{name} {ratio:.2f}" for name, ratio in sorted(ratios.items(), key=lambda item: -item[1]))
        print(f"seed {seed}  {seconds:5.0f} s  {result.run.record['verdict']['status']:<13}  {shown}", flush=True)
    print(
        f"worst of {num_seeds}: {result.related} {worst_related:.2f} (bound > {MIN_RELATED_RATIO}), "
        f"{result.corrupted} {worst_corrupted:.3f} (bound < {MAX_CORRUPTED_RATIO})"
    )
    return int(worst_related <= MIN_RELATED_RATIO or worst_corrupted >= MAX_CORRUPTED_RATIO)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
