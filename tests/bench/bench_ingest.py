"""Listing, indexing and narrow reads of a lake, each against the least that would have to be done anyway.

Run: python tests/bench/bench_ingest.py [--megabytes 64] [--files 10000]

Every measurement has a process of its own, and takes turns with what it is compared to; the best of two rounds counts.
Times are CPU seconds of all threads, since wall time says little on a machine that others use. The corpus is zstd
Parquet, 64 MB a file, made in a temporary folder; with `--megabytes 4096` it is several times as large as what memory
is to stay under. Wanted:

    index        at most 1.3 times a scan of text and domain by DuckDB, and less than 1 GiB of memory
    content ids  (the pass that makes them, xxh3 and sha256) at most 1.2 times a scan of the text by pyarrow
    narrow       a column of numbers on S3 (SeaweedFS on this machine): less than 1 % of the bytes of the files fetched
    copy         what a catalog that keeps the rows (mode "table") takes to make, on disk, and to scan
    listing      of many tiny files, local and on S3, with and without their footers, against fsspec's `find`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from s3fs import S3FileSystem

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_publish import rows, s3
from conftest import BUCKET

from connectors import duck
from connectors._rows import Columns, index_batches
from connectors.plain import list_parquet
from connectors.store import list_objects, open_store

_FILE_BYTES = 64_000_000
_ROUNDS = 2
_COLUMNS = Columns(text="text", domain="source")


def write_corpus(folder: Path, num_bytes: int) -> None:
    """Files of pseudo-text; a number before each text of another file keeps all rows apart."""
    source = np.random.default_rng(0)
    words = np.array([bytes(source.integers(97, 123, source.integers(2, 10))).decode() for _ in range(50_000)])
    popularity = 1 / np.arange(1, len(words) + 1)
    popularity = np.cumsum(popularity) / popularity.sum()
    groups: list[pa.Table] = []
    for number in range(max(1, num_bytes // _FILE_BYTES)):
        with (folder / f"part-{number:05}.parquet").open("wb") as sink:
            writer = None
            for place in range(1_000_000):
                if place == len(groups):
                    groups.append(rows(source, words, popularity))
                text = pa.array([f"{number} {text}" for text in groups[place]["text"].to_pylist()])
                table = groups[place].set_column(1, "text", text)
                writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
                writer.write_table(table)
                if sink.tell() >= min(_FILE_BYTES, num_bytes):
                    writer.close()
                    break


def write_tiny_files(folder: Path, num_files: int) -> None:
    """Files of two rows in ten folders."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["some text", "more"], "source": ["x", "y"]}), sink)
    data = sink.getvalue().to_pybytes()
    for number in range(num_files):
        place = folder / f"part={number % 10}" / f"{number:06}.parquet"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)


# what is measured, each in a process of its own -----------------------------------------------------------------


def index(url: str, options: Mapping[str, Any], *, copy_rows: bool = False) -> Callable[[], object]:
    """Ingest into a catalog on disk."""
    corpus = list_parquet(url, options)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder, duck.connect(Path(folder, "catalog.duckdb")) as connection:
            duck.ingest(connection, corpus, text="text", domain="source", copy_rows=copy_rows)

    return work


def copy_scan(url: str, _: Mapping[str, Any]) -> Callable[[], object]:
    """Every text and domain of the copy in a catalog beside the corpus, which is made the first time."""
    path = Path(url).with_name("copied.duckdb")
    if not path.exists():
        with duck.connect(path) as connection:
            duck.ingest(connection, list_parquet(url), text="text", domain="source", copy_rows=True)
    connection = duck.connect(path, read_only=True)
    return lambda: connection.execute("SELECT sum(strlen(text)), sum(strlen(source)) FROM lake_copy").fetchall()


def duckdb_scan(url: str, _: Mapping[str, Any]) -> Callable[[], object]:
    """Every text and domain, decoded and looked at."""
    connection = duck.connect()
    query = f"SELECT sum(strlen(text)), sum(strlen(source)) FROM read_parquet('{url}/*.parquet')"
    return lambda: connection.execute(query).fetchall()


def pyarrow_scan(url: str, _: Mapping[str, Any]) -> Callable[[], object]:
    """Every text as Arrow decodes it, in the batches that ingest takes."""

    def work() -> None:
        for path in sorted(Path(url).iterdir()):
            with pq.ParquetFile(path) as opened:
                for group in range(opened.num_row_groups):
                    for batch in opened.iter_batches(4096, row_groups=[group], columns=["text"]):
                        assert batch.num_rows

    return work


def ids_by(id_hash: Any) -> Callable[[str, Mapping[str, Any]], Callable[[], object]]:
    """The pass over the text that makes ids and lengths, without the catalog."""

    def make(url: str, _: Mapping[str, Any]) -> Callable[[], object]:
        corpus, columns = list_parquet(url), replace(_COLUMNS, id_hash=id_hash)

        def work() -> None:
            for file in corpus.files:
                for batch in index_batches(corpus.store, file, columns, "error"):
                    assert batch.num_rows

        return work

    return make


def find(url: str, options: Mapping[str, Any]) -> Callable[[], object]:
    """fsspec's own listing."""
    fs, path = fsspec.url_to_fs(url, use_listings_cache=False, **options)
    return lambda: fs.find(path, detail=True)


def listing(url: str, options: Mapping[str, Any]) -> Callable[[], object]:
    """Ours, of names, sizes and versions."""
    store = open_store(url, options)
    return lambda: list_objects(store, ".parquet")


def footers(url: str, options: Mapping[str, Any]) -> Callable[[], object]:
    """Ours with the footers of all files, their schemas compared."""
    return lambda: list_parquet(url, options)


MEASURED: Mapping[str, Callable[[str, Mapping[str, Any]], Callable[[], object]]] = {
    "index": index,
    "index and copy": partial(index, copy_rows=True),
    "scan of the copy": copy_scan,
    "duckdb scan": duckdb_scan,
    "pyarrow scan": pyarrow_scan,
    "xxh3_128": ids_by("xxh3_128"),
    "sha256": ids_by("sha256"),
    "find": find,
    "listing": listing,
    "footers": footers,
}


def measure_here(name: str, url: str, options: Mapping[str, Any]) -> None:
    """Print what one of `MEASURED` takes: CPU and wall seconds, and peak memory in MiB."""
    work = MEASURED[name](url, options)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    taken = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    # Not getrusage's, which begins with what the parent held when it forked.
    (peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    print(json.dumps(taken | {"memory": int(peak) // 1024}))


def measure(names: list[str], url: str, options: Mapping[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """Of each, the least CPU and wall seconds of the rounds, and the most memory."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(_ROUNDS):
        for name in names:
            call = [sys.executable, __file__, "--measure", name, "--url", url, "--options", json.dumps(options or {})]
            found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
            known = best.setdefault(name, found)
            best[name] = {what: (max if what == "memory" else min)(known[what], found[what]) for what in found}
    return best


def told(found: Mapping[str, Mapping[str, float]], name: str, base: str, wanted: str = "") -> str:
    """One line: `name` against `base`."""
    own, other = found[name], found[base]
    return (
        f"{name}: {own['cpu'] / other['cpu']:.2f}x the CPU of {base}{wanted} ({own['cpu']:.2f} and {other['cpu']:.2f} "
        f"s; wall {own['wall'] / other['wall']:.2f}x); peak memory {own['memory']} and {other['memory']} MiB"
    )


# S3 -------------------------------------------------------------------------------------------------------------


class CountingS3(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """Adds up the bytes that are fetched."""

    cachable = False
    num_fetched = 0

    async def _call_s3(self, method: str, *arguments: Any, **kwargs: Any) -> Any:
        answer = await super()._call_s3(method, *arguments, **kwargs)
        if method == "get_object":
            self.num_fetched += int(answer["ContentLength"])
        return answer


def bench_narrow(corpus: Path, options: Mapping[str, Any]) -> None:
    """What SQL fetches of the first file for the sum of a column of numbers, with its footer."""
    fs = CountingS3(**options, use_listings_cache=False, default_cache_type="none")
    first = min(corpus.iterdir())
    url = f"s3://{BUCKET}/narrow"
    fs.put_file(str(first), f"{url}/{first.name}")
    store = replace(open_store(url, options), fs=fs)
    with duck.connect() as connection:
        duck.register_store(connection, store)
        fs.num_fetched = 0
        connection.execute(f"SELECT sum(id) FROM read_parquet('{duck.duck_path(store, first.name)}')").fetchall()
    print(f"narrow: {fs.num_fetched / first.stat().st_size:.3%} of the bytes fetched (want < 1 %)", flush=True)


def bench_listing(tiny: Path, options: Mapping[str, Any]) -> None:
    """The tiny files on S3."""
    fs = S3FileSystem(**options, use_listings_cache=False)
    url = f"s3://{BUCKET}/tiny"
    fs.put(f"{tiny}/", f"{url}/", recursive=True)
    found = measure(["find", "listing", "footers", "index"], url, options)
    for name in ("listing", "footers", "index"):
        print("S3", told(found, name, "find"), flush=True)


def main() -> None:
    """Make the corpora, measure, remove them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_here(arguments.measure, arguments.url, json.loads(arguments.options))
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus, tiny = Path(folder, "corpus"), Path(folder, "tiny")
        corpus.mkdir()
        tiny.mkdir()
        write_corpus(corpus, arguments.megabytes * 1_000_000)
        size = sum(path.stat().st_size for path in corpus.iterdir())
        print(f"corpus: {size / 1e6:.0f} MB in {len(list(corpus.iterdir()))} files", flush=True)
        names = ["duckdb scan", "pyarrow scan", "xxh3_128", "sha256", "index", "index and copy", "scan of the copy"]
        found = measure(names, str(corpus))
        print(told(found, "index", "duckdb scan", " (want <= 1.3)"))
        print(told(found, "xxh3_128", "pyarrow scan", " (want <= 1.2)"))
        print(told(found, "sha256", "pyarrow scan"))
        print(told(found, "index and copy", "index"))
        print(told(found, "scan of the copy", "duckdb scan"))
        kept = Path(folder, "copied.duckdb").stat().st_size
        print(f"catalog with the copy: {kept / size:.2f}x the bytes of the corpus", flush=True)
        write_tiny_files(tiny, arguments.files)
        found = measure(["find", "listing", "footers", "index"], str(tiny))
        for name in ("listing", "footers", "index"):
            print(f"{arguments.files} files:", told(found, name, "find"), flush=True)
        with s3(Path(folder)) as options:
            if options:
                bench_narrow(corpus, options)
                bench_listing(tiny, options)


if __name__ == "__main__":
    main()
