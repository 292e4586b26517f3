"""Connections to a catalog, quoting and transactions."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors import duck
from connectors.errors import BusyError, ConnectorError, CorruptFileError, InputError, NotFoundError

HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def started(script, path):
    """A process that runs `script` on the catalog, once it holds it."""
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process


def test_a_catalog_held_by_another_process_is_busy_and_names_it(tmp_path):
    path = tmp_path / "catalog.duckdb"
    with started(HOLDER, path) as holder:
        with pytest.raises(BusyError, match=rf"catalog\.duckdb is in use by process {holder.pid} "):
            duck.connect(path, lock_timeout_seconds=0.2)
        holder.stdin.close()
        duck.connect(path, lock_timeout_seconds=10).close()


def test_the_same_catalog_opened_otherwise_in_this_process_is_busy(tmp_path):
    path = tmp_path / "catalog.duckdb"
    with duck.connect(path), pytest.raises(BusyError, match="this process has the catalog"):
        duck.connect(path, read_only=True, lock_timeout_seconds=0)


READER = HOLDER.replace("(sys.argv[1])", "(sys.argv[1], read_only=True)").replace(
    "sys.stdin.read()", "sys.stdin.readline(); print(connection.sql('FROM t').fetchall(), flush=True)"
)


@pytest.fixture
def catalog(tmp_path):
    """With a table `t` of one row."""
    with duck.connect(tmp_path / "catalog.duckdb") as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
    return tmp_path / "catalog.duckdb"


def write(path, *statements):
    with duck.writing(path, lock_timeout_seconds=0) as connection:
        for statement in statements:
            connection.execute(statement)


def rows_of(path):
    with duck.connect(path, read_only=True) as connection:
        return connection.execute("FROM t").fetchall()


def test_a_catalog_that_others_read_is_written_and_they_keep_what_they_had(catalog):
    left = catalog.with_name(".catalog.duckdb-1234abcd")
    left.write_text("of a process that was killed long ago")
    os.utime(left, (0, 0))
    with started(READER, catalog) as reader:
        with pytest.raises(duck.Error, match="nope"):
            write(catalog, "UPDATE t SET n = 2", "SELECT nope")
        assert rows_of(catalog) == [(1,)]
        with duck.writing(catalog, lock_timeout_seconds=0) as connection:
            connection.execute("UPDATE t SET n = 3")
            with pytest.raises(BusyError):  # nobody writes it in its place meanwhile
                duck.connect(catalog, lock_timeout_seconds=0)
        assert rows_of(catalog) == [(3,)]
        assert reader.communicate(b"\n")[0] == b"[(1,)]\n"
    assert [path.name for path in catalog.parent.iterdir()] == ["catalog.duckdb"]


WRITER = """
import sys
from pathlib import Path
from connectors import duck
with duck.writing(Path(sys.argv[1]), lock_timeout_seconds=0) as connection:
    connection.execute("INSERT INTO t VALUES (10)")
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_two_who_write_while_others_read_leave_one_of_both(catalog):
    with started(READER, catalog) as reader:
        with started(WRITER, catalog) as writer:
            write(catalog, "INSERT INTO t VALUES (20)")
            assert rows_of(catalog) == [(1,), (20,)]
            writer.communicate(b"\n")
            assert writer.returncode == 0
        assert reader.communicate(b"\n")[0] == b"[(1,)]\n"
    assert rows_of(catalog) == [(1,), (10,)]
    assert [path.name for path in catalog.parent.iterdir()] == ["catalog.duckdb"]


def test_what_was_written_but_would_not_be_seen_by_this_process_is_told(catalog):
    with duck.connect(catalog, read_only=True), pytest.raises(BusyError, match=r"was brought up to date, but another"):
        write(catalog, "INSERT INTO t VALUES (10)")
    assert rows_of(catalog) == [(1,), (10,)]
    assert [path.name for path in catalog.parent.iterdir()] == ["catalog.duckdb"]


def test_a_catalog_that_is_being_written_or_waits_for_a_writer_is_busy(catalog):
    with started(HOLDER, catalog) as holder:
        with pytest.raises(BusyError, match=f"process {holder.pid} "):
            write(catalog)
        holder.communicate()
    catalog.with_name("catalog.duckdb.wal").write_bytes(b"")
    with duck.connect(catalog, read_only=True), pytest.raises(BusyError):
        write(catalog)


def test_what_is_not_a_catalog_is_named(tmp_path):
    (tmp_path / "a.duckdb").write_bytes(b"garbage" * 1000)
    with pytest.raises(CorruptFileError, match=r"a\.duckdb is not a DuckDB catalog"):
        duck.connect(tmp_path / "a.duckdb")
    with pytest.raises(NotFoundError, match=r"no catalog at .*none\.duckdb"):
        duck.connect(tmp_path / "none.duckdb", read_only=True)
    with pytest.raises(NotFoundError, match=r"nowhere"):
        duck.connect(tmp_path / "nowhere" / "a.duckdb")
    with pytest.raises(InputError, match="cannot be read-only"):
        duck.connect(read_only=True)


def test_no_extension_is_ever_fetched(connection):
    query = "SELECT value FROM duckdb_settings() WHERE name LIKE 'auto%_known_extensions'"
    assert connection.execute(query).fetchall() == [("false",), ("false",)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_quoted_names_and_strings_mean_themselves(connection, text):
    found = connection.execute(f"SELECT {duck.quote_literal(text)} AS {duck.quote_identifier(text)}")
    assert found.description[0][0] == text
    assert found.fetchone() == (text,)


def test_a_transaction_keeps_all_or_nothing(connection):
    connection.execute("CREATE TABLE t (i INTEGER)")

    def insert_and_fail():
        with duck.transaction(connection):
            connection.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        insert_and_fail()
    with duck.transaction(connection):
        connection.execute("INSERT INTO t VALUES (2)")
    assert connection.execute("FROM t").fetchall() == [(2,)]


def test_a_failing_statement_leaves_as_a_connector_error(connection):
    with pytest.raises(ConnectorError, match="DuckDB failed on the catalog"), duck.transaction(connection):
        connection.execute("SELECT * FROM nothing_there")
