"""SQL for where the columns of the lake's rows come from: its Parquet files, or the copy that the catalog keeps."""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from connectors._database import Connection, duck_path, quote_identifier, quote_literal
from connectors.errors import ConflictError, UnsupportedError
from connectors.store import Store

FILE_COLUMNS = ("file_index", "file_row_number")
"""Columns that read_parquet offers beside those of the file, by which a row is found in the index."""
COPY = "lake_copy"
"""Table with the source's columns and, under the names of `FILE_COLUMNS`, the file's id and the row in it."""

Partitions = tuple[Sequence[str], Mapping[str, Sequence[str | None]]]
"""Names of partition columns, and their values for every path in the index."""
NO_PARTITIONS: Partitions = ((), {})


def check_names(schema: pa.Schema) -> None:
    """Raises UnsupportedError if the source has a column of a name that DuckDB needs for itself."""
    if clash := {column.casefold() for column in schema.names} & set(FILE_COLUMNS):
        raise UnsupportedError(f"the lake has a column {min(clash)!r}, which DuckDB needs for itself", hint="rename it")


def rows_of_files(
    connection: Connection,
    store: Store,
    paths: Mapping[str, str],
    partitions: Partitions = NO_PARTITIONS,
    *,
    by_name: bool,
) -> str:
    """SQL for `p`, the rows of Parquet files, joined with `f`, one row per file: lake_file_id and partition values.

    Args:
        connection: with an index.
        store: where the files are.
        paths: path in the index → path in `store`.
        partitions: those that `f` is to have.
        by_name: whether the files' columns differ.

    Raises:
        ConflictError: the index does not know one of the files.
    """
    file_ids = _file_ids(connection, paths)
    listed = ", ".join(quote_literal(duck_path(store, path)) for path in paths.values())
    files = _files(((index, file_ids[path], path) for index, path in enumerate(paths)), partitions)
    return (
        f"(SELECT *, {', '.join(FILE_COLUMNS)} FROM read_parquet([{listed}], hive_partitioning = false, "
        f"union_by_name = {str(by_name).lower()})) AS p JOIN {files} ON p.file_index = f.lake_file_index"
    )


def rows_of_copy(connection: Connection, paths: Sequence[str], partitions: Partitions) -> str:
    """As `rows_of_files`, of the rows that the catalog has a copy of."""
    file_ids = _file_ids(connection, paths)
    files = _files(((index, file_ids[path], path) for index, path in enumerate(paths)), partitions)
    return f"{COPY} AS p JOIN {files} ON p.file_index = f.lake_file_id"


def has_whole_copy(connection: Connection) -> bool:
    """Whether the catalog keeps the rows of all files of the index; not if something else changed the index alone."""
    return has_copy(connection) and not files_without_copy(connection)


def files_without_copy(connection: Connection) -> set[str]:
    """Paths of the files of the index whose rows the copy lacks."""
    lacking = f"SELECT path FROM files WHERE num_rows > 0 AND file_id NOT IN (SELECT DISTINCT file_index FROM {COPY})"
    return {path for (path,) in connection.execute(lacking).fetchall()}


def has_copy(connection: Connection) -> bool:
    """Whether the catalog keeps rows themselves."""
    found = connection.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE database_name = current_database() AND table_name = ?", [COPY]
    ).fetchall()
    return bool(found[0][0])


def _file_ids(connection: Connection, paths: Mapping[str, str] | Sequence[str]) -> dict[str, int]:
    file_ids = dict(connection.execute("SELECT path, file_id FROM files").fetchall())
    if missing := sorted(set(paths) - file_ids.keys()):
        raise ConflictError(f"{missing[0]} is not in the index", hint="ingest the lake again")
    return file_ids


def _files(numbered: Iterable[tuple[int, int, str]], partitions: Partitions) -> str:
    names, values = partitions
    entries = ", ".join(
        f"({', '.join([str(index), str(file_id), *map(quote_literal, values.get(path, []))])})"
        for index, file_id, path in numbered
    )
    header = ", ".join(["lake_file_index", "lake_file_id", *map(quote_identifier, names)])
    return f"(VALUES {entries}) AS f({header})"
