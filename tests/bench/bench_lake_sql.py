"""SQL over a published lake of many rows against bare DuckDB on the published files, in processor time and peak memory.

Run: python tests/bench/bench_lake_sql.py [--rows 10000000]

Rows of an id, a domain and a text of some sixty characters in eight Parquet files are ingested, get weights that were
made up, and are published; queries and selections then go through `Lake.sql`. Each figure is of a process of its own,
files cached by the system, and includes opening the lake; seconds are of all threads together. Ratios are to DuckDB's
scan and sort of the three columns that queries need, read from the published files in the same call.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench_selections import measured

import curator
from connectors import duck

sys.path.insert(0, str(Path(__file__).parents[1] / "curator"))
from selection_cases import DOMAINS, record_run

_FILES = 8
_COLUMNS = "id AS sample_id, domain, sample_weight"
QUERIES = {
    "weight by domain": "SELECT domain, avg(sample_weight) FROM samples GROUP BY domain",
    "five heaviest texts": "SELECT text FROM samples ORDER BY sample_weight DESC LIMIT 5",
    "one row by id": "SELECT text, sample_weight FROM samples WHERE sample_id = '00000000000000000000000000000077'",
    "top_k(0.1)": "SELECT max(sample_id), max(sample_weight) FROM top_k(0.1)",
    "weighted_sample": "SELECT max(sample_id), max(sample_weight) FROM weighted_sample(100000)",
    "token_budget": "SELECT max(sample_id), max(sample_weight) FROM token_budget(10000000, 4)",
}


def write_lake(folder: Path, num: int) -> None:
    """Ids in order, so that a lookup can skip files and row groups."""
    folder.mkdir()
    domains = ", ".join(duck.quote_literal(name) for name in DOMAINS)
    with duck.connect() as connection:
        for part in range(_FILES):
            low, high = num * part // _FILES, num * (part + 1) // _FILES
            connection.execute(
                f"COPY (SELECT lpad(range::VARCHAR, 32, '0') AS id, [{domains}][1 + range % {len(DOMAINS)}] AS domain, "
                "'A row of text that has the number ' || md5(range::VARCHAR) AS text "
                f"FROM range({low}, {high})) TO {duck.quote_literal(str(folder / f'part-{part}.parquet'))} "
                "(FORMAT parquet, COMPRESSION zstd)"
            )


def open_lake(folder: Path) -> curator.Lake:
    """By its key, so that ids are known without the text."""
    return curator.open_lake(str(folder / "lake"), text="text", domain="domain", key="id")


def ingest(folder: Path) -> None:
    """The index alone."""
    with open_lake(folder) as lake:
        lake.ingest()


def record(folder: Path) -> None:
    """A run whose weights are made up."""
    with open_lake(folder) as lake:
        record_run(lake, folder / "run")


def publish(folder: Path) -> None:
    """Weights that were recorded before, as columns."""
    with open_lake(folder) as lake:
        lake.publish("latest")


def query(folder: Path, sql: str) -> None:
    """As `curator sql` runs it."""
    with open_lake(folder) as lake:
        assert lake.sql(sql).fetchall()


def bare(folder: Path, sql: str) -> None:
    """The published files, without a lake."""
    with duck.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        files = duck.quote_literal(str(folder / "lake" / "_curator" / "data" / "*" / "*.parquet"))
        connection.execute(f"CREATE VIEW published AS SELECT {_COLUMNS} FROM read_parquet({files})")
        assert connection.execute(sql).fetchall()


def tell(label: str, seconds: float, memory: float, ratios: str = "") -> None:
    """A line."""
    print(f"{label:<20}{seconds:7.1f} s {memory:7.0f} MiB {ratios}", flush=True)


def main() -> None:
    """Make the lake, measure, remove it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    num = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lake(folder / "lake", num)
        print(f"{num:,} rows")
        tell("ingest", *measured(ingest, folder))
        measured(record, folder)
        tell("publish", *measured(publish, folder))
        last = f"FROM (FROM published ORDER BY sample_weight, sample_id) LIMIT 1 OFFSET {num - 1}"
        base = {
            "scan": measured(bare, folder, "SELECT max(sample_id), max(domain), max(sample_weight) FROM published"),
            "sort": measured(bare, folder, last),
        }
        for label, found in base.items():
            tell(label, *found)
        for label, sql in QUERIES.items():
            seconds, memory = measured(query, folder, sql)
            tell(label, seconds, memory, ", ".join(f"{seconds / base[each][0]:5.1f}x {each}" for each in base))


if __name__ == "__main__":
    main()
