"""Learn domain weights on a lake, publish them as Parquet columns, and use them in a curation pipeline.

    python examples/01_learn_and_publish.py FOLDER [STEPS]

FOLDER is made and filled with a small lake of real text first; with your own lake, start at `open_lake`.
"""

import sys
from pathlib import Path

import polars as pl

import curator
from curator import demo_corpus


def main(folder: Path, steps: int) -> None:
    corpus = demo_corpus.build(folder)

    with curator.open_lake(str(corpus.lake), text="text", domain="source") as lake:
        run = lake.learn(str(corpus.target), model="tiny", steps=steps, seed=0)
        print(run)
        print(run.domain_weights)  # a relation: also .pl(), .df(), .fetchall()

        publication = lake.publish(run)
        print(f"version {publication.version}: {publication.num_rows} rows in {publication.location}")

        # From here on the weights are ordinary columns of ordinary Parquet files.
        kept = lake.scan().filter(pl.col("sample_weight") > 1).group_by("source").len().sort("len", descending=True)
        print(kept.collect())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
