"""Every row of a lake weighed within its domain by a run's scorer: a shard of weights for each of the lake's files.

A shard is Parquet (`SCHEMA`) at the path of its file, in the file's order, without rows that cannot be used. It appears
whole or not at all, and its footer says what it was made from. So a job that was killed, and one on a lake that has
grown, write what is missing or was made from something else, and nothing more. Rows that the run measured, and
those that repeat one word for word where ids tell, have the weight that it found, all others the one that its scorer
or the copies that it kept give them; rows of domains that the run did not know have none.

Weights are on the scale of the run: its own rows have mean 1 over the tokens of their domain.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors import duck
from connectors.parquet import ParquetFile, iter_batches
from connectors.store import Store, delete, list_objects, open_object, staged_file
from connectors.threads import in_threads, num_threads
from curator import catalog, row_gaps
from curator.errors import TryAgainError, UsageError
from curator.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.run import RowScorer, Run, Way

SCHEMA = pa.schema({"sample_id": pa.string(), "domain": pa.string(), "row_weight": pa.float64(), "origin": pa.string()})
"""`origin` is "measured" or "predicted"; it and the weight are null in a domain that the run did not know."""
_FOOTER = b"lake-curator"
_BATCH_ROWS = 1024
_CONTENTS = "SELECT file_id, path, bit_xor(hash(row, sample_id, domain, usable))::VARCHAR FROM files " + (
    "LEFT JOIN sample_index USING (file_id) GROUP BY ALL"
)
_ROWS = "SELECT sample_id, domain, usable FROM sample_index WHERE file_id = ? ORDER BY row"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `Lake.score` wrote, or with a dry run would write; rows that were not measured are weighed by `way`.

    Of `num_files` of the lake, `num_there` had their shards, `num_written` got one with `num_rows` of the lake's rows,
    and `num_removed` shards were of files that the lake has no more.
    """

    run_id: str
    way: str
    location: str
    num_files: int
    num_there: int
    num_written: int
    num_removed: int
    num_rows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """A shard to write: of a file of the lake, with a footer."""

    file: ParquetFile
    file_id: int
    footer: str


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every worker needs; `measured` has the weights of rows by `known`, their ids, or what repeated rows share of
    them if `by_content`."""

    scorer: RowScorer
    measured: pa.Table
    catalog: Path
    lake: Store
    text: str
    place: Store
    by_content: bool

    def rows(self, shard: _Shard) -> pa.Table:
        """What the index says of the rows of a shard's file."""
        with closing(duck.connect(self.catalog, read_only=True)) as connection:
            return connection.sql(_ROWS, params=[shard.file_id]).to_arrow_table().combine_chunks()

    def write(self, shard: _Shard, rows: pa.Table) -> Iterator[int]:
        """Write a shard; yields the number of rows of the lake that were read, a batch at a time."""
        schema, first = SCHEMA.with_metadata({_FOOTER: shard.footer}), 0
        with (
            staged_file(self.place, shard.file.path) as sink,
            pq.ParquetWriter(sink, schema, compression="zstd") as writer,
        ):
            for batch in iter_batches(self.lake, shard.file, [self.text], batch_rows=_BATCH_ROWS):
                known = rows.slice(first, batch.num_rows)
                writer.write_table(self._weighed(known, batch[self.text]).cast(schema))
                first += batch.num_rows
                yield batch.num_rows

    def _weighed(self, rows: pa.Table, texts: pa.Array) -> pa.Table:
        """The usable ones of some rows, as `SCHEMA`."""
        usable = np.flatnonzero(rows["usable"].to_numpy())
        rows, texts = rows.take(pa.array(usable)).combine_chunks(), _decoded(texts).take(pa.array(usable))
        ids = rows["sample_id"].combine_chunks()
        place = pc.index_in(row_gaps.contents(ids) if self.by_content else ids, self.measured["known"])
        weights = pc.take(self.measured["row_weight"], place).to_numpy().copy()
        domain_N, is_measured = self.scorer.index(rows["domain"].combine_chunks()), pc.is_valid(place).to_numpy(False)
        others = np.flatnonzero(~is_measured & (domain_N >= 0))
        weights[others] = self.scorer.row_weights(texts.take(pa.array(others)), domain_N[others])
        origin = np.where(is_measured, "measured", "predicted")
        has_none = np.isnan(weights)
        return pa.table(
            {
                "sample_id": ids,
                "domain": rows["domain"],
                "row_weight": pa.array(weights, mask=has_none),
                "origin": pa.array(origin, mask=has_none),
            }
        )


def score(
    lake: Lake,
    run: Run,
    place: Store,
    on_progress: ProgressCallback,
    *,
    way: Way | None,
    workers: int | None,
    ray: str | None,
    dry_run: bool,
) -> Scores:
    """Score the lake's rows as they are now; see `Lake.score`."""
    started = time.monotonic()
    scorer, way = run.scorer(way), way or run.ways_to_score[0]
    lake.ingest(on_progress)
    wanted = _wanted(lake, run, way)
    found = _found(place, lake.url)
    _check_ours(place, found, [shard.file.path for shard in wanted])
    missing = [shard for shard in wanted if found.get(shard.file.path) != shard.footer]
    paths = {shard.file.path for shard in wanted}
    stale = [path for path, footer in found.items() if footer and path not in paths]
    if not dry_run:
        job = _Job(
            scorer=scorer,
            measured=_measured(lake, run),
            catalog=lake.catalog_path,
            lake=lake.corpus.store,
            text=lake.config.text,
            place=place,
            by_content=lake.config.key is None,
        )
        lake.release()
        with lake.writing():
            _write(job, missing, workers, ray, on_progress)
            for path in stale:
                delete(place, path)
    return Scores(
        run_id=run.run_id,
        way=way,
        location=place.url,
        num_files=len(wanted),
        num_there=len(wanted) - len(missing),
        num_written=len(missing),
        num_removed=len(stale),
        num_rows=sum(shard.file.num_rows for shard in missing),
        seconds=round(time.monotonic() - started, 3),
    )


def _wanted(lake: Lake, run: Run, way: Way) -> list[_Shard]:
    """A shard for every file; its footer changes with the file, the ids of its rows, their domains, the run and way."""
    known = {path: (file_id, rows) for file_id, path, rows in lake.connection.execute(_CONTENTS).fetchall()}
    shards = []
    for file in lake.corpus.files:
        file_id, rows = known[file.path]
        made_from = {
            "schema_version": 1,
            "run_id": run.run_id,
            "way": way,
            "lake": lake.url,
            "text": lake.config.text,
            "path": file.path,
            "size_bytes": file.size_bytes,
            "version": file.version,
            "rows": rows,
        }
        shards.append(_Shard(file=file, file_id=file_id, footer=json.dumps({"scores": made_from})))
    return shards


def _found(place: Store, lake: str) -> dict[str, str | None]:
    """Path → the footer of a Parquet file there, None if it is no shard of this lake."""
    paths = [info.path for info in list_objects(place, ".parquet")]
    footers = in_threads(lambda path: _footer(place, path, lake), paths, num_threads(place))
    return dict(zip(paths, footers, strict=True))


def _footer(place: Store, path: str, lake: str) -> str | None:
    with open_object(place, path) as source:
        try:
            metadata: Mapping[bytes, bytes] = pq.read_metadata(source).metadata or {}
            said = metadata.get(_FOOTER, b"").decode()
            return said if json.loads(said)["scores"]["lake"] == lake else None
        except (pa.ArrowException, ValueError, KeyError, TypeError):
            return None


def _check_ours(place: Store, found: Mapping[str, str | None], paths: Sequence[str]) -> None:
    """Refuse to replace what no earlier call wrote."""
    foreign = next((path for path in paths if path in found and found[path] is None), None)
    if foreign:
        raise UsageError(
            f"{place.describe(foreign)} is no shard of an earlier call for this lake, so that it is not replaced",
            hint="name another folder, or remove it",
        )


def _measured(lake: Lake, run: Run) -> pa.Table:
    if row_gaps.TABLE not in row_gaps.files(run.record):
        return pa.table({"known": pa.array([], pa.string()), "row_weight": pa.array([], pa.float64())})
    path = f"{catalog.RUN_FOLDER}/{run.run_id}/{row_gaps.TABLE}"
    with open_object(lake.destination, path) as source:
        rows = pq.read_table(source, columns=["sample_id", "row_weight"]).combine_chunks()
    ids = rows["sample_id"].combine_chunks()
    known = ids if lake.config.key is not None else row_gaps.contents(ids)
    return pa.table({"known": known, "row_weight": rows["row_weight"]})


def _write(
    job: _Job, shards: Sequence[_Shard], workers: int | None, ray: str | None, on_progress: ProgressCallback
) -> None:
    """Write shards, here, in processes of their own, or by Ray, and tell how fast."""
    started, done, total = time.monotonic(), 0, sum(shard.file.num_rows for shard in shards)
    if ray is not None and shards:
        from curator.integrations.ray import written_by_ray

        written = written_by_ray(ray, workers, job, shards)
    elif min(workers or 1, len(shards)) < 2:
        written = _written_here(job, shards)
    else:
        written = _written_by(workers or 1, job, shards)
    for num_rows in written:
        done += num_rows
        speed = done / max(time.monotonic() - started, 1e-9)
        on_progress(Progress(stage="score", done=done, total=total, detail=f"rows, {speed:,.0f} rows/s"))


def _written_here(job: _Job, shards: Sequence[_Shard]) -> Iterator[int]:
    for shard in shards:
        yield from job.write(shard, job.rows(shard))


def _written_by(workers: int, job: _Job, shards: Sequence[_Shard]) -> Iterator[int]:
    """The rows of each shard when it is there. Shards that are being written when this is stopped are finished."""
    waiting, running = list(reversed(shards)), set[Future[int]]()
    with ProcessPoolExecutor(
        min(workers, len(shards)), mp_context=get_context("spawn"), initializer=_start, initargs=(job, workers)
    ) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < 2 * workers:
                    running.add(pool.submit(_write_one, waiting.pop()))
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ended)
        except BrokenProcessPool as error:
            raise TryAgainError(
                "a worker was killed, perhaps for want of memory",
                hint="the same command goes on with the shards that are "
                "missing, --workers says how many work at a time",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_jobs: list[_Job] = []
"""In a worker, its job."""


def _start(job: _Job, workers: int) -> None:
    _jobs.append(job)
    if "torch" in sys.modules:  # copies came with the job; every worker would take all processors
        sys.modules["torch"].set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent.join()
    os._exit(1)


def _write_one(shard: _Shard) -> int:
    return sum(_jobs[0].write(shard, _jobs[0].rows(shard)))


def _decoded(texts: pa.Array) -> pa.Array:
    return texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
