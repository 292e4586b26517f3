"""What the tests of table formats publish: each row weighs as many as its place in the file; and to which tables."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from connectors.connector import lake_place, open_connector
from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import add_columns
from connectors.store import exists, stat_object, substore

COLUMNS = pa.schema({"sample_weight": pa.float32(), "weight_run_id": pa.string()})
ROWS = pa.table({"text": ["a", "b", "c"], "domain": ["x", "y", "x"], "score": pa.array([3, 1, 2], pa.int64())})
NEW = pa.table({"text": ["new"], "domain": ["z"], "score": pa.array([9], pa.int64())})
WRITER = Path(__file__).with_name("table_writer.py")


def connect(url, options):
    destination = substore(lake_place(url, options)[0], "_curator")
    return open_connector(url, options, destination=destination, columns=tuple(COLUMNS.names))


def prepare(connector, run_id):
    """Stage copies of all files; the manifest to commit."""
    folder = connector.folder(run_id)
    files = []
    for file in connector.read_corpus().files:
        path = connector.published_path(folder, file)
        schema = connector.staged_schema(folder, file, COLUMNS)

        def values(_group, first_row, num_rows, schema=schema):
            weights = pa.array(range(first_row, first_row + num_rows), pa.float32())
            return pa.table([weights, pa.array([run_id] * num_rows, pa.string())], schema=schema)

        if not exists(connector.data, path):
            add_columns(connector.data, file, connector.data, path, values, replace=connector.replaceable)
        size = stat_object(connector.data, path).size_bytes
        files.append(
            PublishedFile(
                source_path=file.path,
                source_size_bytes=file.size_bytes,
                source_version=file.version,
                published_path=path,
                size_bytes=size,
                num_rows=file.num_rows,
            )
        )
    return Manifest(
        run_id=run_id,
        snapshot_id="snapshot",
        columns=tuple(COLUMNS.names),
        files=tuple(files),
        extra={"folder": folder},
    )


def publish(connector, run_id):
    return connector.commit(prepare(connector, run_id), idempotency_key=run_id)


class TableCase:
    """A real table and what its other users see of it.

    A format's class gives `format_name`, `url`, `root` (on a local disk) and `module`, whose `replace_files` makes our
    commits. Its methods use the format's own library: `create`, `append_to`, `overwrite`, `compact` and `clean` write;
    `open`, `rows`, `paths` (below `root`), `number` (of the newest version), `num_ours` (of the versions) and `scan`
    (by polars) read.
    """

    def __init__(self, folder, place=None):
        self.folder = folder
        self.options = place.options if place else None

    def connector(self):
        return connect(self.url, self.options)

    def append(self, rows=NEW):
        self.append_to(self.url, self.options, rows)

    def weights(self):
        return {row["text"]: row["sample_weight"] for row in self.rows()}

    def columns(self):
        return [field.name for field in self.open().schema().fields]

    def writer(self, task, *arguments):
        command = [sys.executable, str(WRITER), task, self.url, json.dumps(self.options), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def case_class(format_name):
    if format_name == "delta":
        from delta_cases import DeltaCase

        return DeltaCase
    from iceberg_cases import IcebergCase

    return IcebergCase


def overtake(monkeypatch, table, change):
    """Let another writer make a change right before our first commit; a list that grows with each attempt of ours."""
    commit = table.module.replace_files
    attempts = []

    def overtaken(*arguments):
        attempts.append(arguments)
        if len(attempts) == 1:
            change()
        commit(*arguments)

    monkeypatch.setattr(table.module, "replace_files", overtaken)
    return attempts
