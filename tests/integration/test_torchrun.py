"""Workers that torchrun starts, on one machine or many, do what `curator learn` has its own do."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lake_cases import curator, environment, refusal, values_of, write_settings
from process_cases import is_learning, outcome, processes_of, wait_until

pytest.importorskip("megatron.core", reason="needs the extra [train]")

LEARN = ("learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--data-parallel", 2, "--json")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def workers(here, *launcher):
    """The workers of the run folder, by a launcher or alone."""
    return subprocess.run(
        [sys.executable, *launcher, "-m", "curator.worker", "run"],
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

    done = workers(here, *TORCHRUN)
    assert done.returncode == 0, done.stderr
    values = values_of(curator(here, "learn", "lake", "--resume", "run", "--json"))
    values_of(curator(here, *LEARN, "--run-dir", "whole"))
    assert pq.read_table(here / "run" / "weights.parquet").equals(pq.read_table(here / "whole" / "weights.parquet"))
    record = json.loads((here / "run" / "run.json").read_text())
    assert record["run_id"] == values["run_id"]
    assert record["backend"]["layout"] == "TP=1 PP=1 DP=2"


def test_a_world_of_another_size_is_refused(here):
    values_of(curator(here, *LEARN, "--run-dir", "run", "--prepare"))
    alone = workers(here)
    assert alone.returncode == 1
    assert "curator.worker: rank 0: LayoutError: TP=1 PP=1 DP=2 needs 2 workers, but there are 1" in alone.stderr


def two_workers(here):
    """Both ranks as torchrun would start them, in this test's hands."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "curator.worker", here / "run"],
            cwd=here,
            env=environment(here, RANK=str(rank), LOCAL_RANK=str(rank), **world),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def test_workers_end_with_a_sentence_when_stopped_and_when_a_peer_is_gone(here):
    values_of(curator(here, *LEARN, "--run-dir", "run", "--prepare", "--steps", 10**6))
    ranks = two_workers(here)
    wait_until(lambda: is_learning(here), 100, ranks[0])
    for rank in ranks:
        rank.send_signal(signal.SIGINT)
    for number, rank in enumerate(ranks):
        done = outcome(rank)
        assert done.returncode == 75, done.stderr
        assert f"curator.worker: rank {number}: StoppedError: stopped after step " in done.stderr
        assert "Traceback" not in done.stderr
    (checkpoint,) = (here / "run" / "checkpoints").glob("step-*")

    before = (here / "run" / "trajectory.jsonl").stat().st_size
    ranks = two_workers(here)  # they go on from the checkpoint
    wait_until(lambda: (here / "run" / "trajectory.jsonl").stat().st_size > before, 100, ranks[0])
    ranks[1].kill()
    ranks[1].communicate()
    done = outcome(ranks[0])
    assert done.returncode == 1
    assert "curator.worker: rank 0: " in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoint.exists()


def test_the_slurm_script_is_a_script_for_this_run(here):
    values_of(curator(here, *LEARN, "--run-dir", "run", "--prepare", CURATOR__LEARN__PIPELINE_PARALLEL="4"))
    script = (here / "run" / "slurm.sh").read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8\n" in script
    assert f"-m curator.worker {here / 'run'}\n" in script


SLURM_COMMANDS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
}
"""What the script asks of Slurm, for one machine that has none."""


@pytest.mark.slow
def test_slurm_queues_a_run_again_that_its_time_cut_short_but_not_one_that_fails_where_it_stands(here):
    write_settings(here / "fast.toml", steps=60)
    with (here / "fast.toml").open("a") as settings:
        settings.write("[learn.checkpoint]\nevery_minutes = 0.008\n")
    (here / "bin").mkdir()
    for name, script in SLURM_COMMANDS.items():
        (here / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (here / "bin" / name).chmod(0o755)
    alone = [argument for argument in LEARN if argument not in ("--data-parallel", 2)]
    values_of(curator(here, *alone, "--run-dir", "run", "--prepare"))

    def batch():
        variables = {"PATH": f"{here / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one"}
        return subprocess.Popen(["bash", "run/slurm.sh"], cwd=here, env=environment(here, **variables))

    job = batch()
    wait_until(lambda: any((here / "run" / "checkpoints").glob("step-*")), 60, job)
    for pid in processes_of(here):
        if "torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGTERM)
    assert job.wait(60) != 0
    assert (here / "requeued").read_text() == "requeue 7\n"

    kept = (here / "run" / "job.json").read_text()
    (here / "run" / "job.json").write_text("{}")
    assert batch().wait(60) != 0
    assert (here / "requeued").read_text() == "requeue 7\n"

    (here / "run" / "job.json").write_text(kept)
    assert batch().wait(120) == 0
    assert (here / "requeued").read_text() == "requeue 7\n"
    values_of(curator(here, "learn", "lake", "--resume", "run", "--json"))
    assert (here / "run" / "trajectory.jsonl").read_text().count("\n") == 60


def test_a_run_is_prepared_in_a_folder_that_is_named(here):
    assert refusal(curator(here, *LEARN, "--prepare"), 2) == (
        "--prepare needs --run-dir, a folder that all machines share"
    )
