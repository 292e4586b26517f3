"""Scoring text on one core against reading it, hashing it, DSIR's words, and fastText's prediction.

Run: python tests/bench/bench_scorer.py [--megabytes 16]

The text is documentation of the Python standard library, rows of 200 to 4,000 bytes, as Parquet (zstd). Every figure is
processor time of all threads together, the best of three; ratios are to the scan with a hash of every
row, in the same run. Lines about packages that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from curator.dsir import ngram_buckets
from curator.features import Counter, Frequencies, describe, halves
from curator.scorer import Scorer, fit, held_out
from optim.row_gaps import RowGaps

_BATCH_ROWS = 1024
_PACKAGES = ("email", "json", "logging", "unittest", "asyncio", "http", "xml", "concurrent", "importlib", "collections")


def paragraphs() -> list[str]:
    """Documentation of modules, classes and functions."""
    found = []
    for name in _PACKAGES:
        package = importlib.import_module(name)
        inside = [each.name for each in pkgutil.iter_modules(package.__path__) if each.name != "__main__"]
        names = [name, *(f"{name}.{each}" for each in inside)]
        for module in names:
            with suppress(ImportError, SystemExit):  # of another system, or a program
                values = vars(importlib.import_module(module)).values()
                found += [text for value in values if isinstance(text := value.__doc__, str) and len(text) > 60]
    return sorted(set(found))


def write_rows(path: Path, megabytes: float) -> int:
    """Rows put together out of paragraphs; returns their bytes."""
    rng, parts, rows, size = random.Random(0), paragraphs(), [], 0
    while size < megabytes * 1e6:
        wanted, row = rng.randint(200, 4000), ""
        while len(row) < wanted:
            row += rng.choice(parts) + "\n"
        rows.append(row[:wanted])
        size += len(rows[-1].encode())
    ids = [xxhash.xxh3_128_hexdigest(row.encode()) for row in rows]
    pq.write_table(pa.table({"sample_id": ids, "text": rows}), path, compression="zstd")
    return size


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows as a lake's reader gives them."""
    with pq.ParquetFile(path, pre_buffer=False) as source:
        yield from source.iter_batches(_BATCH_ROWS, use_threads=False)


def trained(path: Path) -> tuple[Scorer, Frequencies]:
    """A scorer of a thousand rows with made-up gaps: what it costs does not depend on them."""
    counter = Counter()
    for batch in batches(path):
        counter.add_lake(batch["text"], halves(batch["text"]))
    frequencies, batch = counter.frequencies(), next(batches(path))
    num, rng = batch.num_rows, np.random.default_rng(0)
    domain, tokens, gaps = np.zeros(num, np.int32), np.full(num, 100), RowGaps.none(num)
    for _ in range(3):
        gaps = gaps.added(rng.standard_normal(num), np.zeros(num), domain, tokens)
    features = describe(batch["text"], halves(batch["text"]), frequencies)
    scorer, _ = fit(
        features,
        gaps,
        is_held_R=held_out(batch["text"]),
        domain_R=domain,
        tokens_R=tokens,
        domains=["all"],
        frequencies=frequencies,
        sharpness=1.0,
    )
    return scorer, frequencies


def seconds(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Processor time of each, the median of nine rounds in which they take turns: the machine's speed drifts."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(9):
        for name, work in works.items():
            started = time.process_time()
            work()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(each) for name, each in taken.items()}


def scan(path: Path) -> None:
    """Every value is decoded."""
    for batch in batches(path):
        assert batch["text"].nbytes


def scan_and_hash(path: Path) -> None:
    """And hashed, as ingest does for ids."""
    for batch in batches(path):
        for text in batch["text"].cast(pa.binary()).to_pylist():
            xxhash.xxh3_128_hexdigest(text)


def words_of_dsir(path: Path) -> None:
    """The hashed words and pairs of words."""
    for batch in batches(path):
        ngram_buckets(batch["text"].to_pylist())


def score(path: Path, scorer: Scorer) -> None:
    """What `curator score` does with a batch."""
    for batch in batches(path):
        scorer.row_weights(batch["text"], np.zeros(batch.num_rows, np.int32))


def features(path: Path, frequencies: Frequencies) -> None:
    """What training needs of measured rows: the hashed features as a matrix."""
    for batch in batches(path):
        describe(batch["text"], halves(batch["text"]), frequencies)


def fasttext_prediction(path: Path, folder: Path) -> Callable[[], object] | None:
    """A classifier of two labels on words, pairs of words and character 3- to 5-grams, with fastText's usual sizes."""
    try:
        import fasttext
    except ModuleNotFoundError:
        return None
    lines = [text.replace("\n", " ") for batch in batches(path) for text in batch["text"].to_pylist()]
    source = folder / "train.txt"
    source.write_text("\n".join(f"__label__{i % 2} {line}" for i, line in enumerate(lines[:1000])))
    model = fasttext.train_supervised(
        str(source), wordNgrams=2, minn=3, maxn=5, bucket=200_000, thread=1, epoch=1, verbose=0
    )
    return lambda: [model.f.predict(line + "\n", 1, 0.0, "strict") for line in lines]


def main() -> None:
    """Make the rows, measure, remove them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        size = write_rows(path, parser.parse_args().megabytes) / 1e6
        scorer, frequencies = trained(path)
        works: dict[str, Callable[[], object] | None] = {
            "pyarrow scan": lambda: scan(path),
            "scan + xxh3 of every row": lambda: scan_and_hash(path),
            "scan + scorer (features and prediction)": lambda: score(path, scorer),
            "scan + features as a matrix (training)": lambda: features(path, frequencies),
            "scan + DSIR's words and pairs (curator/dsir.py)": lambda: words_of_dsir(path),
            "fastText prediction, text in memory": fasttext_prediction(path, Path(folder)),
        }
        taken = seconds({name: work for name, work in works.items() if work is not None})
    base = taken["scan + xxh3 of every row"]
    print(f"{size:.1f} MB of text, one core\n\n| | MB/s | time × scan + xxh3 |\n|---|---|---|")
    for name, each in taken.items():
        print(f"| {name} | {size / each:,.1f} | {each / base:.1f} |")


if __name__ == "__main__":
    main()
