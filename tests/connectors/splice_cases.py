"""Columns to splice, files to splice them into, and what has to hold of the result."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.parquet import add_columns, read_parquet_info
from connectors.store import read_bytes, stat_object, write_object

NUM_ROWS = 60
ADDED = ["sample_weight", "rank", "keep", "run"]


def new_columns(_, first_row, num_rows):
    rows = range(first_row, first_row + num_rows)
    columns = [
        pa.array([row / 2 for row in rows], pa.float32()),
        pa.array([None if row % 3 == 0 else row for row in rows], pa.int64()),
        pa.array([row % 2 == 0 for row in rows], pa.bool_()),
        pa.array([None if row % 5 == 0 else f"run {row % 2}" for row in rows], pa.string()),
    ]
    return pa.table(columns, names=ADDED)


def arrow(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def put(store, path, data):
    write_object(store, path, data)
    return read_parquet_info(store, stat_object(store, path))


def footer_start(data):
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def spliced(store, data, columns=new_columns, **options):
    """The file with columns added, which has to be a splice."""
    added = add_columns(store, put(store, "a.parquet", data), store, "b.parquet", columns, **options)
    assert added.rewritten_because is None
    result = read_bytes(store, "b.parquet")
    assert added.written == stat_object(store, "b.parquet")
    assert result[: footer_start(data)] == data[: footer_start(data)]
    return result


def check_contents(before, after, columns=new_columns):
    """Arrow reads the old columns and what it says of their chunks as before, and the new columns behind them."""
    old, new = pq.ParquetFile(io.BytesIO(before)), pq.ParquetFile(io.BytesIO(after))
    expected = columns(0, 0, old.metadata.num_rows)
    seen = new.read()
    num_old = len(old.schema_arrow)
    assert seen.select(range(num_old)).equals(old.read(), check_metadata=False)
    assert all(a.equals(b, check_metadata=True) for a, b in zip(old.schema_arrow, new.schema_arrow, strict=False))
    assert seen.select(range(num_old, seen.num_columns)).equals(expected)
    assert new.metadata.num_row_groups == old.metadata.num_row_groups
    first = 0
    for number in range(old.metadata.num_row_groups):
        group, wider = old.metadata.row_group(number), new.metadata.row_group(number)
        assert wider.num_rows == group.num_rows
        for leaf in range(old.metadata.num_columns):
            assert wider.column(leaf).to_dict() == group.column(leaf).to_dict()
        chunks = [wider.column(leaf) for leaf in range(old.metadata.num_columns, wider.num_columns)]
        if old.metadata.created_by and "fastparquet" not in old.metadata.created_by:
            assert wider.total_byte_size == group.total_byte_size + sum(c.total_uncompressed_size for c in chunks)
        part = expected.slice(first, group.num_rows)
        for chunk, values in zip(chunks, part.columns, strict=True):
            assert chunk.has_column_index
            assert chunk.has_offset_index
            assert chunk.statistics.null_count == values.null_count
        first += group.num_rows


TABLE = pa.table(
    {
        "id": list(range(NUM_ROWS)),
        "text": [None if i % 7 == 0 else f"text {i}" for i in range(NUM_ROWS)],
        "score": [i / 3 for i in range(NUM_ROWS)],
        "tags": [[f"t{i % 3}"] * (i % 3) for i in range(NUM_ROWS)],
        "source": pa.array([f"s{i % 4}" for i in range(NUM_ROWS)]).dictionary_encode(),
    }
)
