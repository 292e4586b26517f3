"""Data Reweighter: the weights of a run as columns of new Parquet files, made visible by one atomic step.

Source files are never changed. Copies with three more columns (or, on request, the weights alone: `curator.sidecar`)
are staged under a folder of the destination that no version names yet; committing the version is one conditional write.
A crash before it leaves the old version, and the same call again reuses nothing half-written, since every staged file
appears whole or not at all.
"""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.commit import Version
from connectors.errors import NotFoundError
from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import ParquetFile, add_columns
from connectors.store import stat_object, write_object
from connectors.threads import in_threads
from curator.catalog import WEIGHT_COLUMNS, carried_tokens_path, check_published_files
from curator.config import LakeConfig
from curator.errors import InputError, TryAgainError
from curator.progress import Progress, ProgressCallback
from curator.sidecar import Mode, write_sidecar

if TYPE_CHECKING:
    from curator.carry import LakeWeights
    from curator.lake import Lake
    from curator.run import Run

WEIGHT_SCHEMA = pa.schema({"sample_weight": pa.float32(), "domain_weight": pa.float32(), "weight_run_id": pa.string()})

SIDECAR_SCHEMA = pa.schema([pa.field("sample_id", pa.string()), pa.field("row", pa.int64()), *WEIGHT_SCHEMA])
LOCAL_THREADS, REMOTE_THREADS = 2, 8
"""Files at once: locally one is written to disk while the next is copied; elsewhere each is a few round trips."""
_REUSED_SECONDS = 12 * 3600
"""Age up to which a copy of a crashed attempt is kept; half the grace of `Lake.gc`, so that the rest fits into it."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A version of the lake with weight columns.

    `created` is False when this run had been published for the same data before, and for a dry run. Rows without a
    weight (`num_unweighted`) stand in the target, came after the run, or have no text; their three columns are null.
    Rows that the run weighed and the lake lost since (`num_gone`) are missing from the mean of 1 and from their
    domain's share.
    """

    version: int | None
    run_id: str
    snapshot_id: str
    location: str
    num_files: int
    num_rows: int
    num_unweighted: int
    num_gone: int
    size_bytes: int
    created: bool


def publish(
    lake: Lake,
    run: Run,
    on_progress: ProgressCallback,
    *,
    mode: Mode = "copy",
    bloom_filters: Collection[str] = (),
    dry_run: bool = False,
    weights_now: LakeWeights | None = None,
    label: str = "",
) -> Publication:
    """Publish the weights of `run` as a new version of `lake`.

    Exactly once for a run, a snapshot, a layout and a label: a repeated call returns the version that is there.

    Args:
        lake: is ingested first.
        run: of this lake.
        on_progress: told how far the work is.
        mode: copies of the files with the columns, or the columns alone.
        bloom_filters: the columns of `WEIGHT_SCHEMA` that get one in the copies.
        dry_run: say what would be written.
        weights_now: the run's weights for the rows that the lake has now; by default rows that came since get none.
        label: tells this version from another of the same run and snapshot; letters, digits and hyphens.

    Raises:
        InputError: the lake has columns of these names, is read by other columns than the run read it, or has no
            row that the run knows.
        StorageError: the destination cannot be written.
        TryAgainError: a source file changed meanwhile, or another writer kept winning.
    """
    _check_same_columns(lake, run)
    lake.ingest(on_progress)
    check_column_names(lake)
    if weights_now and weights_now.snapshot_id != lake.snapshot_id:
        raise TryAgainError(f"{lake.url} has changed since weights were made for its rows", hint="try again")
    kind = layout_of(mode, bloom_filters) + (f"{label}-" if label else "")
    folder = lake.connector.folder(f"{run.run_id}-{kind}{lake.snapshot_id}")
    key, known = _find_known(lake.connector.read_log(), f"{run.run_id}/{kind}{lake.snapshot_id}")
    weights = RowWeights(lake, run.run_id, weights_now.samples if weights_now else run.samples())
    if lake.corpus.num_rows and weights.num_unweighted == lake.corpus.num_rows:
        raise InputError(
            f"run {run.run_id!r} has no weight for any row of {lake.url}, whose rows have all changed since",
            hint="learn again, then publish that run",
        )
    if dry_run or known:
        files: tuple[PublishedFile, ...] = ()
        if known:
            manifest = lake.connector.read_manifest(known)
            check_published_files(lake.connector.data, manifest)
            files = manifest.files
        return _publication(lake, run, weights, folder, files, version=known.number if known else None, created=False)
    lake.check_destination()
    with lake.writing():
        if weights_now and weights_now.is_carried:
            _write_tokens(lake, run, weights_now)
        files = _stage(lake, run, weights, folder, on_progress, mode, bloom_filters)
    domains = list(weights_now.domains) if weights_now else run.record["domains"]
    manifest = Manifest(
        run_id=run.run_id,
        snapshot_id=lake.snapshot_id,
        columns=WEIGHT_COLUMNS,
        files=files,
        extra={
            "folder": folder,
            "domains": domains,
            "mode": mode,
            "carried": bool(weights_now and weights_now.is_carried),
            **({"bloom_filters": in_order(bloom_filters)} if bloom_filters else {}),
        },
    )
    check_published_files(lake.connector.data, manifest)  # a collection with too short a grace may have taken one
    version = lake.connector.commit(manifest, idempotency_key=key)
    lake.forget_views()
    return _publication(lake, run, weights, folder, files, version=version.number, created=version.created)


def layout_of(mode: Mode, bloom_filters: Collection[str]) -> str:
    """What tells the files of one layout from those of another in a version's key; "" is that of plain copies."""
    parts: list[str] = [] if mode == "copy" else [mode]
    parts += ["bloom", *in_order(bloom_filters)] if bloom_filters else []
    return "".join(f"{part}-" for part in parts)


def in_order(columns: Collection[str]) -> list[str]:
    """Some of the weight columns in the order of the files."""
    return [name for name in WEIGHT_SCHEMA.names if name in columns]


def _find_known(log: Sequence[Version], work: str) -> tuple[str, Version | None]:
    """The idempotency key of this work, and the version that it has made; one that was let go is made again."""
    key, known = work, None
    for version in log:
        if version.idempotency_key == key:
            known = version if version.collected_by is None else None
            key = key if known else f"{work}/after-{version.collected_by}"
    return key, known


class RowWeights:
    """The weights of a run (`samples`) for the rows of every file of the lake, by sample id, one file at a time."""

    def __init__(self, lake: Lake, run_id: str, samples: pa.Table) -> None:
        self._run_id = run_id
        self._connection = lake.connection
        self._lock = Lock()  # a connection answers one thread at a time
        self._num_samples: int = samples.num_rows
        self._connection.register("run_samples", samples)
        self._connection.execute(
            "CREATE OR REPLACE TEMP TABLE row_weights AS "
            "SELECT f.path, i.row, i.sample_id, s.sample_weight, s.domain_weight "
            "FROM sample_index i JOIN files f USING (file_id) LEFT JOIN run_samples s "
            "ON i.sample_id = s.sample_id AND i.usable ORDER BY f.path, i.row"
        )
        self._connection.unregister("run_samples")

    @property
    def num_unweighted(self) -> int:
        """Rows of the lake that the run has no weight for."""
        query = "SELECT count(*) FROM row_weights WHERE sample_weight IS NULL"
        return int(self._connection.execute(query).fetchall()[0][0])

    @property
    def num_gone(self) -> int:
        """Rows that the run has a weight for and the lake no longer has."""
        query = "SELECT count(*) FROM row_weights WHERE sample_weight IS NOT NULL"
        return self._num_samples - int(self._connection.execute(query).fetchall()[0][0])

    def of(self, file: ParquetFile) -> pa.Table:
        """The three columns (`WEIGHT_SCHEMA`) of a file, in the order of its rows."""
        return self.beside(file).select(WEIGHT_SCHEMA.names)

    def beside(self, file: ParquetFile) -> pa.Table:
        """The columns of a file's sidecar (`SIDECAR_SCHEMA`), in the order of its rows."""
        with self._lock:
            table: pa.Table = self._connection.sql(
                "SELECT sample_id, row, sample_weight, domain_weight, "
                "CASE WHEN sample_weight IS NOT NULL THEN $run_id END AS weight_run_id "
                "FROM row_weights WHERE path = $path ORDER BY row",
                params={"run_id": self._run_id, "path": file.path},
            ).to_arrow_table()
        return table.cast(SIDECAR_SCHEMA)


def _check_same_columns(lake: Lake, run: Run) -> None:
    """Row ids are made of these columns: with others no row would find its weight."""
    for name in ("text", "domain", "key", "id_hash"):
        then, now = run.record["lake"].get(name, LakeConfig.model_fields[name].default), getattr(lake.config, name)
        if then != now:
            setting = f"lake.{name}" if name == "id_hash" else f"--{name}"
            raise InputError(
                f"run {run.run_id!r} read {lake.url} with {name}={then!r}, but it is read with {name}={now!r} now",
                hint=f"`curator ingest` it with {setting} as the run did, or learn again",
            )


def check_column_names(lake: Lake) -> None:
    """Refuse a lake whose own columns have the names of the weight columns."""
    partitions = {key for file in lake.corpus.files for key in file.partition}
    clash = [name for name in [*lake.corpus.schema.names, *sorted(partitions)] if name.casefold() in WEIGHT_COLUMNS]
    if clash:
        raise InputError(
            f"{lake.url} has a column {clash[0]!r} already",
            hint="rename it in the source files, publishing never overwrites a column; or remove them, if they are "
            "what `curator materialize` wrote",
        )


def _stage(
    lake: Lake,
    run: Run,
    weights: RowWeights,
    folder: str,
    on_progress: ProgressCallback,
    mode: Mode,
    bloom_filters: Collection[str],
) -> tuple[PublishedFile, ...]:
    """Write a copy with the weight columns, or a sidecar, of every file of the lake; one that is there is kept."""

    def stage(file: ParquetFile) -> PublishedFile:
        path = lake.connector.published_path(folder, file)
        if not _is_staged(lake, path):
            if mode == "copy":
                schema = lake.connector.staged_schema(folder, file, WEIGHT_SCHEMA)
                _add_weights(lake, run, file, weights.of(file).cast(schema), path, frozenset(bloom_filters))
            else:
                write_sidecar(lake, file, weights.beside(file), path, run.run_id)
        return PublishedFile(
            source_path=file.path,
            source_size_bytes=file.size_bytes,
            source_version=file.version,
            published_path=path,
            size_bytes=stat_object(lake.connector.data, path).size_bytes,
            num_rows=file.num_rows,
        )

    threads = REMOTE_THREADS if lake.connector.data.is_remote else LOCAL_THREADS
    staged: list[PublishedFile] = []
    done = 0
    for file in in_threads(stage, lake.corpus.files, threads):
        staged.append(file)
        done += file.num_rows
        on_progress(Progress(stage="publish", done=done, total=lake.corpus.num_rows, detail=file.source_path))
    return tuple(staged)


def _write_tokens(lake: Lake, run: Run, weights: LakeWeights) -> None:
    """Keep the tokens of all rows that get a weight: the run knows those alone that it has seen."""
    sink = io.BytesIO()
    pq.write_table(weights.samples.select(["sample_id", "num_tokens"]), sink, compression="zstd")
    write_object(lake.destination, carried_tokens_path(run.run_id, weights.snapshot_id), sink.getvalue())


def _is_staged(lake: Lake, path: str) -> bool:
    """Whether an earlier attempt wrote the copy, and so lately that no garbage collection will take it for left."""
    try:
        return time.time() - stat_object(lake.connector.data, path).modified_at < _REUSED_SECONDS
    except NotFoundError:
        return False


def _add_weights(
    lake: Lake, run: Run, file: ParquetFile, weights: pa.Table, path: str, bloom_filters: frozenset[str]
) -> None:
    def columns(_: int, first_row: int, num_rows: int) -> pa.Table:
        return weights.slice(first_row, num_rows)

    footer = {"lake-curator": f'{{"run_id": "{run.run_id}", "schema_version": 1}}'}
    add_columns(
        lake.corpus.store,
        file,
        lake.connector.data,
        path,
        columns,
        footer_metadata=footer,
        replace=lake.connector.replaceable,
        bloom_filters=bloom_filters,
    )


def _publication(
    lake: Lake,
    run: Run,
    weights: RowWeights,
    folder: str,
    files: tuple[PublishedFile, ...],
    *,
    version: int | None,
    created: bool,
) -> Publication:
    return Publication(
        version=version,
        run_id=run.run_id,
        snapshot_id=lake.snapshot_id,
        location=lake.connector.data.describe(folder),
        num_files=len(lake.corpus.files),
        num_rows=lake.corpus.num_rows,
        num_unweighted=weights.num_unweighted,
        num_gone=weights.num_gone,
        size_bytes=sum(file.size_bytes for file in files),
        created=created,
    )
