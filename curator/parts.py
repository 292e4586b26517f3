"""Rows into Parquet files of a bounded size, in a folder that appears whole where it is a local one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.errors import ConnectorError
from connectors.store import Store, delete, list_objects, open_store, staged_file

_FILE_BYTES = 256 << 20
"""Size at which a file is finished and the next begun."""


@contextmanager
def staging(place: Store, token: str) -> Iterator[Store]:
    """Where to write so that a local folder appears whole; other storage is written in place, and tidied on failure."""
    if not place.is_local:
        try:
            yield place
        except BaseException:
            with suppress(ConnectorError):  # the failure that brought us here matters more than what is left
                for info in list_objects(place):
                    if info.path.startswith(_part(token, "")):
                        delete(place, info.path)
            raise
        return
    folder = Path(place.path).resolve()
    made = folder.with_name(f".{folder.name}-{token}")
    made.mkdir(parents=True)
    try:
        yield open_store(str(made))
        _rename_over(made, folder, folder.with_name(f".{folder.name}-{token}-old"))
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _rename_over(made: Path, folder: Path, aside: Path) -> None:
    """Rename `made` to `folder`, of which an earlier one goes away for good once that was done."""
    replaced = folder.exists()
    if replaced:
        folder.rename(aside)
    try:
        made.rename(folder)
    except OSError:
        if replaced:
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_parts(
    staged: Store,
    token: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    tell: Callable[[int, str], object],
) -> list[tuple[str, int]]:
    """Write batches into files of about `_FILE_BYTES`, one in memory; (path, rows) of each.

    `tell` is called with the rows so far and the file after every batch.
    """
    files: list[tuple[str, int]] = []
    done, batches = 0, iter(batches)
    batch = next(batches, None)
    while batch is not None:
        path = _part(token, f"{len(files):05}.parquet")
        before = done
        with staged_file(staged, path) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            while batch is not None and sink.tell() < _FILE_BYTES:
                writer.write_table(pa.Table.from_batches([batch]))
                done += batch.num_rows
                tell(done, path)
                batch = next(batches, None)
        files.append((path, done - before))
    return files


def _part(token: str, rest: str) -> str:
    return f"part-{token}-{rest}"
