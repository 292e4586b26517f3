"""What the tests of table formats publish: each row weighs as many as its place in the file."""

import pyarrow as pa

from connectors.manifest import Manifest, PublishedFile
from connectors.parquet import add_columns
from connectors.store import exists, stat_object

COLUMNS = pa.schema({"sample_weight": pa.float32(), "weight_run_id": pa.string()})


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
