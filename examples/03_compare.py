"""Find out by training whether learned weights help: fresh models on mixtures, measured on rows that nobody has seen.

    python examples/03_compare.py FOLDER [STEPS] [SEEDS]

FOLDER is made and filled with a small lake of real text first, and its target cut into two parts.
"""

import sys
from pathlib import Path

import polars as pl

import curator
from curator import demo_corpus


def main(folder: Path, steps: int, seeds: int) -> None:
    corpus = demo_corpus.build(folder)
    rows = pl.read_parquet(corpus.target)
    rows[:-300].write_parquet(folder / "learn_from.parquet")
    rows[-300:].write_parquet(folder / "measure_on.parquet")

    with curator.open_lake(str(corpus.lake), text="text", domain="source") as lake:
        lake.learn(str(folder / "learn_from.parquet"), steps=steps)
        found = lake.compare(
            "latest",  # the weights just learned
            ("by hand", {"docstrings": 2, "readmes": 1}),
            target=str(folder / "learn_from.parquet"),
            test=str(folder / "measure_on.parquet"),
            steps=steps,
            tokens_per_step=1024,
            seeds=seeds,
        )
        print(found)
        print(found.verdict)
        print(lake.sql("SELECT mixture, test_loss, judgement FROM comparisons ORDER BY test_loss"))


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), *(given + [100, 3][len(given) :]))
