"""The copy of the lake's rows in the catalog, for lakes that are asked often: kept up to date with the index."""

from collections.abc import Iterator, Sequence

from connectors._database import Connection, Error, memory_limit, quote_identifier, register_store
from connectors._parquet_file import OnProgress, ParquetFile, check_unchanged, iter_batches
from connectors._sources import COPY, FILE_COLUMNS, check_names, files_without_copy, has_copy, rows_of_files
from connectors.plain import Corpus

_ROWS_AT_A_TIME = 200_000
_FILES_AT_A_TIME = 500
_MEMORY_GIBIBYTES = 1.8


def drop_copy(connection: Connection) -> None:
    """Lets go of the copy, if there is one; the space in the catalog's file is used again by what comes."""
    connection.execute(f"DROP TABLE IF EXISTS {COPY}")


def update_copy(connection: Connection, corpus: Corpus, on_progress: OnProgress) -> int:
    """Brings the copy to the index, in the caller's transaction: rows of files it lacks come, of others go.

    All are copied anew if a column came, went or changed its type. DuckDB takes at most 2 GB of memory for it.

    Args:
        connection: with an index of `corpus`.
        corpus: as it was indexed.
        on_progress: called with (rows copied so far, rows to copy).

    Returns:
        How many rows were copied.

    Raises:
        ConflictError: a file changed since it was listed.
        CorruptFileError: a column that the index does not read is damaged.
        UnsupportedError: a column has a name that DuckDB needs for itself.
    """
    check_names(corpus.schema)
    register_store(connection, corpus.store)
    _create_if_other(connection, corpus)
    connection.execute(f"DELETE FROM {COPY} WHERE file_index NOT IN (SELECT file_id FROM files)")
    missing = files_without_copy(connection)
    wanted = [file for file in corpus.files if file.path in missing]
    total, done = sum(file.num_rows for file in wanted), 0
    with memory_limit(connection, _MEMORY_GIBIBYTES):
        for files in _chunks(wanted):
            names = list(dict.fromkeys(name for file in files for name in file.schema.names))
            try:
                connection.execute(f"INSERT INTO {COPY} BY NAME {_rows(connection, corpus, files, names)}")
            except Error:
                _find_fault(corpus, files)
                raise
            for file in files:
                check_unchanged(corpus.store, file)
            done += sum(file.num_rows for file in files)
            on_progress(done, total)
    return total


def _find_fault(corpus: Corpus, files: Sequence[ParquetFile]) -> None:
    """Raises what is wrong with one of the files, which DuckDB does not tell: it changed, or is damaged."""
    for file in files:
        for _ in iter_batches(corpus.store, file, file.schema.names):
            pass


def _create_if_other(connection: Connection, corpus: Corpus) -> None:
    """Makes the empty table, unless there is one with the columns that the lake has now."""
    rows = f"{_rows(connection, corpus, corpus.files, corpus.schema.names)} LIMIT 0"
    try:
        _create_unless(connection, rows)
    except Error:
        for file in corpus.files:
            check_unchanged(corpus.store, file)
        raise


def _create_unless(connection: Connection, rows: str) -> None:
    if has_copy(connection):
        wanted, known = (
            connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {what})").fetchall()
            for what in (rows, f"FROM {COPY}")
        )
        if wanted == known:
            return
    connection.execute(f"CREATE OR REPLACE TABLE {COPY} AS {rows}")


def _rows(connection: Connection, corpus: Corpus, files: Sequence[ParquetFile], names: Sequence[str]) -> str:
    """A SELECT of what the table has of some files."""
    by_name = any(not file.schema.equals(files[0].schema) for file in files)
    source = rows_of_files(connection, corpus.store, {file.path: file.path for file in files}, by_name=by_name)
    selected = [f"f.lake_file_id AS {FILE_COLUMNS[0]}", f"p.{FILE_COLUMNS[1]}"]
    selected += [f"p.{quote_identifier(name)}" for name in names]
    return f"SELECT {', '.join(selected)} FROM {source}"


def _chunks(files: Sequence[ParquetFile]) -> Iterator[list[ParquetFile]]:
    """Files that are read by one statement: many small ones together, a large one alone."""
    chunk: list[ParquetFile] = []
    for file in files:
        chunk.append(file)
        if sum(each.num_rows for each in chunk) >= _ROWS_AT_A_TIME or len(chunk) == _FILES_AT_A_TIME:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
