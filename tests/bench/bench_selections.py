"""Selections by weight against a bare DuckDB scan and sort of the same columns, in processor time and peak memory.

Run: python tests/bench/bench_selections.py [--rows 10000000]

The rows (id of 32 hex digits, domain, weight, tokens) are in eight Parquet files of a temporary folder. Every figure is
of a process of its own, files cached by the system; seconds are of all its threads together, since others work on the
machine, too. Ratios are to the scan, the sort and the join of the same call.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from connectors import duck
from connectors.store import open_store
from curator.macros import TOKENS, create_macros
from curator.materialize import _write
from curator.progress import silent
from curator.selection import (
    Curated,
    MixtureBudget,
    Quantiles,
    Repeats,
    Selection,
    TokenBudget,
    TopK,
    WeightedSample,
)

_FILES = 8
_DOMAINS = 50
_MEAN_TOKENS = 500


def write_rows(folder: Path, num: int) -> None:
    """Gamma-like weights of mean about 1, a different one for every row."""
    with duck.connect() as connection:
        for part in range(_FILES):
            low, high = num * part // _FILES, num * (part + 1) // _FILES
            connection.execute(
                "COPY (SELECT md5(range::VARCHAR) AS sample_id, 'domain ' || (hash(range) % "
                f"{_DOMAINS}) AS domain, "
                "CAST(-ln((hash(range + 1) % 1000003 + 1) / 1000004) AS FLOAT) AS sample_weight, "
                f"CAST(1 + hash(range + 2) % {2 * _MEAN_TOKENS} AS BIGINT) AS num_tokens FROM range({low}, {high})) "
                f"TO {duck.quote_literal(str(folder / f'part-{part}.parquet'))} (FORMAT parquet)"
            )


def open_rows(folder: Path) -> duck.Connection:
    """`samples` and `sample_tokens` as a lake has them, and the macros."""
    connection = duck.connect()
    connection.execute("SET enable_progress_bar = false")
    source = f"read_parquet({duck.quote_literal(str(folder / '*.parquet'))})"
    connection.execute(f"CREATE TEMP VIEW samples AS SELECT sample_id, domain, sample_weight FROM {source}")
    connection.execute(f"CREATE TEMP VIEW {TOKENS} AS SELECT sample_id, num_tokens FROM {source}")
    connection.execute(f"SET temp_directory = {duck.quote_literal(str(folder / 'spilled'))}")
    create_macros(connection)
    return connection


def scan(folder: Path, _: int) -> None:
    """Every value of three columns is read."""
    open_rows(folder).execute("SELECT max(sample_id), max(domain), max(sample_weight) FROM samples").fetchall()


def sort(folder: Path, num: int) -> None:
    """All three columns in order of the weight; the last row is asked for, so that no part is left out."""
    query = f"SELECT * FROM (FROM samples ORDER BY sample_weight, sample_id) LIMIT 1 OFFSET {num - 1}"
    open_rows(folder).execute(query).fetchall()


def join(folder: Path, _: int) -> None:
    """What counting tokens needs at least."""
    query = f"SELECT max(sample_id), max(sample_weight), max(num_tokens) FROM samples JOIN {TOKENS} USING (sample_id)"
    open_rows(folder).execute(query).fetchall()


def select(folder: Path, selection: Selection) -> None:
    """Every value of every column of the selected rows is made."""
    connection = open_rows(folder)
    relation = connection.sql(f"FROM {selection.call}")
    values = ", ".join(f"max({duck.quote_identifier(name)})" for name in relation.columns)
    connection.execute(f"SELECT {values} FROM {selection.call}").fetchall()


def write(folder: Path, num: int) -> None:
    """A tenth of the rows, drawn by weight, written as Parquet."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    relation = open_rows(folder).sql(f"FROM {WeightedSample(n=num // 10).call}")
    _write(open_store(str(out)), "bench", relation, "{}", num // 10, silent)


def measured(work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Seconds of processor time and peak memory in MiB of a call in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, *arguments))


def _measure(work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Make the rows, measure, remove them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    num = parser.parse_args().rows
    tokens = num * _MEAN_TOKENS // 2
    selections: list[Selection] = [
        Curated(threshold=1.0),
        TopK(fraction=0.1),
        WeightedSample(n=num // 10),
        Repeats(),
        TokenBudget(tokens=tokens),
        MixtureBudget(shares={f"domain {d}": d + 1 for d in range(_DOMAINS)}, tokens=tokens),
        Quantiles(buckets=4),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, num)
        base = {work.__name__: measured(work, folder, num) for work in (scan, sort, join)}
        print(f"{num:,} rows")
        for label, (seconds, memory) in base.items():
            print(f"{label:<16}{seconds:7.1f} s {memory:7.0f} MiB", flush=True)
        measurements: list[tuple[str, Callable[..., None], object]] = [(s.macro, select, s) for s in selections]
        for label, work, argument in [*measurements, ("write sample", write, num)]:
            seconds, memory = measured(work, folder, argument)
            ratios = ", ".join(f"{seconds / base[name][0]:5.1f}x {name}" for name in base)
            print(f"{label:<16}{seconds:7.1f} s {memory:7.0f} MiB {ratios}", flush=True)


if __name__ == "__main__":
    main()
