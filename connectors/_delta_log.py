"""The log of a Delta table, as the package deltalake reads and writes it: the only module that imports it."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

try:
    import deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError, DeltaProtocolError, TableNotFoundError
    from deltalake.transaction import AddAction, CommitProperties
except ImportError as error:
    from connectors.errors import MissingExtraError

    raise MissingExtraError("delta: needs an optional dependency: pip install 'lake-curator[delta]'") from error

from connectors._failures import scrub
from connectors._table import OURS, Table
from connectors.errors import (
    ConflictError,
    ConnectorError,
    CorruptFileError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from connectors.store import Store, leads_out

# fsspec's names of the options of S3 → those of deltalake
_S3_OPTIONS = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "endpoint_url": "aws_endpoint_url",
}
_DELTA_TYPES = {pa.float32(): "float", pa.float64(): "double", pa.int64(): "long", pa.string(): "string"}
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_HISTORY_ENTRIES = 1000
_NO_ANSWER = "Error interacting with object store"
"""What deltalake (1.6.6) says of a table's storage where its exception says no more than that something is wrong."""


@dataclass(frozen=True)
class FileAction:
    """A file that the newest snapshot names.

    Attributes:
        path: relative to the table, decoded.
        size_bytes: as the log says.
        partition: value of every partition column, as the log's typed values.
        stats: numRecords, minValues, maxValues and nullCount, as far as the log has them.
    """

    path: str
    size_bytes: int
    partition: Mapping[str, Any]
    stats: Mapping[str, Any]


def delta_options(store: Store) -> dict[str, str]:
    """The options of the store's filesystem as deltalake names them; the environment's AWS_… it reads itself.

    Raises:
        UnsupportedError: storage on which Delta tables are not read.
    """
    if store.is_local:
        return {}
    if "s3" not in store.fs.protocol:
        raise UnsupportedError(f"a Delta table is read from a local folder or s3://, not from {store.url}")
    given = store.fs.storage_options
    options = {ours: str(given[name]) for name, ours in _S3_OPTIONS.items() if given.get(name)}
    region = (given.get("client_kwargs") or {}).get("region_name")
    endpoint = options.get("aws_endpoint_url") or os.environ.get("AWS_ENDPOINT_URL", "")
    options |= {"aws_region": str(region)} if region else {}
    options |= {"aws_allow_http": "true"} if endpoint.startswith("http://") else {}
    return options | ({"aws_skip_signature": "true"} if given.get("anon") else {})


def open_table(store: Store, options: Mapping[str, str], version: int | None = None) -> Table:
    """The table at a version, by default the newest.

    Raises:
        NotFoundError: no table, or no such version.
        UnsupportedError: column mapping or deletion vectors, by which rows are not what the files say.
    """
    address = store.path if store.is_local else store.url
    if store.is_local and not os.path.isdir(os.path.join(store.path, "_delta_log")):  # noqa: PTH112, PTH118
        raise NotFoundError(f"{store.url} is not a Delta table: it has no _delta_log", hint="check the address")
    with delta_errors(store, options):
        table = deltalake.DeltaTable(address, version=version, storage_options=dict(options) or None)
        mapping = table.metadata().configuration.get("delta.columnMapping.mode") or "none"
        hidden = pa.table(table.deletion_vectors()).num_rows
    if mapping != "none":
        raise UnsupportedError(
            f"the Delta table {store.url} maps columns by {mapping}, so its files do not have the columns' names",
            hint="rewrite it without delta.columnMapping.mode",
        )
    if hidden:
        raise UnsupportedError(
            f"the Delta table {store.url} has deletion vectors on {hidden} file(s), whose rows are not all there",
            hint="REORG TABLE … APPLY (PURGE) writes them away",
        )
    return table


def read_actions(store: Store, table: Table) -> list[FileAction]:
    """The files of the table's snapshot, sorted by path.

    Raises:
        UnsupportedError: a file that lies outside the table's folder.
    """
    with delta_errors(store, {}):
        rows = pa.table(table.get_add_actions()).to_pylist()
    for row in rows:
        if row["path"].startswith("/") or "://" in row["path"] or leads_out(unquote(row["path"])):
            raise UnsupportedError(
                f"the Delta table {store.url} names a file outside its folder ({row['path']}), as shallow clones do",
                hint="copy the table",
            )
    actions = [
        FileAction(unquote(row["path"]), row["size_bytes"], row.get("partition") or {}, _stats(row)) for row in rows
    ]
    return sorted(actions, key=lambda action: action.path)


def own_columns(table: Table) -> frozenset[str]:
    """Names of the columns that we added."""
    fields = json.loads(table.schema().to_json())["fields"]
    return frozenset(field["name"] for field in fields if OURS in field["metadata"])


def is_append_only(table: Table) -> bool:
    """Whether the table's owner forbids to remove rows, which replacing a file does."""
    return str(table.metadata().configuration.get("delta.appendOnly", "")).lower() == "true"


def read_history(store: Store, table: Table) -> list[dict[str, Any]]:
    """What its newest commits say of themselves, newest first."""
    with delta_errors(store, {}):
        return list(table.history(_HISTORY_ENTRIES))


def replace_files(
    store: Store, table: Table, files: Sequence[FileAction], columns: pa.Schema, metadata: Mapping[str, Any]
) -> None:
    """Atomic: one commit right after the table's version, whose snapshot is `files` with `columns`.

    Raises:
        ConflictError: another commit was first; nothing was written.
        UnsupportedError: the table needs what deltalake cannot write.
        UnavailableError: no answer; the commit may or may not be there.
    """
    schema = json.loads(table.schema().to_json())
    kept = [field for field in schema["fields"] if field["name"] not in columns.names]
    added = [
        {"name": column.name, "type": _DELTA_TYPES[column.type], "nullable": True, "metadata": {OURS: "published"}}
        for column in columns
    ]
    now_ms = int(time.time() * 1000)
    actions = [
        AddAction(file.path, file.size_bytes, file.partition, now_ms, data_change=True, stats=json.dumps(file.stats))
        for file in files
    ]
    # No retries: deltalake would rebase on commits that it takes for harmless, such as OPTIMIZE's, and rows would be
    # there twice (deltalake 1.6.6, seen).
    properties = CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0)
    with delta_errors(store, {}):
        table.create_write_transaction(
            actions,
            mode="overwrite",
            schema=deltalake.Schema.from_json(json.dumps(schema | {"fields": kept + added})),
            partition_by=table.metadata().partition_columns,
            commit_properties=properties,
        )


def restore_table(store: Store, table: Table, number: int, metadata: Mapping[str, Any]) -> None:
    """Atomic: one more commit, whose snapshot and schema are those of version `number`.

    Raises:
        ConflictError: another commit was first.
        NotFoundError: files of that version were removed.
    """
    with delta_errors(store, {}):
        table.restore(number, commit_properties=CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0))


@contextmanager
def delta_errors(store: Store, options: Mapping[str, str]) -> Iterator[None]:
    """Within it, what deltalake raises leaves as a `ConnectorError` about the table, without credentials."""
    try:
        yield
    except (DeltaError, OSError) as error:
        secret = {**store.fs.storage_options, **options}
        raise _translate(error, store.url, scrub(_COLORS.sub("", str(error)), secret)) from error


def _translate(error: Exception, place: str, said: str) -> ConnectorError:
    if isinstance(error, TableNotFoundError):
        return NotFoundError(f"there is no Delta table at {place}", hint="check the address")
    if isinstance(error, CommitFailedError):
        return ConflictError(f"another writer committed to the Delta table {place} first ({said})", hint="try again")
    if isinstance(error, DeltaProtocolError):
        return UnsupportedError(f"the Delta table {place} has a feature that deltalake cannot handle: {said}")
    if isinstance(error, OSError) or _NO_ANSWER in str(error):
        return UnavailableError(f"cannot reach the Delta table {place}: {said}", hint="check credentials and network")
    return CorruptFileError(f"the Delta table {place} cannot be used: {said}")


def _stats(row: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of a file that JSON can hold exactly; readers do without the rest."""
    stats: dict[str, Any] = {} if row["num_records"] is None else {"numRecords": row["num_records"]}
    for name, key in (("min", "minValues"), ("max", "maxValues"), ("null_count", "nullCount")):
        values = {column: _plain(value) for column, value in (row.get(name) or {}).items()}
        stats[key] = {column: value for column, value in values.items() if value is not None}
    return stats


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float):
        return value
    return value.isoformat() if type(value) is date else None
