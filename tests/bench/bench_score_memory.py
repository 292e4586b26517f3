"""Peak memory of `Lake.ingest` and `Lake.score` on a lake that grows from one gigabyte of text to ten.

Run: python tests/bench/bench_score_memory.py [--gigabytes 1,10]

A run of few steps learns on a small file, then the lake grows: files of 100 MB of text, slices of shuffled
documentation of the Python standard library, as Parquet (zstd). Each size is ingested and then scored by text, each by
a process of its own, whose peak memory is compared with that of the first size; shards that are there are left.
It needs the extra [train], and 2 GB of disk for 10 GB of text.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from bench_scorer import paragraphs

import curator

_FILE_BYTES = 100_000_000
_LEARN = {
    "granularity": "sample",
    "steps": 3,
    "vocab_size": 300,
    "sequence_length": 64,
    "line_search": {"places": []},
    "rows": {"pairs": 2, "steps": 20, "keep_copies": False},
}


def rows(parts: Sequence[str], seed: int, size: int) -> list[str]:
    """Slices of 200 to 4,000 characters of the paragraphs, in an order of the seed's own."""
    rng, order = random.Random(seed), list(parts)
    rng.shuffle(order)
    whole, found, done = "\n".join(order), [], 0
    while done < size:
        length = rng.randint(200, 4000)
        start = rng.randrange(len(whole) - length)
        found.append(f"{rng.getrandbits(32)} {whole[start : start + length]}")
        done += length
    return found


def write_rows(path: Path, texts: Sequence[str]) -> None:
    """As a file of one domain."""
    pq.write_table(pa.table({"text": texts, "domain": ["all"] * len(texts)}), path, compression="zstd")


def damaged(text: str) -> str:
    """Its letters in any order."""
    return "".join(random.Random(text).sample(text, len(text)))


def learned(lake: Path, parts: Sequence[str]) -> str:
    """A run on a lake half of whose rows are damaged, which the target's are not: a scorer can tell them apart."""
    texts = rows(parts[::2], 0, 800_000)
    write_rows(lake / "first.parquet", [text if place % 2 else damaged(text) for place, text in enumerate(texts)])
    target = lake.parent / "target.parquet"
    write_rows(target, rows(parts[1::2], 1, 200_000))
    with curator.open_lake(str(lake)) as opened:
        return opened.learn(str(target), **_LEARN).run_id


def measured(lake: Path, run_id: str | None, out: Path) -> tuple[int, float, float]:
    """Rows that were ingested, or by a run scored, seconds, and peak memory in MiB, of a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (str(lake), run_id, str(out)))


def _measure(lake: str, run_id: str | None, out: str) -> tuple[int, float, float]:
    started = time.monotonic()
    with curator.open_lake(lake) as opened:
        num_rows = opened.score(run_id, out, way="text").num_rows if run_id else opened.ingest().rows_indexed
    return num_rows, time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Make the rows, measure, remove them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=lambda text: [float(part) for part in text.split(",")], default=[1, 10])
    with tempfile.TemporaryDirectory() as folder:
        lake, first = Path(folder) / "lake", dict[str, float]()
        lake.mkdir()
        parts = paragraphs()
        run_id, num_files = learned(lake, parts), 0
        for gigabytes in parser.parse_args().gigabytes:
            while num_files * _FILE_BYTES < gigabytes * 1e9:
                num_files += 1
                write_rows(lake / f"more-{num_files}.parquet", rows(parts[::2], 1 + num_files, _FILE_BYTES))
            for what, run in (("ingest", None), ("score", run_id)):
                num_rows, taken, peak = measured(lake, run, Path(folder) / "out")
                first.setdefault(what, peak)
                print(
                    f"{gigabytes:g} GB of text, {what}: peak {peak:,.0f} MiB, {peak / first[what]:.2f} × that of the "
                    f"first size; {num_rows:,} rows in {taken:,.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
