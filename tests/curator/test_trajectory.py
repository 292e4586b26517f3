import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator.errors import StorageError
from curator.worker import _Trajectory
from optim.diagnostics import StepRecord

RECORD = StepRecord(**{field.name: 1 for field in fields(StepRecord)})


def test_a_full_disk_ends_a_run_with_a_sentence():
    with Path("/dev/full").open("ab") as sink, pytest.raises(StorageError) as caught:
        _Trajectory([], sink).write(RECORD)
    assert (
        str(caught.value) == "/dev/full cannot be written (No space left on device); free the disk, then resume the run"
    )


def test_steps_are_lines(tmp_path):
    with (tmp_path / "trajectory.jsonl").open("ab") as sink:
        trajectory = _Trajectory([], sink)
        trajectory.write(RECORD)
        trajectory.write(RECORD)
        assert trajectory.sync() == (tmp_path / "trajectory.jsonl").stat().st_size
    assert [json.loads(line) for line in (tmp_path / "trajectory.jsonl").read_text().splitlines()] == [
        asdict(RECORD)
    ] * 2
