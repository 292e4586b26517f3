"""Columns added to a file whose footer is large: 1000 row groups of 20 columns. CPU time of all threads.

Run: python tests/bench/bench_large_footers.py [--row-groups 1000] [--columns 20] [--rounds 5]

The file is made in a temporary folder and holds little but its footer, so that what is measured is the work on that:
what adding three columns takes, and what opening the file for its rows takes, whose footer is checked before Arrow is
asked about a chunk. Against Arrow's own reading of the same footer, and a rewrite of the file by Arrow. Wanted: columns
added in less than a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from connectors._chunks import check_chunks
from connectors._parquet_file import open_parquet, parse_footer, read_footer
from connectors._rewrite import rewrite_with_columns
from connectors.parquet import add_columns, read_parquet_info
from connectors.store import ObjectInfo, open_store, stat_object

_GROUP_ROWS = 10


def write_file(path: Path, num_groups: int, num_columns: int) -> None:
    """Numbers and short strings, half and half, with the statistics and page indexes that Arrow writes."""
    source = np.random.default_rng(0)
    columns: dict[str, object] = {}
    for number in range(num_columns):
        drawn = source.integers(0, 1000, num_groups * _GROUP_ROWS)
        columns[f"column_{number:02}"] = [f"value {value}" for value in drawn] if number % 2 else drawn
    pq.write_table(pa.table(columns), path, row_group_size=_GROUP_ROWS, write_page_index=True)


def weights(_: int, first_row: int, num_rows: int) -> pa.Table:
    """What publishing adds."""
    values = np.random.default_rng(first_row).gamma(1, 1, num_rows).astype("f4")
    return pa.table({"sample_weight": values, "domain_weight": values, "weight_run_id": ["run"] * num_rows})


def best(rounds: int, work: Callable[[], object]) -> float:
    """Seconds of CPU of the fastest round."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row-groups", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.parquet"
        write_file(path, given.row_groups, given.columns)
        store = open_store(folder)
        listed: ObjectInfo = stat_object(store, path.name)
        file, footer = read_parquet_info(store, listed), read_footer(store, listed)
        print(f"{given.row_groups} row groups of {given.columns} columns, a footer of {len(footer) / 1e6:.1f} MB")

        def spliced() -> None:
            made = add_columns(store, file, store, "spliced.parquet", weights)
            assert made.rewritten_because is None, made

        def opened() -> None:
            with open_parquet(store, file):
                pass

        metadata = parse_footer(footer)
        arrow = best(given.rounds, lambda: pq.read_metadata(path))
        rewrite = best(1, lambda: rewrite_with_columns(store, file, store, "rewritten.parquet", weights))
        for name, work in {
            "three columns added": spliced,
            "opened for its rows": opened,
            "of that the check of its chunks": lambda: check_chunks(footer, metadata),
        }.items():
            took = best(given.rounds, work)
            print(
                f"{name}: {took:.2f} s, {took / arrow:.1f} x Arrow's reading of the footer ({arrow:.3f} s), "
                f"{took / rewrite:.3f} x a rewrite by Arrow ({rewrite:.2f} s)"
            )


if __name__ == "__main__":
    main()
