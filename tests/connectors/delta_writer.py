"""Other processes of the tests of Delta tables: a writer that appends, publishers that race, a publisher that dies.

python delta_writer.py append URL OPTIONS NUM_ROWS
python delta_writer.py publish URL OPTIONS RUN_ID [before|after]
"""

import json
import os
import sys

import deltalake
import pyarrow as pa

from connectors import _delta_log
from connectors.connector import open_connector
from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import add_columns
from connectors.store import exists, open_store, stat_object, substore

COLUMNS = {"sample_weight": pa.float32(), "weight_run_id": pa.string()}


def connect(url, options):
    destination = substore(open_store(url, options), "_curator")
    return open_connector(f"delta:{url}", options, destination=destination, columns=tuple(COLUMNS))


def prepare(connector, run_id):
    """Stage copies of all files, each row weighing as many as its place in the file; the manifest to commit."""
    folder = connector.folder(run_id)
    files = []
    for file in connector.read_corpus().files:
        path = connector.published_path(folder, file)

        def columns(_group, first_row, num_rows):
            weights = pa.array(range(first_row, first_row + num_rows), pa.float32())
            return pa.table({"sample_weight": weights, "weight_run_id": pa.array([run_id] * num_rows, pa.string())})

        if not exists(connector.data, path):
            add_columns(connector.data, file, connector.data, path, columns, replace=connector.replaceable)
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
        run_id=run_id, snapshot_id="snapshot", columns=tuple(COLUMNS), files=tuple(files), extra={"folder": folder}
    )


def publish(connector, run_id):
    return connector.commit(prepare(connector, run_id), idempotency_key=run_id)


def die(when):
    """End the process, as a kill does, right before or after the table's commit."""
    commit = _delta_log.replace_files

    def commit_and_die(*arguments):
        if when == "after":
            commit(*arguments)
        os._exit(9)

    _delta_log.replace_files = commit_and_die


def append(url, options, num_rows):
    storage = _delta_log.delta_options(open_store(url, options))
    for number in range(num_rows):
        rows = pa.table({"text": [f"appended {number}"], "domain": ["x"]})
        deltalake.write_deltalake(url, rows, mode="append", schema_mode="merge", storage_options=storage or None)
        print(number, flush=True)


def main():
    task, url, options, given, *when = sys.argv[1:]
    if task == "append":
        append(url, json.loads(options), int(given))
        return
    if when:
        die(when[0])
    version = publish(connect(url, json.loads(options)), given)
    print(version.number, version.created)


if __name__ == "__main__":
    main()
