"""One real run a session; tests that publish work on copies of its lake."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # lake_cases is a module of these tests

from lake_cases import FAST, write_lake, write_target

import curator


@dataclass(frozen=True)
class Learned:
    """A lake with one finished run, in a folder of its own."""

    folder: Path
    run_id: str

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @property
    def target(self) -> Path:
        return self.folder / "target.parquet"

    @property
    def state(self) -> Path:
        return self.lake / "_curator"


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CURATOR_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def learned_once(tmp_path_factory) -> Learned:
    pytest.importorskip("megatron.core", reason="needs the extra [train]")
    folder = tmp_path_factory.mktemp("learned")
    write_target(folder / "target.parquet")
    with curator.open_lake(str(write_lake(folder / "lake"))) as lake:
        run = lake.learn(str(folder / "target.parquet"), **FAST)
    return Learned(folder, run.run_id)


@pytest.fixture
def learned(learned_once, tmp_path) -> Learned:
    """A copy, modification times kept."""
    shutil.copytree(learned_once.folder, tmp_path / "learned", copy_function=shutil.copy2)
    return Learned(tmp_path / "learned", learned_once.run_id)
