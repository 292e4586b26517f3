"""The lakes of tests/curator, used through the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "curator"))

from lake_cases import write_lake, write_settings, write_target


@pytest.fixture
def here(tmp_path) -> Path:
    """A folder with a lake, a target outside it, and settings for a short run."""
    write_lake(tmp_path / "lake")
    write_target(tmp_path / "target.parquet")
    write_settings(tmp_path / "fast.toml")
    return tmp_path
