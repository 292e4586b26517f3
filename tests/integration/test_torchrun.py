"""Workers that torchrun starts, on one machine or many, do what `curator learn` has its own do."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from lake_cases import curator, environment, refusal, values_of

pytest.importorskip("megatron.core", reason="needs the extra [train]")

LEARN = ("learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--data-parallel", 2, "--json")


def workers(here, count, *arguments):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, *torchrun, "-m", "curator.worker", *map(str, arguments)],
        cwd=here,
        env=environment(here),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_prepared_run_under_torchrun_learns_what_one_command_does(here):
    prepared = values_of(curator(here, *LEARN, "--run-dir", "run", "--prepare"))
    assert prepared["workers"] == 2
    assert prepared["command"] == f"torchrun --nproc-per-node 2 -m curator.worker {here / 'run'}"
    assert values_of(curator(here, "history", "lake", "--json"))["runs"] == []

    done = workers(here, 2, "run")
    assert done.returncode == 0, done.stderr
    values = values_of(curator(here, "learn", "lake", "--resume", "run", "--json"))
    values_of(curator(here, *LEARN, "--run-dir", "whole"))
    assert pq.read_table(here / "run" / "weights.parquet").equals(pq.read_table(here / "whole" / "weights.parquet"))
    record = json.loads((here / "run" / "run.json").read_text())
    assert record["run_id"] == values["run_id"]
    assert record["backend"]["layout"] == "TP=1 PP=1 DP=2"


def test_a_world_of_another_size_is_refused(here):
    values_of(curator(here, *LEARN, "--run-dir", "run", "--prepare"))
    alone = subprocess.run(
        [sys.executable, "-m", "curator.worker", "run"],
        cwd=here,
        env=environment(here),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert alone.returncode == 1
    assert "curator.worker: rank 0: LayoutError: TP=1 PP=1 DP=2 needs 2 workers, but there are 1" in alone.stderr


def test_the_slurm_script_is_a_script_for_this_run(here):
    values_of(curator(here, *LEARN, "--run-dir", "run", "--prepare", CURATOR__LEARN__PIPELINE_PARALLEL="4"))
    script = (here / "run" / "slurm.sh").read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8\n" in script
    assert f"-m curator.worker {here / 'run'}\n" in script


def test_a_run_is_prepared_in_a_folder_that_is_named(here):
    assert refusal(curator(here, *LEARN, "--prepare"), 2) == (
        "--prepare needs --run-dir, a folder that all machines share"
    )
