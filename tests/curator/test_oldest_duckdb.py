"""The oldest DuckDB that the package allows, beside the newest, which wrote the views."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import duckdb
import pytest

import curator

ROOT = Path(__file__).parents[2]
READ = """
import json, sys
import duckdb
assert duckdb.__version__ == sys.argv[1], duckdb.__version__
views = duckdb.connect(sys.argv[2], read_only=True)
print(json.dumps([views.execute(query).fetchall() for query in sys.argv[3:]]))
"""
QUERIES = [
    "SELECT domain, text, sample_weight FROM samples ORDER BY ALL",
    "SELECT domain, domain_weight, run_id FROM domain_weights ORDER BY ALL",
    "SELECT domain, text FROM top_k(0.5) ORDER BY ALL",
]


@pytest.fixture
def oldest(python_with):
    """Its Python and its version."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (lowest,) = [found[1] for each in dependencies if (found := re.match(r"duckdb>=([\d.]+)", each))]
    version = lowest if lowest.count(".") == 2 else f"{lowest}.0"
    return python_with(f"duckdb=={version}"), version


@pytest.mark.slow
def test_it_opens_the_views_that_the_newest_wrote(learned, tmp_path, oldest):
    python, version = oldest
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        path = lake.write_views(tmp_path / "views.duckdb")
    newest = rows_of(sys.executable, duckdb.__version__, path)
    assert rows_of(python, version, path) == newest
    assert len(newest[0]) == 72
    assert 0 < len(newest[2]) < 72


def rows_of(python, version, path):
    """What the queries give there."""
    command = [python, "-c", READ, version, path, *QUERIES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_tests_of_ingest_and_views_pass_with_it(oldest):
    python, version = oldest
    files = ["tests/connectors/test_views.py", "tests/connectors/test_connections.py", "tests/curator/test_views.py"]
    program = (
        f"import duckdb, pytest, sys; assert duckdb.__version__ == '{version}'; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [python, "-c", program, "-q", "-p", "no:cacheprovider", *files, "tests/connectors/test_ingest.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
