"""What trainers would draw by each exported file against the shares that were learned.

Run: python tests/bench/bench_exports.py [--draws 200000]

The lake has domains whose rows differ 40 times in length (`tests/curator/export_replays.py`), so that a weight in the
wrong unit is off by tens of percent. The last column is the sampling error of that many draws, five standard errors.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "curator"))

from export_replays import REPLAYS, SIGMAS, replay

from curator.export import FORMATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200_000)
    options = parser.parse_args()
    learned = None
    print("| format | unit | draws | web | code | chat | books | spam | largest difference | error of the draws |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for format_, unit in REPLAYS:
            done = replay(format_, Path(folder), unit=unit, num_draws=options.draws)
            if learned is None:
                learned = done.wanted
                print("| learned | | | " + " | ".join(f"{share:.3f}" for share in learned.values()) + " | | |")
            units = {each.name: each for each in FORMATS[format_].units}
            meaning = (units[unit] if unit else FORMATS[format_].units[0]).name
            shares = " | ".join(f"{share:.3f}" for share in done.shares.values())
            error = SIGMAS * max(done.errors.values())
            print(f"| `{format_}` | {meaning} | {done.num_draws:,} | {shares} | {done.difference:.4f} | {error:.4f} |")
            assert done.is_right, format_


if __name__ == "__main__":
    main()
