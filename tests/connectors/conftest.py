"""Fixtures of the connectors' tests."""

import io
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the programs that tests also import

from connectors import duck
from connectors.store import open_store, write_object


def write_columns(url, path, options=None, *, row_group_size=None, **columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=row_group_size)
    write_object(open_store(url, options), path, sink.getvalue())


@pytest.fixture
def put():
    """`put(url, path, options, **columns)` writes a Parquet file."""
    return write_columns


@pytest.fixture
def url():
    """A lake in memory."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def connection():
    """A catalog in memory."""
    with duck.connect() as opened:
        yield opened


@pytest.fixture
def local(table_class, tmp_path):
    """A table, not made yet, of the format that the module's `table_class` says."""
    return table_class(tmp_path)


@pytest.fixture(params=["local", "s3"])
def table(request, table_class, tmp_path):
    """As `local`, and on S3."""
    return table_class(tmp_path, request.getfixturevalue("s3_place") if request.param == "s3" else None)
