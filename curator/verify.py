"""Verification: whether a version is what was published, down to the identities of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.commit import Version
from connectors.errors import ConnectorError
from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import ParquetFile, iter_batches, read_parquet_info
from connectors.store import ObjectInfo, Store, list_objects
from connectors.threads import in_threads, num_threads
from curator.catalog import WEIGHT_COLUMNS, unchanged_files
from curator.errors import CuratorError, one_line
from curator.progress import Progress, ProgressCallback
from curator.publish import WEIGHT_SCHEMA
from curator.sidecar import is_sidecar
from curator.versions import find_version
from curator.weights import MEAN_TOLERANCE, SHARE_TOLERANCE

if TYPE_CHECKING:
    from curator.lake import Lake

_BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found: an error in the version, or a note about the lake around it."""

    level: Literal["error", "note"]
    path: str
    said: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a version was found to be."""

    version: int
    run_id: str
    num_files: int
    num_rows: int
    deep: bool
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with the version; notes are no errors."""
        return all(finding.level == "note" for finding in self.findings)


@dataclass
class _Weights:
    """What the weight columns of all files add up to."""

    num_weighted: int = 0
    total: float = 0.0
    domain_weights: set[float] = field(default_factory=set)


def verify(
    lake: Lake, version: int | None, as_of: str | datetime | None, on_progress: ProgressCallback, *, deep: bool
) -> Verification:
    """Check every object that a version names, and the identities of its weights; changes nothing.

    Raises:
        NotFoundError: no such version.
        InputError: the log is damaged.
        StorageError: the storage did not answer.
    """
    found = find_version(lake, version, as_of)
    try:
        manifest = lake.connector.read_manifest(found)
    except ConnectorError as error:
        wrong = Finding(level="error", path=found.manifest_path, said=one_line(error))
        return _verification(found, (), [wrong], deep=deep)
    findings = [*_check_files(lake.connector.data, manifest, on_progress, deep=deep), *_check_sources(lake, manifest)]
    return _verification(found, manifest.files, findings, deep=deep)


def _verification(
    version: Version, files: Sequence[PublishedFile], findings: list[Finding], *, deep: bool
) -> Verification:
    return Verification(
        version=version.number,
        run_id=version.run_id,
        num_files=len(files),
        num_rows=sum(file.num_rows for file in files),
        deep=deep,
        findings=tuple(findings),
    )


def _check_files(store: Store, manifest: Manifest, on_progress: ProgressCallback, *, deep: bool) -> Iterator[Finding]:
    listed = {info.path: info for info in list_objects(store, prefix=str(manifest.extra.get("folder", "")))}
    weights = _Weights()
    sound = True

    def footer(file: PublishedFile) -> ParquetFile | str:
        return _footer(store, file, listed.get(file.published_path))

    done, total = 0, sum(file.num_rows for file in manifest.files)
    footers = in_threads(footer, manifest.files, num_threads(store))
    for file, opened in zip(manifest.files, footers, strict=True):
        said = [opened] if isinstance(opened, str) else _check_rows(store, manifest, opened, weights, deep=deep)
        for sentence in said:
            sound = False
            yield Finding(level="error", path=file.published_path, said=sentence)
        done += file.num_rows
        on_progress(Progress(stage="verify", done=done, total=total, detail=file.published_path))
    yield from _check_identities(manifest, weights, is_whole=sound)


def _footer(store: Store, file: PublishedFile, info: ObjectInfo | None) -> ParquetFile | str:
    """The footer of a published file, or what is wrong with it."""
    if info is None:
        return "is gone"
    if info.size_bytes != file.size_bytes:
        return f"has {info.size_bytes:,} bytes, {file.size_bytes:,} were published"
    try:
        opened = read_parquet_info(store, info)
    except ConnectorError as error:
        return one_line(error)
    if opened.num_rows != file.num_rows:
        return f"has {opened.num_rows:,} rows, {file.num_rows:,} were published"
    for column in WEIGHT_SCHEMA:
        if column.name not in opened.schema.names:
            return f"has no column {column.name!r}"
        kind = opened.schema.field(column.name).type
        if kind != column.type:
            return f"has a column {column.name!r} of type {kind}, {column.type} was published"
    return opened


def _check_rows(store: Store, manifest: Manifest, file: ParquetFile, weights: _Weights, *, deep: bool) -> Iterator[str]:
    """What is wrong with the rows of a file; its weights are added up."""
    said: dict[str, None] = {}
    beside = is_sidecar(manifest)
    columns = file.schema.names if deep else ("row",) * beside + WEIGHT_COLUMNS
    num_rows = 0
    try:
        for batch in iter_batches(store, file, columns, batch_rows=_BATCH_ROWS):
            said |= dict.fromkeys(_add_batch(manifest, batch, weights))
            expected = np.arange(num_rows, num_rows + batch.num_rows)
            if beside and not np.array_equal(batch["row"].to_numpy(zero_copy_only=False), expected):
                said["has rows in another order than its source"] = None
            num_rows += batch.num_rows
    except ConnectorError as error:
        said[one_line(error)] = None
    yield from said


def _add_batch(manifest: Manifest, batch: pa.RecordBatch, weights: _Weights) -> Iterator[str]:
    nulls = [batch[name].is_null() for name in WEIGHT_COLUMNS]
    if not (nulls[0].equals(nulls[1]) and nulls[0].equals(nulls[2])):
        yield "has rows in which some of the three weight columns are null and others are not"
    sample = batch["sample_weight"].drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    domain = batch["domain_weight"].drop_null().unique().to_numpy(zero_copy_only=False)
    for name, values in (("sample_weight", sample), ("domain_weight", domain)):
        if not np.isfinite(values).all() or (values < 0).any():
            yield f"has a {name} that is negative or not a finite number"
    runs = [run for run in pc.unique(batch["weight_run_id"].drop_null()).to_pylist() if run != manifest.run_id]
    if runs:
        yield f"has weights of run {runs[0]!r}, the version is of {manifest.run_id!r}"
    weights.num_weighted += len(sample)
    weights.total += float(sample.sum())
    weights.domain_weights |= {float(value) for value in domain}


def _check_identities(manifest: Manifest, weights: _Weights, *, is_whole: bool) -> Iterator[Finding]:
    domains = manifest.extra.get("domains", [])
    total = sum(row["domain_weight"] for row in domains)
    if abs(total - 1) > SHARE_TOLERANCE:
        yield Finding(level="error", path="manifest", said=f"the domain weights sum to {total:.6f}, not to 1")
    known = {float(np.float32(row["domain_weight"])) for row in domains}
    if strange := sorted(weights.domain_weights - known):
        said = f"{len(strange)} values of domain_weight, first {strange[0]:.6g}, belong to no domain of the run"
        yield Finding(level="error", path="data", said=said)
    if not is_whole or not weights.num_weighted:
        return  # a mean over what is left says nothing
    num_gone = sum(row["num_samples"] for row in domains) - weights.num_weighted
    mean = weights.total / weights.num_weighted
    if num_gone:
        said = f"{num_gone:,} rows of the run were not in the lake any more; the mean sample_weight is {mean:.6f}"
        yield Finding(level="note", path="data", said=said)
    elif abs(mean - 1) > MEAN_TOLERANCE:
        yield Finding(level="error", path="data", said=f"the mean sample_weight is {mean:.6f}, not 1")


def _check_sources(lake: Lake, manifest: Manifest) -> Iterator[Finding]:
    """Files of the lake that are not as they were when the version was made; sidecars are worth nothing without."""
    level: Literal["error", "note"] = "error" if is_sidecar(manifest) else "note"
    try:
        unchanged = unchanged_files(lake.corpus, manifest)
    except CuratorError as error:
        yield Finding(level=level, path=lake.url, said=f"the lake cannot be listed: {one_line(error)}")
        return
    there = {file.path for file in lake.corpus.files}
    for file in manifest.files:
        if file.source_path not in unchanged:
            what = "has changed" if file.source_path in there else "is gone"
            said = f"the source {what} since the version was made"
            yield Finding(level=level, path=file.source_path, said=said)
