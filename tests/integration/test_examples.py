"""The examples run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def test_the_examples_learn_publish_and_query(tmp_path):
    learned = run("01_learn_and_publish.py", tmp_path / "demo", 12)
    assert "version 1:" in learned
    assert "docstrings" in learned
    asked = run("02_sql.py", tmp_path / "demo" / "lake")
    assert asked.count("garbled") == 2  # in the table of domains and in that of the filter
    assert "num_rows" in asked


@pytest.mark.slow
def test_the_example_compares(tmp_path):
    said = run("03_compare.py", tmp_path / "demo", 6, 1)
    assert "by hand differs from uniform by " in said
    assert "not judged" in said


def test_every_example_is_short_and_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"01_learn_and_publish.py", "02_sql.py", "03_compare.py"}
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES.glob("*.py"))
