"""Extras that are too heavy for the development environment, each in one of its own: their tests are run there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_tests_of_dagster_pass_where_it_is_installed(python_with):
    python = python_with("dagster==1.13.29")
    files = ["tests/curator/test_dagster.py", "tests/curator/test_pipes.py"]
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env=os.environ | {"DAGSTER_PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"^\d+ passed in", done.stdout, flags=re.MULTILINE), done.stdout  # and none was skipped
