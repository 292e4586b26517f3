"""Sidecars: weights in files of their own beside a source that one cannot or does not want to copy.

A sidecar has a row for every row of one source file, in its order. It is joined to the source by file and row number,
which means something only while the source is the one that was read: every reader looks first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.errors import NotFoundError
from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import ParquetFile
from connectors.store import staged_file, stat_object
from connectors.threads import in_threads, num_threads
from curator.errors import InputError, TryAgainError, UsageError
from curator.places import VIEWS

if TYPE_CHECKING:
    from curator.lake import Lake

Mode = Literal["copy", "sidecar"]
CANNOT_SHOW = "weights that lie beside source files, since a plain DuckDB would not notice when those change"


def is_sidecar(manifest: Manifest) -> bool:
    """Whether a version has weights beside the source files instead of copies of them."""
    return manifest.extra.get("mode") == "sidecar"


def check_no_views(lake: Lake) -> None:
    """Refuse to make sidecars the newest version where views are kept that could not show it.

    Raises:
        UsageError: saying what to do.
    """
    place = lake.workdir / VIEWS
    if place.exists():
        raise UsageError(f"{place} cannot show {CANNOT_SHOW}", hint="remove it first, or publish copies")


def write_sidecar(lake: Lake, file: ParquetFile, rows: pa.Table, path: str, run_id: str) -> None:
    """Write the sidecar of a source file; it appears whole or not at all.

    Args:
        lake: its destination takes the sidecar.
        file: the source, as listed.
        rows: sample_id, row and the three weight columns, in the order of the source's rows.
        path: of the sidecar in the destination.
        run_id: goes into the footer.

    Raises:
        TryAgainError: the source has changed since it was listed.
    """
    footer = {"lake-curator": f'{{"run_id": "{run_id}", "schema_version": 1}}'}
    with staged_file(lake.destination, path) as sink:
        pq.write_table(rows.replace_schema_metadata(footer), sink, compression="zstd")
    try:
        now = stat_object(lake.corpus.store, file.path)
    except NotFoundError:
        now = None
    if now is None or (now.size_bytes, now.version) != (file.size_bytes, file.version):
        place = lake.corpus.store.describe(file.path)
        raise TryAgainError(f"{place} has changed since it was listed", hint="publish again")


def check_fresh(lake: Lake, manifest: Manifest) -> None:
    """Refuse a sidecar version whose source files are not as they were: its weights would meet other rows.

    Raises:
        InputError: naming the first file that has changed or is gone.
    """
    store = lake.corpus.store

    def is_fresh(file: PublishedFile) -> bool:
        try:
            now = stat_object(store, file.source_path)
        except NotFoundError:
            return False
        return (now.size_bytes, now.version) == (file.source_size_bytes, file.source_version)

    for file, fresh in zip(manifest.files, in_threads(is_fresh, manifest.files, num_threads(store)), strict=True):
        if not fresh:
            raise InputError(
                f"the weights of this version lie beside {store.describe(file.source_path)}, which has changed since "
                "or is gone",
                hint="publish the run again, or restore the file",
            )
