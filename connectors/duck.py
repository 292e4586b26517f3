"""DuckDB: connections, the row index, and views over the lake's rows.

One module to import from; the parts are `_database` (connections, quoting; the only importer of duckdb),
`_index` (what rows there are) and `_views` (their columns).
"""

from connectors._database import (
    Connection,
    Error,
    Relation,
    attached,
    check_select,
    confine,
    connect,
    duck_path,
    quote_identifier,
    quote_literal,
    register_store,
    transaction,
    writing,
)
from connectors._index import CONTENT, IngestReport, OnBadRows, changed_files, create_index_tables, has_index, ingest
from connectors._views import (
    create_duplicates_view,
    create_published_view,
    create_samples_view,
    create_version_view,
    version_rows,
)

__all__ = [
    "CONTENT",
    "Connection",
    "Error",
    "IngestReport",
    "OnBadRows",
    "Relation",
    "attached",
    "changed_files",
    "check_select",
    "confine",
    "connect",
    "create_duplicates_view",
    "create_index_tables",
    "create_published_view",
    "create_samples_view",
    "create_version_view",
    "duck_path",
    "has_index",
    "ingest",
    "quote_identifier",
    "quote_literal",
    "register_store",
    "transaction",
    "version_rows",
    "writing",
]
