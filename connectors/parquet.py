"""Parquet objects: what a footer says, schemas compared across files, columns streamed, columns added.

One module to import from; the parts are `_parquet_file` (read), `_schemas` (compare) and `_rewrite` (add columns).
"""

from connectors._parquet_file import ParquetFile, iter_batches, parse_partition, read_parquet_info
from connectors._rewrite import ColumnSource, rewrite_with_columns
from connectors._schemas import check_schemas, union_schema

__all__ = [
    "ColumnSource",
    "ParquetFile",
    "check_schemas",
    "iter_batches",
    "parse_partition",
    "read_parquet_info",
    "rewrite_with_columns",
    "union_schema",
]
