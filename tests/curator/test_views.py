"""The DuckDB file: a bare duckdb, in a process that knows nothing of this package, answers about the newest version."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import sentences, tree, write_rows

import curator
from curator.errors import NotFoundError, StorageError, UsageError

BARE = """
import json, sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
print(json.dumps(connection.execute(sys.argv[2]).fetchall()))
assert not {"curator", "connectors", "pyarrow", "fsspec"} & set(sys.modules)
"""


def run_bare(path, query):
    program = [sys.executable, "-I", "-W", "error", "-c", BARE, str(path), query]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, cwd="/", check=False)


def ask(path, query):
    """Rows as a process gives them that imports duckdb alone."""
    done = run_bare(path, query)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def lake(learned):
    with curator.open_lake(str(learned.lake)) as opened:
        opened.publish(learned.run_id)
        yield opened


def test_a_bare_duckdb_sees_what_the_lake_shows(lake, learned, tmp_path):
    path = lake.write_views(tmp_path / "views.duckdb")
    assert path == tmp_path / "views.duckdb"
    for query in (
        "SELECT domain, text, score, sample_weight, domain_weight, weight_run_id FROM samples ORDER BY ALL",
        "SELECT domain, domain_weight, natural_share, ci_low, run_id FROM domain_weights ORDER BY ALL",
        "SELECT run_id, method, model, steps, verdict FROM runs",
        "SELECT version, run_id, num_rows, location, restores FROM versions",
    ):
        assert ask(path, query) == [list(row) for row in lake.fetch(query)[1]]
    names = ask(path, "SELECT column_name FROM information_schema.columns WHERE table_name = 'samples'")
    weights = ["sample_weight", "domain_weight", "weight_run_id"]
    assert [name for (name,) in names] == ["domain", "text", "score", *weights]


def test_wrong_arguments_of_macros_fail_in_a_bare_duckdb_too(lake, tmp_path):
    path = lake.write_views(tmp_path / "views.duckdb")
    for call, said in {
        "top_k(1.5)": "top_k: fraction=1.5 is not allowed; it must be above 0 and at most 1",
        "weighted_sample(-3)": "weighted_sample: n=-3 is not allowed; it must be an integer from 1 to",
        "quantiles(0)": "quantiles: buckets=0 is not allowed",
    }.items():
        done = run_bare(path, f"FROM {call}")
        assert done.returncode == 1
        assert said in done.stderr
        with pytest.raises(UsageError, match=re.escape(said)):
            lake.fetch(f"FROM {call}")


def test_the_file_in_the_work_folder_is_renewed_by_what_makes_a_version(lake, learned):
    path = lake.write_views()
    assert path == learned.state / "curator.duckdb"
    (learned.lake / "east.parquet").unlink()
    lake.publish(learned.run_id)
    assert ask(path, "SELECT max(version) FROM versions") == [[2]]
    assert ask(path, "SELECT count(*) FROM samples") == [[48]]
    lake.rollback(1)
    assert ask(path, "SELECT max(version), max(restores) FROM versions") == [[3, 1]]
    assert ask(path, "SELECT count(*) FROM samples") == [[72]]
    lake.ingest()  # it is no part of the lake
    assert len(lake.corpus.files) == 2


def test_a_file_elsewhere_is_renewed_by_the_command_alone(lake, learned, tmp_path):
    path = lake.write_views(tmp_path / "views.duckdb")
    (learned.lake / "east.parquet").unlink()
    lake.publish(learned.run_id)
    assert ask(path, "SELECT max(version) FROM versions") == [[1]]
    lake.write_views(path)
    assert ask(path, "SELECT max(version) FROM versions") == [[2]]
    assert [entry.name for entry in tmp_path.iterdir() if "duckdb" in entry.name] == ["views.duckdb"]


def test_odd_names_partitions_and_files_with_other_columns(learned, tmp_path):
    """Hive folders, quotes and wildcards in paths, a column that one file lacks and that is called like one of ours."""
    root = tmp_path / "it's [1]"
    (root / "domain=north").mkdir(parents=True)
    north = pq.read_table(learned.lake / "north.parquet").select(["text"])
    pq.write_table(north, root / "domain=north" / "a'*.parquet")
    south = pq.read_table(learned.lake / "south.parquet").select(["text"])
    (root / "domain=south").mkdir()
    pq.write_table(south.append_column("row", pa.array(range(24))), root / "domain=south" / "b.parquet")
    shutil.copytree(learned.state / "runs", root / "_curator" / "runs")
    with curator.open_lake(str(root)) as lake:
        lake.publish(learned.run_id)
        path = lake.write_views()
        query = "SELECT domain, text, original_row, sample_weight FROM samples ORDER BY ALL"
        assert ask(path, query) == [list(row) for row in lake.fetch(query)[1]]


def test_a_key_is_the_sample_id(learned, tmp_path):
    rows = {"text": sentences("north", 8), "domain": ["north"] * 8, "id": [f"k{i}" for i in range(8)]}
    write_rows(tmp_path / "keyed" / "a.parquet", **rows)
    state = tmp_path / "keyed" / "_curator" / "runs"
    shutil.copytree(learned.state / "runs", state)
    record = json.loads((state / learned.run_id / "run.json").read_text())
    record["lake"]["key"] = "id"
    weights = pq.read_table(state / learned.run_id / "weights.parquet")
    ids = [*rows["id"], *weights["sample_id"].to_pylist()[8:]]
    index = weights.schema.get_field_index("sample_id")
    pq.write_table(
        weights.set_column(index, weights.schema.field(index), pa.array(ids)),
        state / learned.run_id / "weights.parquet",
    )
    (state / learned.run_id / "run.json").write_text(json.dumps(record))
    with curator.open_lake(str(tmp_path / "keyed"), key="id") as lake:
        lake.publish(learned.run_id)
        path = lake.write_views()
        query = "SELECT sample_id, sample_weight FROM samples ORDER BY 1"
        assert ask(path, query) == [list(row) for row in lake.fetch(query)[1]]


def test_what_cannot_be_written_leaves_nothing(learned, tmp_path):
    with curator.open_lake(str(learned.lake)) as lake:
        with pytest.raises(NotFoundError, match="has no published version yet"):
            lake.write_views(tmp_path / "views.duckdb")
        lake.publish(learned.run_id)
        before = tree(tmp_path)
        with pytest.raises(StorageError, match="there is no folder"):
            lake.write_views(tmp_path / "nowhere" / "views.duckdb")
        with pytest.raises(StorageError):
            lake.write_views(learned.lake)
        assert tree(tmp_path) == before
        next(Path(lake.history()[0].location).glob("*.parquet")).unlink()
        with pytest.raises(StorageError, match="is gone although it was published"):
            lake.write_views(tmp_path / "views.duckdb")
        assert not (tmp_path / "views.duckdb").exists()
