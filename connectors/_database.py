"""Connections to DuckDB: the only module of this package that imports it.

Only the part of the API that DuckDB 1.5 and 2.0 share is used. Extensions are never downloaded: remote Parquet is
read through fsspec.
"""

import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import duckdb

from connectors.errors import (
    BusyError,
    ConnectorError,
    CorruptFileError,
    InputError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from connectors.store import Store

Connection = duckdb.DuckDBPyConnection
Relation = duckdb.DuckDBPyRelation
Error = duckdb.Error

_SETTINGS = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
_RETRY_SECONDS = 0.1
_COPY_NAME = "copied_as"
"""A table of a catalog that took the place of another: the name that it was made under."""
_OLD_COPY_SECONDS = 24 * 3600
_GIBIBYTES = {"KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0, "TiB": 2.0**10, "PiB": 2.0**20}
_STORAGE_VERSION = "v1.2.0"


def connect(
    path: str | Path | None = None, *, read_only: bool = False, lock_timeout_seconds: float = 5.0
) -> Connection:
    """A connection to the catalog at `path` (created if missing), or to a new one in memory.

    Raises:
        BusyError: another process holds the catalog for longer than the timeout; names it if DuckDB does.
        NotFoundError: the folder, or with `read_only` the catalog, does not exist.
        CorruptFileError: the file is not a DuckDB catalog.
    """
    if path is None and read_only:
        raise InputError("a catalog in memory cannot be read-only", hint="give the path of one")
    place = ":memory:" if path is None else str(path)
    deadline = time.monotonic() + lock_timeout_seconds
    while True:
        try:
            with database_errors(place):
                return duckdb.connect(place, read_only=read_only, config=dict(_SETTINGS))
        except BusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)


@contextmanager
def writing(path: Path, *, lock_timeout_seconds: float = 5.0) -> Iterator[Connection]:
    """A connection that writes the catalog at `path` (created if missing).

    If somebody is still reading the catalog after the timeout, it is a copy that takes its place when the block ends
    without an exception and has written anything: readers go on with what they had until they connect again. Of two who
    do so at once the last one's counts, whole. Costs the catalog's bytes again on the disk, for as long as readers keep
    the old one.

    Raises:
        BusyError: another process writes the catalog, or this one has it open with other settings; also where another
            reader of this process would keep it from seeing what was written, which stands.
        NotFoundError, CorruptFileError: as `connect`.
    """
    try:
        opened = connect(path, lock_timeout_seconds=lock_timeout_seconds)
    except BusyError:
        if _wal(path).exists():  # what a killed process wrote last, which only a writer can take up
            raise
        try:
            reader = connect(path, read_only=True, lock_timeout_seconds=0)
        except ConnectorError:
            reader = None
        if reader is None:
            raise
        with _by_copy(path, reader) as opened:
            yield opened
        return
    with closing(opened):
        yield opened


@contextmanager
def _by_copy(path: Path, reader: Connection) -> Iterator[Connection]:
    """A connection to a copy of `path`, which then replaces it if anything was written; closes `reader` of `path`."""
    for left in path.parent.glob(f".{path.name}-*"):  # by processes that were killed
        if left.stat().st_mtime < time.time() - _OLD_COPY_SECONDS:
            left.unlink(missing_ok=True)
    copy = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with closing(reader):  # as long as it is read here, nobody writes it
            shutil.copyfile(path, copy)
            before = copy.stat().st_mtime_ns
            with closing(connect(copy)) as opened:
                yield opened
                is_changed = _wal(copy).exists() or copy.stat().st_mtime_ns != before
                if is_changed:
                    opened.execute(f"CREATE OR REPLACE TABLE {_COPY_NAME} AS SELECT '{copy.name}' AS name")
            if is_changed:
                copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)
        _wal(copy).unlink(missing_ok=True)
    if is_changed:
        _check_is_seen(path, copy.name)


def _check_is_seen(path: Path, name: str) -> None:
    """Refuse to go on where this process is shown what `path` was: DuckDB shares one instance of a path within it."""
    with closing(connect(path, read_only=True)) as seen:
        has_name = seen.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [_COPY_NAME]).fetchall()
        if has_name and seen.execute(f"SELECT name FROM {_COPY_NAME}").fetchall() == [(name,)]:
            return
    raise BusyError(
        f"the catalog {path} was brought up to date, but another session of this process has it open as it was, and so "
        "would this one",
        hint="close that session (Lake.close()), then try again",
    )


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


@contextmanager
def attached(path: Path) -> Iterator[Connection]:
    """A connection whose statements make what a new database file holds, in a format that DuckDB 1.2 reads, too.

    Raises:
        ConnectorError: the file cannot be made.
    """
    with database_errors(str(path)), connect() as connection:
        connection.execute(
            f"ATTACH {quote_literal(str(path))} AS made (STORAGE_VERSION {quote_literal(_STORAGE_VERSION)})"
        )
        connection.execute("USE made")
        yield connection
        connection.execute("USE memory")
        connection.execute("DETACH made")  # writes everything into the one file


@contextmanager
def memory_limit(connection: Connection, gibibytes: float) -> Iterator[None]:
    """DuckDB keeps to so much, or less if it has less, where it would take four fifths of the machine's memory."""
    (before,) = connection.execute("SELECT current_setting('memory_limit')").fetchall()[0]
    number, unit = str(before).split()
    if float(number) * _GIBIBYTES.get(unit, 0) <= gibibytes:
        yield
        return
    connection.execute(f"SET memory_limit = '{gibibytes} GiB'")
    try:
        yield
    finally:
        with suppress(Error):  # in a transaction that has failed nothing can be set, and the failure is what counts
            connection.execute(f"SET memory_limit = {quote_literal(before)}")


def quote_identifier(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str | None) -> str:
    """`value` as an SQL string, or NULL."""
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


def register_store(connection: Connection, store: Store) -> None:
    """DuckDB reads `store`'s objects through its filesystem; nothing to do for local files.

    A connection holds one filesystem per scheme: registering another replaces it.
    """
    if store.is_local:
        return
    protocol = store.fs.protocol
    with database_errors(store.describe()):
        for name in {protocol} if isinstance(protocol, str) else set(protocol):
            if name in connection.list_filesystems():
                connection.unregister_filesystem(name)
        connection.register_filesystem(store.fs)


def duck_path(store: Store, path: str) -> str:
    """The object's address for `read_parquet`, its wildcards escaped, so that it means this object alone."""
    return re.sub(r"([*?\[])", r"[\1]", _address(store, path))


def _address(store: Store, path: str) -> str:
    """As DuckDB opens it, once wildcards are found to be none."""
    if store.is_local:
        return store.full_path(path)
    protocol = store.fs.protocol if isinstance(store.fs.protocol, str) else store.fs.protocol[0]
    return f"{protocol}://{store.full_path(path).lstrip('/')}"


def check_select(connection: Connection, query: str) -> None:
    """Refuse anything but one query; COPY, ATTACH, SET, EXPLAIN ANALYZE and the like could write or change settings.

    Raises:
        InputError: it is no statement, another one, or several.
    """
    try:
        kinds = [statement.type.name for statement in connection.extract_statements(query)]
    except duckdb.Error as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(
            f"the query cannot be read: {said}", hint="write one SELECT, such as SELECT * FROM samples"
        ) from error
    if kinds != ["SELECT"]:
        found = " and ".join(kinds).lower() or "nothing"
        raise InputError(f"only one query can be asked (SELECT, FROM, WITH, DESCRIBE, SHOW), but this is {found}")


def confine(connection: Connection, objects: Iterable[tuple[Store, str]], folders: Iterable[Store]) -> None:
    """From now on this database reads these objects and what is in these folders alone; no setting can be changed.

    Views of other objects stop working. It cannot be taken back, and holds for every connection of this process to it.
    """
    # DuckDB compares what is asked for, with its wildcards escaped, and then what it opens.
    paths = {spelled(store, path) for store, path in objects for spelled in (duck_path, _address)}
    roots = {spelled(store, "").rstrip("/") + "/" for store in folders for spelled in (duck_path, _address)}
    settings = {
        "allowed_paths": f"[{', '.join(map(quote_literal, sorted(paths)))}]",
        "allowed_directories": f"[{', '.join(map(quote_literal, sorted(roots)))}]",
        "enable_external_access": "false",
        "python_enable_replacements": "false",
        "lock_configuration": "true",
    }
    with database_errors("the catalog"):
        for name, value in settings.items():
            connection.execute(f"SET {name} = {value}")


@contextmanager
def transaction(connection: Connection, place: str = "the catalog") -> Iterator[None]:
    """Atomic: the body's statements are all kept on clean exit, none on an exception or a crash."""
    with database_errors(place):
        connection.execute("BEGIN TRANSACTION")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            with suppress(duckdb.Error):  # a failed COMMIT has rolled back already
                connection.execute("ROLLBACK")
            raise


@contextmanager
def database_errors(place: str) -> Iterator[None]:
    """Within it, what DuckDB raises leaves as a `ConnectorError` about `place`."""
    try:
        yield
    except duckdb.Error as error:
        raise _translate(error, place) from error


def _translate(error: duckdb.Error, place: str) -> ConnectorError:
    said = str(error).strip().splitlines()[0]
    if "Conflicting lock is held" in said:
        holder = re.search(r"held in (.+?) \(PID (\d+)\)", said)
        by = f" by process {holder[2]} ({holder[1]})" if holder else " by another process"
        return BusyError(f"the catalog {place} is in use{by}", hint="try again when it has finished")
    if "different configuration" in said:
        return BusyError(
            f"this process has the catalog {place} open with other settings", hint="close that connection first"
        )
    if "not a valid DuckDB database" in said:
        return CorruptFileError(f"{place} is not a DuckDB catalog", hint="move it away and ingest again")
    if "Corrupt database file" in said:
        return CorruptFileError(
            f"{place} is damaged ({said})", hint="delete its catalog.duckdb, an index only, and ingest again"
        )
    if "newer version of DuckDB" in said or "storage version" in said:
        return UnsupportedError(f"{place} was written by another version of DuckDB ({said})", hint="ingest again")
    if "No such file or directory" in said or "database does not exist" in said:
        return NotFoundError(f"there is no catalog at {place}", hint="check the path, or ingest first")
    if "Permission denied" in said or "read-only mode" in said:
        return ReadOnlyError(f"{place} cannot be written: {said}")
    return ConnectorError(f"DuckDB failed on {place}: {said}")
