"""How soon `curator --help` answers: against Python alone and against Hugging Face's command line, best of five rounds.

Run: python tests/bench/bench_help.py

Wall time, as somebody waits for it, and processor time, which other work on the machine changes less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5
BIN = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "hf --help": [str(BIN / "hf"), "--help"],
    "curator --help": [str(BIN / "curator"), "--help"],
    "curator learn --help": [str(BIN / "curator"), "learn", "--help"],
}
REFERENCE = "hf --help"


def taken(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    """Print a row for each command."""
    rounds = [{name: taken(command) for name, command in COMMANDS.items()} for _ in range(ROUNDS)]
    print(f"| | wall s | processor s | processor time × {REFERENCE} |\n|---|---|---|---|")
    best = {name: tuple(min(one[name][kind] for one in rounds) for kind in (0, 1)) for name in COMMANDS}
    for name, (wall, processor) in best.items():
        print(f"| {name} | {wall:.2f} | {processor:.2f} | {processor / best[REFERENCE][1]:.2f} |")


if __name__ == "__main__":
    main()
