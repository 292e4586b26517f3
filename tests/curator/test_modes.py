"""What the catalog keeps of a lake, `mode`: nothing, the index, or a copy of the rows. The answers are the same."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile

import pyarrow as pa
import pytest
from lake_cases import curator as cli
from lake_cases import environment, refusal, sentences, values_of, write_lake, write_rows
from selection_cases import record_run

import curator
from connectors import duck
from curator import catalog
from curator.errors import ConfigError, InputError

MODES = ("index", "table", "view")
QUESTIONS = (
    "FROM samples ORDER BY sample_id",
    "SELECT s.domain, count(*), sum(length(text)), sum(num_bytes) FROM sample_index JOIN samples AS s "
    "USING (sample_id) GROUP BY ALL ORDER BY 1",
    "FROM top_k(0.5) ORDER BY sample_id",
    "FROM domain_weights ORDER BY domain",
)


NOTHING = pa.array([], pa.string())


@pytest.fixture
def folder(tmp_path):
    """A lake with a Hive partition, a column that only one file has, and a file without rows."""
    folder = write_lake(tmp_path / "lake")
    more = {"text": sentences("west", 5), "domain": ["west"] * 5, "only": [*range(5)]}
    write_rows(folder / "lang=de" / "more.parquet", **more)
    write_rows(folder / "none.parquet", text=NOTHING, domain=NOTHING)
    return folder


@pytest.fixture(autouse=True)
def _temporary_folders_of_this_test(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def answers(lake):
    """Names and rows of every question, without the column `file_id`, which depends on how an index came about."""
    found = []
    for question in QUESTIONS:
        relation = lake.sql(question)
        names = [name for name in relation.columns if name != "file_id"]
        found.append((names, relation.select(*names).fetchall()))
    return found


def session_folders(tmp_path):
    return sorted(path.name for path in tmp_path.glob("curator-*"))


def overwrite(path):
    """Other bytes for all but the footer, size and time as they were: whoever reads rows fails, no other sees it."""
    seen, footer = path.stat(), path.read_bytes()[-8:-4]
    with path.open("r+b") as file:
        file.write(b"\xee" * (seen.st_size - 8 - int.from_bytes(footer, "little")))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def test_answers_runs_and_versions_are_the_same_in_every_mode(folder, tmp_path):
    with curator.open_lake(str(folder)) as lake:
        lake.ingest()
        before = lake.connection.sql("FROM sample_index ORDER BY sample_id").fetchall()
        run_id, snapshot_id = record_run(lake, tmp_path / "run"), lake.snapshot_id
        assert lake.publish(run_id).created
        expected = answers(lake)
    assert len(before) == 77
    assert [len(rows) for _, rows in expected] == [77, 4, 39, 4]
    for mode in MODES:
        with curator.open_lake(str(folder), mode=mode) as lake:
            lake.ingest()
            assert answers(lake) == expected
            assert lake.snapshot_id == snapshot_id
            assert not lake.publish(run_id).created  # it is what the version was made from


def test_a_table_answers_without_reading_rows_of_the_lake(folder):
    with curator.open_lake(str(folder), mode="table") as lake:
        assert lake.ingest().rows_copied == 77
        expected = answers(lake)
    for path in folder.rglob("*.parquet"):
        overwrite(path)
    with curator.open_lake(str(folder)) as lake:  # the mode is remembered
        assert answers(lake) == expected
    with curator.open_lake(str(folder), mode="index") as lake:
        lake.ingest()
        with pytest.raises(duck.Error):
            answers(lake)


def test_a_table_of_rows_that_changed_is_not_asked(folder):
    with curator.open_lake(str(folder), mode="table") as lake:
        lake.ingest()
        write_rows(folder / "late.parquet", text=sentences("late", 3), domain=["late"] * 3)
        with pytest.raises(InputError, match="ingest"):
            lake.sql("FROM samples").fetchall()
        assert lake.ingest().rows_copied == 3
        assert lake.sql("SELECT count(*) FROM samples WHERE domain = 'late'").fetchall() == [(3,)]


def test_a_view_keeps_nothing_and_needs_no_ingest(folder, tmp_path):
    with curator.open_lake(str(folder), mode="view") as lake:
        lake.ingest()
        workdir = lake.workdir
        assert len(session_folders(tmp_path)) == 1
    assert session_folders(tmp_path) == []
    with curator.open_lake(str(folder)) as lake, curator.open_lake(str(folder)) as other:
        for each in (lake, other):
            assert each.sql("SELECT count(*) FROM samples").fetchall() == [(77,)]
        assert len(session_folders(tmp_path)) == 2
        lake.close()
        assert len(session_folders(tmp_path)) == 1
        assert other.sql("SELECT count(*) FROM samples").fetchall() == [(77,)]
        assert lake.sql("SELECT count(*) FROM samples").fetchall() == [(77,)]  # opened anew by asking
    assert session_folders(tmp_path) == []
    assert not catalog.catalog_path(workdir).exists()


def test_a_view_that_nobody_closes_goes_with_the_lake(folder, tmp_path):
    lake = curator.open_lake(str(folder), mode="view")
    lake.sql("SELECT 1 FROM samples LIMIT 1").fetchall()
    assert len(session_folders(tmp_path)) == 1
    del lake
    gc.collect()
    assert session_folders(tmp_path) == []


def test_a_mode_lasts_when_the_columns_are_named(folder):
    columns = {"text": "text", "domain": "domain"}
    with curator.open_lake(str(folder), mode="table", **columns) as lake:
        lake.ingest()
    with curator.open_lake(str(folder), **columns) as lake:
        assert (lake.config.mode, lake.ingest().rows_copied) == ("table", 0)


def test_a_view_takes_the_catalog_of_another_mode_away(folder):
    with curator.open_lake(str(folder)) as lake:
        lake.ingest()
        assert lake.catalog_path.exists()
    with curator.open_lake(str(folder), mode="view") as lake:
        lake.ingest()
        assert not catalog.catalog_path(lake.workdir).exists()


def test_a_view_whose_temporary_folder_was_swept_away_is_made_again(folder, tmp_path):
    with curator.open_lake(str(folder), mode="view") as lake:
        assert lake.sql("SELECT count(*) FROM samples").fetchall() == [(77,)]
        lake.release()
        for name in session_folders(tmp_path):
            shutil.rmtree(tmp_path / name)
        assert lake.sql("SELECT count(*) FROM samples").fetchall() == [(77,)]


FORK = """
import os, sys
import curator
lake = curator.open_lake(sys.argv[1], mode="view")
lake.ingest()
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
print(lake.catalog_path.exists())
"""


def test_a_forked_process_leaves_the_session_to_the_other(folder, tmp_path):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(folder)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_what_a_killed_first_ingest_leaves_is_no_index(folder):
    with curator.open_lake(str(folder)) as lake:
        lake.ingest()
        lake.release()
        lake.catalog_path.unlink()
        duck.connect(lake.catalog_path).close()
        with pytest.raises(InputError, match="has not been ingested yet; run `curator ingest"):
            lake.sql("SELECT 1")
        assert lake.ingest().added == 5


def test_times_with_nanoseconds_are_shown(tmp_path):
    at = pa.array([1, 2_000_000_003], pa.timestamp("ns"))
    write_rows(tmp_path / "lake" / "a.parquet", text=["a", "b"], domain=["x", "x"], seen=at)
    with curator.open_lake(str(tmp_path / "lake"), mode="view") as lake:
        rows = lake.fetch("SELECT text, seen FROM samples ORDER BY text")[1]
    assert rows == [("a", "1970-01-01 00:00:00.000000001"), ("b", "1970-01-01 00:00:02.000000003")]


def test_a_view_sees_files_that_come_and_change(folder):
    with curator.open_lake(str(folder), mode="view") as lake:
        assert lake.sql("SELECT count(*) FROM samples").fetchall() == [(77,)]
        known = set(lake.sql("SELECT file_id, domain FROM sample_index").fetchall())
        write_rows(folder / "late.parquet", text=sentences("late", 3), domain=["late"] * 3)
        assert lake.sql("SELECT count(*) FROM samples").fetchall() == [(80,)]
        assert known < set(lake.sql("SELECT file_id, domain FROM sample_index").fetchall())  # only that file was read
        write_rows(folder / "bad.parquet", text=[""], domain=["late"])
        for _ in range(2):
            with pytest.raises(InputError, match=r"bad\.parquet has 1 row\(s\) with no text"):
                lake.sql("SELECT 1")
        (folder / "bad.parquet").unlink()
        write_rows(folder / "late.parquet", text=sentences("late", 4, seed=1), domain=["late"] * 4)
        (folder / "none.parquet").unlink()
        assert lake.sql("SELECT count(*) FROM samples").fetchall() == [(81,)]


def test_runs_are_recorded_and_published_from_a_view(folder, tmp_path):
    with curator.open_lake(str(folder), mode="view") as lake:
        run_id = record_run(lake, tmp_path / "run")
    with curator.open_lake(str(folder)) as lake:
        assert lake.publish(run_id).created
        weighed = lake.sql("SELECT count(sample_weight), count(*) FROM samples").fetchall()
        assert weighed == [(77, 77)]
        assert lake.verify().is_sound
    assert session_folders(tmp_path) == []


def test_the_command_line_takes_a_mode(folder, tmp_path):
    said = cli(tmp_path, "ingest", folder, "--mode", "table")
    assert said.returncode == 0, said.stderr
    assert "77 rows copied into the catalog" in said.stdout
    assert values_of(cli(tmp_path, "ingest", folder, "--mode", "view", "--json"))["rows_copied"] is None
    assert values_of(cli(tmp_path, "sql", folder, "SELECT count(*) FROM samples", "--json"))["rows"] == [[77]]


def test_a_mode_that_there_is_not_is_one_sentence(folder, tmp_path):
    with pytest.raises(ConfigError, match="'index', 'table' or 'view'"):
        curator.open_lake(str(folder), mode="copy")
    assert "'index', 'table' or 'view'" in refusal(cli(tmp_path, "ingest", folder, "--mode", "copy"), 2)
