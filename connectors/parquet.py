"""Parquet objects: what a footer says, schemas compared across files, columns streamed, columns added.

One module to import from; the parts are `_parquet_file` (read), `_schemas` (compare) and `_add_columns` (add).
"""

from connectors._add_columns import AddedColumns, add_columns
from connectors._new_columns import ColumnSource
from connectors._parquet_file import (
    OnProgress,
    ParquetFile,
    iter_batches,
    parse_partition,
    read_parquet_info,
    read_parquet_infos,
    untold,
)
from connectors._schemas import check_schemas, logical_type, union_schema

__all__ = [
    "AddedColumns",
    "ColumnSource",
    "OnProgress",
    "ParquetFile",
    "add_columns",
    "check_schemas",
    "iter_batches",
    "logical_type",
    "parse_partition",
    "read_parquet_info",
    "read_parquet_infos",
    "union_schema",
    "untold",
]
