"""The row index: which rows the lake has, brought up to date file by file in one transaction."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from connectors._copy import drop_copy, update_copy
from connectors._database import Connection, database_errors, transaction
from connectors._parquet_file import OnProgress, ParquetFile, is_small, untold
from connectors._rows import Columns, IdHash, index_batches
from connectors._schemas import check_schemas
from connectors.errors import BadRowsError
from connectors.plain import Corpus
from connectors.store import Store
from connectors.threads import REMOTE_THREADS

OnBadRows = Literal["error", "skip"]

_ROWS_PER_INSERT = 100_000
CONTENT = "split_part({}, '-', 1)"
"""In SQL, of a sample id that is no key: the hash of the row's content, which identical rows share."""
_INDEX_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    file_id INTEGER, path VARCHAR, size_bytes BIGINT, version VARCHAR, num_rows BIGINT, num_row_groups INTEGER,
    footer_hash VARCHAR);
ALTER TABLE files ADD COLUMN IF NOT EXISTS footer_hash VARCHAR; -- to an older catalog, whose files have none
CREATE TABLE IF NOT EXISTS sample_index (
    file_id INTEGER, row BIGINT, sample_id VARCHAR, domain VARCHAR, num_bytes INTEGER, usable BOOLEAN);
ALTER TABLE sample_index DROP COLUMN IF EXISTS num_chars; -- of an older catalog
CREATE TABLE IF NOT EXISTS ingest_settings (name VARCHAR, value VARCHAR);
CREATE SEQUENCE IF NOT EXISTS file_ids;
"""
# Identical rows are told apart by a number, in order of path and row, so that the ids do not depend on the order in
# which files were indexed. Only rows that have, or had, an identical one are touched.
_NUMBER_DUPLICATES = f"""
WITH contents AS (
    SELECT file_id, row, sample_id, {CONTENT.format("sample_id")} AS content FROM sample_index),
repeated AS (
    SELECT content FROM contents GROUP BY content HAVING count(*) > 1 OR bool_or(sample_id <> content)),
numbered AS (
    SELECT file_id, row, content, row_number() OVER (PARTITION BY content ORDER BY path, row) AS number
    FROM contents JOIN repeated USING (content) JOIN files USING (file_id))
UPDATE sample_index AS i SET sample_id = if(n.number = 1, n.content, n.content || '-' || n.number)
FROM numbered AS n WHERE i.file_id = n.file_id AND i.row = n.row
"""
_NUM_DUPLICATES = "SELECT count(*) FROM sample_index WHERE usable AND contains(sample_id, '-')"
_FIRST_REPEATED_KEYS = """
SELECT sample_id, count(*), arg_min(path, (path, row)), arg_min(row, (path, row)), count(*) OVER ()
FROM sample_index JOIN files USING (file_id) GROUP BY sample_id HAVING count(*) > 1
ORDER BY min((path, row)) LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What one call of `ingest` found and did; counts of files unless named otherwise.

    Attributes:
        num_files: in the lake now.
        num_rows: in the lake now.
        num_unusable: rows without text or domain, indexed with `usable = false`.
        num_duplicates: usable rows with the domain and text of an earlier one, exactly; None if a key identifies rows,
            since their texts are not compared then.
        added, changed, removed, unchanged: against the index before.
        reindexed_all: whether the settings changed, so that nothing of the old index could be kept.
        rows_indexed: rows read by this call.
        rows_copied: rows whose columns this call wrote to the copy in the catalog; None if none is kept.
    """

    num_files: int
    num_rows: int
    num_unusable: int
    num_duplicates: int | None
    added: int
    changed: int
    removed: int
    unchanged: int
    reindexed_all: bool
    rows_indexed: int
    rows_copied: int | None

    @property
    def duplicate_share(self) -> float | None:
        """Of the usable rows, 0 if there is none."""
        if self.num_duplicates is None:
            return None
        return self.num_duplicates / max(1, self.num_rows - self.num_unusable)


def create_index_tables(connection: Connection) -> None:
    """Creates `files`, `sample_index` and `ingest_settings` where missing.

    files: one row per Parquet file of the lake; `file_id` is never used again for another content.
    sample_index: one row per row of the lake; (file_id, row) and sample_id are each unique.
    """
    with database_errors("the catalog"):
        connection.execute(_INDEX_TABLES)


def has_index(connection: Connection) -> bool:
    """Whether `ingest` has ended here once; a catalog without an index is what a killed one leaves."""
    found = connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name IN ('files', 'sample_index')")
    return bool(found.fetchall()[0][0] == 2)


def changed_files(connection: Connection, corpus: Corpus) -> list[str]:
    """Paths that differ between the index and `corpus`: new, changed or gone; `[]` if nothing needs ingesting."""
    with database_errors("the catalog"):
        indexed = _indexed_files(connection)
    present = {file.path: file for file in corpus.files}
    return sorted(
        path
        for path in indexed.keys() | present.keys()
        if path not in indexed or path not in present or not _is_as_indexed(present[path], indexed[path])
    )


def _indexed_files(connection: Connection) -> dict[str, dict[str, Any]]:
    """The table `files` by path; of an older catalog without `footer_hash`."""
    rows = connection.sql("SELECT * FROM files").to_arrow_table().to_pylist()
    return {row["path"]: row for row in rows}


def _is_as_indexed(file: ParquetFile, indexed: Mapping[str, Any]) -> bool:
    """Whether size, version and footer are those of the index; the footer, where the index knows it.

    Another version alone makes a file another one, though an S3 upload in other parts changes it, too: files of equal
    footers may differ in a text.
    """
    is_listed_so = (file.size_bytes, file.version) == (indexed["size_bytes"], indexed["version"])
    return is_listed_so and indexed.get("footer_hash") in (None, file.footer_hash)


def ingest(
    connection: Connection,
    corpus: Corpus,
    *,
    text: str,
    domain: str,
    key: str | None = None,
    id_hash: IdHash = "xxh3_128",
    bad_rows: OnBadRows = "error",
    copy_rows: bool = False,
    on_progress: OnProgress = untold,
    on_copied: OnProgress = untold,
) -> IngestReport:
    """Atomic: brings the index to `corpus`; an exception, Ctrl-C or crash leaves the index as it was.

    Incremental: a file with the same path, size, version and footer is not read again, unless the columns, `bad_rows`
    or the lake's address changed. The result is the same as of indexing everything anew, but for `file_id`.

    A row's `sample_id` is its key, else a hash of domain and text; further identical rows get `-2`, `-3` … .

    Args:
        connection: not in a transaction.
        corpus: as listed now.
        text: string column that is trained on.
        domain: column or Hive partition that names the domain.
        key: unique column that identifies a row; None identifies rows by content.
        id_hash: of a row's content; of no account with a key.
        bad_rows: "error" refuses rows without text or domain, "skip" indexes them with `usable = false`.
        copy_rows: keep all columns of the lake in the catalog, so that nothing of it is read to answer a query; a copy
            that is not wanted any more goes.
        on_progress: called with (rows indexed so far, rows to index).
        on_copied: called with (rows copied so far, rows to copy).

    Raises:
        SchemaError: a column is missing, mistyped or differs between files.
        BadRowsError: rows without text or domain, invalid UTF-8, null or repeated keys.
        ConflictError: a file changed since it was listed.
    """
    check_schemas(corpus.files, text=text, domain=domain, key=key)
    columns = Columns(text=text, domain=domain, key=key, id_hash=id_hash)
    with transaction(connection):
        connection.execute(_INDEX_TABLES)
        reindexed_all = _adopt_settings(connection, corpus, columns, bad_rows)
        new, report = _diff(connection, corpus, reindexed_all)
        total = sum(file.num_rows for file in new)
        done = 0
        for num_rows in _index_files(connection, corpus.store, new, columns, bad_rows):
            done += num_rows
            on_progress(done, total)
        if new or report["removed"]:
            _make_ids_unique(connection, corpus, columns)
        copied = None
        if copy_rows:
            copied = update_copy(connection, corpus, on_copied)
        else:
            drop_copy(connection)
        (unusable,) = _one(connection, "SELECT count(*) FROM sample_index WHERE NOT usable")
        duplicates = _one(connection, _NUM_DUPLICATES)[0] if key is None else None
    return IngestReport(
        num_files=len(corpus.files),
        num_rows=corpus.num_rows,
        num_unusable=unusable,
        num_duplicates=duplicates,
        reindexed_all=reindexed_all,
        rows_indexed=total,
        rows_copied=copied,
        **report,
    )


def _adopt_settings(connection: Connection, corpus: Corpus, columns: Columns, bad_rows: OnBadRows) -> bool:
    """Records the settings; True, with the index emptied, if they differ from those of the last call."""
    wanted = {
        "lake": corpus.store.url,
        "text": columns.text,
        "domain": columns.domain,
        "key": columns.key or "",
        "bad_rows": bad_rows,
        "id_scheme": columns.id_scheme,
    }
    known = dict(connection.execute("SELECT name, value FROM ingest_settings").fetchall())
    if known == wanted:
        return False
    connection.execute("DELETE FROM sample_index; DELETE FROM ingest_settings")
    for name, value in wanted.items():
        connection.execute("INSERT INTO ingest_settings VALUES (?, ?)", [name, value])
    return bool(known)


def _diff(connection: Connection, corpus: Corpus, reindex_all: bool) -> tuple[list[ParquetFile], dict[str, int]]:
    """Drops what changed or went from the index; the files to read, and the counts for the report."""
    known = _indexed_files(connection)
    new, kept = [], set[str]()
    for file in corpus.files:
        if not reindex_all and file.path in known and _is_as_indexed(file, known[file.path]):
            kept.add(file.path)
        else:
            new.append(file)
    dropped = [known[path]["file_id"] for path in known if path not in kept]
    connection.execute("DELETE FROM sample_index WHERE file_id IN (SELECT unnest(?))", [dropped])
    connection.execute("DELETE FROM files WHERE file_id IN (SELECT unnest(?))", [dropped])
    changed = sum(file.path in known for file in new)
    present = {file.path for file in corpus.files}
    counts = {"added": len(new) - changed, "changed": changed, "unchanged": len(kept)}
    return new, counts | {"removed": sum(path not in present for path in known)}


def _index_files(
    connection: Connection, store: Store, files: Sequence[ParquetFile], columns: Columns, bad_rows: OnBadRows
) -> Iterator[int]:
    """Indexes files, yielding the number of rows as they are read; many small files are inserted together."""
    numbered = _add_files(connection, files)
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    with closing(_read_ahead(store, files, lambda file: index_batches(store, file, columns, bad_rows))) as read:
        for (file_id, _), batches in zip(numbered, read, strict=True):
            num_read = 0
            for batch in batches:
                waiting.append(_with_file_id(batch, file_id))
                num_waiting += batch.num_rows
                num_read += batch.num_rows
                if num_waiting >= _ROWS_PER_INSERT:
                    _insert(connection, "sample_index", pa.Table.from_batches(waiting))
                    waiting, num_waiting = [], 0
                    yield num_read
                    num_read = 0
            if num_read:
                yield num_read
    if waiting:
        _insert(connection, "sample_index", pa.Table.from_batches(waiting))


def _read_ahead(
    store: Store, files: Sequence[ParquetFile], read: Callable[[ParquetFile], Iterator[pa.RecordBatch]]
) -> Generator[Iterable[pa.RecordBatch]]:
    """What `read` says of each file, in their order; small ones of a remote storage are read some ahead, in threads.

    Because each costs a few round trips, which take longer than its rows.
    """
    if not store.is_remote:
        yield from map(read, files)
        return
    pool = ThreadPoolExecutor(REMOTE_THREADS, "index")
    coming = (pool.submit(list, read(file)) if is_small(store, file) else read(file) for file in files)
    try:
        ahead = deque(islice(coming, 2 * REMOTE_THREADS))
        while ahead:
            first = ahead.popleft()
            ahead.extend(islice(coming, 1))
            yield first.result() if isinstance(first, Future) else first
    finally:
        pool.shutdown(cancel_futures=True)


def _add_files(connection: Connection, files: Sequence[ParquetFile]) -> list[tuple[int, ParquetFile]]:
    """Enters files into `files`; each with its new id."""
    drawn = connection.execute("SELECT nextval('file_ids') FROM range(?)", [len(files)]).fetchall()
    numbered = [(int(file_id), file) for (file_id,), file in zip(drawn, files, strict=True)]
    rows = [
        {
            "file_id": file_id,
            "path": file.path,
            "size_bytes": file.size_bytes,
            "version": file.version,
            "num_rows": file.num_rows,
            "num_row_groups": file.num_row_groups,
            "footer_hash": file.footer_hash,
        }
        for file_id, file in numbered
    ]
    if rows:
        _insert(connection, "files", pa.Table.from_pylist(rows))
    return numbered


def _with_file_id(batch: pa.RecordBatch, file_id: int) -> pa.RecordBatch:
    ids = pa.repeat(pa.scalar(file_id, pa.int32()), batch.num_rows)
    return pa.record_batch([ids, *batch.columns], names=["file_id", *batch.schema.names])


def _insert(connection: Connection, name: str, rows: pa.Table) -> None:
    connection.register("incoming_rows", rows)
    connection.execute(f"INSERT INTO {name} SELECT * FROM incoming_rows")
    connection.unregister("incoming_rows")


def _make_ids_unique(connection: Connection, corpus: Corpus, columns: Columns) -> None:
    if columns.key is None:
        connection.execute(_NUMBER_DUPLICATES)
        return
    repeated = connection.execute(_FIRST_REPEATED_KEYS).fetchall()
    if repeated:
        key, count, path, row, num_repeated = repeated[0]
        raise BadRowsError(
            f"key column {columns.key!r} has the value {key!r} {count} times, first in row {row} of "
            f"{corpus.store.describe(path)} ({num_repeated:,} key(s) are repeated in all)",
            hint="a key identifies one row: remove the repetitions, or configure no key to identify rows by content",
        )


def _one(connection: Connection, query: str) -> tuple[Any, ...]:
    # fetchone() would leave the result open, which DuckDB 2.0 does not allow before the next statement.
    return connection.execute(query).fetchall()[0]
