"""A run that is stopped or killed goes on from its newest checkpoint and ends as if nothing had happened."""

import fcntl
import json
import signal
import subprocess

import pyarrow.parquet as pq
import pytest
from lake_cases import command, curator, environment, refusal, sentences, values_of, write_rows, write_settings
from process_cases import outcome, processes_of, wait_until

pytest.importorskip("megatron.core", reason="needs the extra [train]")

STEPS = 80
LEARN = ("learn", "lake", "--target", "target.parquet", "--config", "long.toml", "--granularity", "sample", "--json")


@pytest.fixture
def here(here):
    write_settings(here / "long.toml", steps=STEPS, branch_steps=10, rows={"pairs": 3, "steps": 30})
    with (here / "long.toml").open("a") as settings:
        settings.write("[learn.blocks]\nsize = 2\nperiod = 4\nmoments = 'keep'\n")
        settings.write("[learn.checkpoint]\nevery_minutes = 0.008\nkeep = 2\n")
    return here


def begin(here, *arguments):
    return subprocess.Popen(
        command(*arguments),
        cwd=here,
        env=environment(here),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def checkpoints_of(here):
    return sorted((here / "run" / "checkpoints").glob("step-*"))


def resume(here, *options):
    return curator(here, "learn", "lake", "--resume", "run", "--json", *options)


def trajectory(folder):
    """The records of a run without its times."""
    records = [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def row_gaps(folder):
    """What was measured of every row, but for the run's name."""
    return pq.read_table(folder / "row_gaps.parquet").drop_columns(["run_id"])


@pytest.fixture
def whole(here):
    """The run that nobody stops."""
    values_of(curator(here, *LEARN, "--run-dir", "whole"))
    return here / "whole"


def stop(here, process, number, steps_done=0):
    """End a run by a signal once it has a checkpoint beyond `steps_done`; how it ended."""
    wait_until(lambda: any(step_of(path) > steps_done for path in checkpoints_of(here)), 60, process)
    process.send_signal(number)
    done = outcome(process)
    wait_until(lambda: not processes_of(here), 15)
    assert not (here / "run" / "run.json").exists()
    return done


def step_of(checkpoint):
    return int(checkpoint.name.removeprefix("step-"))


def test_a_run_that_was_stopped_and_killed_ends_as_if_it_had_not_been(here, whole):
    message = refusal(stop(here, begin(here, *LEARN, "--run-dir", "run"), signal.SIGTERM), 1)
    assert message.endswith(f"; go on with `curator learn lake --resume {here / 'run'}`")
    assert step_of(checkpoints_of(here)[-1]) < STEPS
    stop(here, begin(here, "learn", "lake", "--resume", "run"), signal.SIGKILL, STEPS + 40)  # in the second pair
    values = values_of(resume(here))
    assert trajectory(here / "run") == trajectory(whole)
    assert len(trajectory(whole)) == STEPS
    assert pq.read_table(here / "run" / "weights.parquet").equals(pq.read_table(whole / "weights.parquet"))
    assert row_gaps(here / "run").equals(row_gaps(whole))
    assert row_gaps(whole)["snapshots"].unique().to_pylist() == [3]
    assert checkpoints_of(here) == []
    record = json.loads((here / "run" / "run.json").read_text())
    assert values["run_id"] == record["run_id"]
    assert (
        refusal(resume(here), 2) == f"run {record['run_id']} in {here / 'run'} is finished; there is nothing to resume"
    )


@pytest.mark.slow
def test_two_workers_go_on_with_the_run_of_one(here, whole):
    stop(here, begin(here, *LEARN, "--run-dir", "run"), signal.SIGTERM)
    values_of(resume(here, "--tensor-parallel", 2))
    for record, other in zip(trajectory(here / "run"), trajectory(whole), strict=True):
        assert record["weights"] == pytest.approx(other["weights"], abs=1e-4)
        assert record["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    assert json.loads((here / "run" / "run.json").read_text())["backend"]["layout"].startswith("TP=2 PP=1 DP=1")


def edited(path, change):
    """What `path` held before `change` of its values."""
    before = path.read_text()
    values = json.loads(before)
    change(values)
    path.write_text(json.dumps(values))
    return before


def test_what_a_resumed_run_refuses(here):
    stop(here, begin(here, *LEARN, "--run-dir", "run"), signal.SIGKILL)
    assert refusal(resume(here, "--steps", 9), 2).startswith("--steps cannot be given with --resume: ")
    assert refusal(resume(here, "--prepare"), 2).startswith("--prepare cannot be given with --resume: ")
    assert refusal(curator(here, "learn", "lake", "--resume", "lake"), 2).startswith(
        f"{here / 'lake'} holds no run that was begun: there is no job.json"
    )
    with (here / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refusal(resume(here), 75).startswith(f"another process is at work on the run in {here / 'run'}; ")
    orders = (here / "run" / "job.json").read_text()
    (here / "run" / "job.json").write_text("{")
    assert refusal(resume(here), 2).startswith(f"{here / 'run' / 'job.json'} is damaged")
    (here / "run" / "job.json").write_text(orders)
    write_rows(here / "lake" / "more.parquet", text=sentences("north", 9, 1), domain=["north"] * 9)
    assert "has changed since run" in refusal(resume(here), 2)


@pytest.mark.slow
def test_what_workers_refuse_to_go_on_with(here):
    stop(here, begin(here, *LEARN, "--run-dir", "run"), signal.SIGKILL)
    orders = edited(here / "run" / "job.json", lambda values: values["job"]["learn"].update(penalty=2.0))
    assert "was made with learn.penalty=1.0, but this run has 2.0" in refusal(resume(here), 1)
    (here / "run" / "job.json").write_text(orders)

    records = (here / "run" / "trajectory.jsonl").read_bytes()
    (here / "run" / "trajectory.jsonl").unlink()
    assert "trajectory.jsonl does not hold the" in refusal(resume(here), 1)
    (here / "run" / "trajectory.jsonl").write_bytes(records)

    for checkpoint in checkpoints_of(here):
        (checkpoint / "model" / "config.json").unlink()
    assert "every checkpoint in" in refusal(resume(here), 1)
