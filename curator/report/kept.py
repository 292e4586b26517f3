"""Tables that a run keeps beside its record, which a report can do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.store import Store, exists, open_object
from curator.catalog import RUN_FOLDER
from curator.errors import StorageError, one_line, translated

Made = TypeVar("Made")


def read_kept(store: Store, run_id: str, name: str, make: Callable[[pq.ParquetFile], Made], what: str) -> Made | None:
    """What `make` makes of a run's table of that file name; None where the run kept none.

    Raises:
        StorageError: the table is damaged, or cannot be read. It says how to do without `what` it tells.
    """
    path = f"{RUN_FOLDER}/{run_id}/{name}"
    try:
        with translated():
            if not exists(store, path):
                return None
            with open_object(store, path) as source:
                return make(pq.ParquetFile(source))
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise StorageError(
            f"{store.describe(path)} is damaged ({one_line(error)})",
            hint=f"restore it, or remove it to do without the {what}",
        ) from error
