"""Keep weights up to date while the lake grows: what a scheduled job does, three times.

python examples/06_refresh_a_growing_lake.py FOLDER [STEPS]
"""

import sys
from pathlib import Path

import polars as pl

import curator
from curator import demo_corpus


def main(folder: Path, steps: int) -> None:
    corpus = demo_corpus.build(folder)
    settings = curator.LearnConfig(steps=steps)

    def refresh(occasion: str) -> None:
        with curator.open_lake(str(corpus.lake), text="text", domain="source") as lake:
            verdicts = ["converged", "not converged", "no gain"]
            done = lake.refresh(str(corpus.target), learn=settings, verdicts=verdicts)
            print(f"{occasion}: {done.outcome}, version {done.version}")
            for reason in done.reasons:
                print("   ", reason.said)

    refresh("the first night")
    refresh("nothing has changed")
    licences = pl.read_parquet(corpus.lake / "licences.parquet")
    licences.head(20).with_columns(pl.col("text") + " (copied)").write_parquet(corpus.lake / "licences-2.parquet")
    refresh("twenty new rows of a known domain")

    with curator.open_lake(str(corpus.lake)) as lake:
        print(lake.sql("SELECT version, num_files, num_rows, run_id FROM versions"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
