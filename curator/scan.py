"""A published version as a polars LazyFrame, whatever its files' columns and hive partitions are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import parse_partition, read_parquet_info
from connectors.store import ObjectInfo, Store
from connectors.threads import in_threads, num_threads
from curator.catalog import WEIGHT_COLUMNS
from curator.sidecar import check_fresh, is_sidecar

if TYPE_CHECKING:
    import polars as pl

    from curator.lake import Lake


def scan_version(lake: Lake, manifest: Manifest) -> pl.LazyFrame:
    """Every row of a version, lazily: columns that a file lacks are null, hive partitions are string columns.

    Raises:
        InputError: its weights lie beside source files that have changed.
    """
    import polars as pl

    if is_sidecar(manifest):
        check_fresh(lake, manifest)
        return pl.concat([_scan_beside(lake, file) for file in manifest.files], how="diagonal_relaxed")
    data = lake.connector.data
    frames = [
        _scan_files(data, paths).with_columns(
            pl.lit(value, dtype=pl.String).alias(name) for name, value in partition.items()
        )
        for partition, paths in _groups(data, manifest)
    ]
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")


def _scan_beside(lake: Lake, file: PublishedFile) -> pl.LazyFrame:
    """The rows of one source file with the weights of its sidecar, which has them in the same order."""
    import polars as pl

    store = lake.corpus.store
    rows = _scan_files(store, [store.full_path(file.source_path)])
    weights = _scan_files(lake.destination, [lake.destination.full_path(file.published_path)])
    names = rows.collect_schema().names()
    partition = {k: v for k, v in parse_partition(file.source_path).items() if k not in names}
    return pl.concat([rows, weights.select(WEIGHT_COLUMNS)], how="horizontal").with_columns(
        pl.lit(value, dtype=pl.String).alias(name) for name, value in partition.items()
    )


def _groups(destination: Store, manifest: Manifest) -> list[tuple[dict[str, str | None], list[str]]]:
    """The files, those of one hive partition and one schema together: (partition, full paths)."""
    groups: list[tuple[dict[str, str | None], pa.Schema, list[str]]] = []
    for file, schema in zip(manifest.files, _schemas(destination, manifest.files), strict=True):
        partition = {k: v for k, v in parse_partition(file.source_path).items() if k not in schema.names}
        paths = next((p for known, other, p in groups if known == partition and other.equals(schema)), None)
        if paths is None:
            groups.append((partition, schema, paths := []))
        paths.append(destination.full_path(file.published_path))
    return [(partition, paths) for partition, _, paths in groups]


def _schemas(destination: Store, files: Sequence[PublishedFile]) -> list[pa.Schema]:
    listed = [ObjectInfo(file.published_path, file.size_bytes, "") for file in files]
    footers = in_threads(lambda info: read_parquet_info(destination, info), listed, num_threads(destination))
    return [footer.schema for footer in footers]


def _scan_files(destination: Store, paths: Sequence[str]) -> pl.LazyFrame:
    """Files of one schema; what their paths look like means nothing."""
    import polars as pl

    if destination.is_local:
        return pl.scan_parquet(list(paths), hive_partitioning=False, glob=False)
    from pyarrow import dataset, fs

    filesystem = fs.PyFileSystem(fs.FSSpecHandler(destination.fs))
    return pl.scan_pyarrow_dataset(dataset.dataset(list(paths), filesystem=filesystem, format="parquet"))
