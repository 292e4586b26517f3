"""The DAG of `examples/jobs` in Airflow itself, which has a virtual environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from lake_cases import environment, write_lake, write_settings, write_target

JOB = Path(__file__).parents[2] / "examples" / "jobs" / "airflow_dag.py"
AIRFLOW = "apache-airflow==3.1.8"
PUBLISH_ANYTHING = """
[refresh]
verdicts = ["converged", "not converged", "no gain", "unstable"]
"""


@pytest.fixture
def night(python_with, tmp_path):
    """`night()` runs the DAG once, as `dag.test()` does; what became of its tasks, and all that was printed."""
    airflow = python_with(AIRFLOW, alone=True).with_name("airflow")
    lake, target = write_lake(tmp_path / "lake"), write_target(tmp_path / "target.parquet")
    settings = write_settings(tmp_path / "corpus.toml")
    places = f'[lake]\nurl = "{lake}"\n\n[target]\nurl = "{target}"\n\n'
    settings.write_text(places + settings.read_text() + PUBLISH_ANYTHING)
    dags = tmp_path / "airflow" / "dags"
    dags.mkdir(parents=True)
    dag = JOB.read_text().replace("/etc/curator/corpus.toml", str(settings))
    (dags / JOB.name).write_text(dag)
    given = environment(
        tmp_path,
        AIRFLOW_HOME=str(dags.parent),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )

    def run(*arguments):
        done = subprocess.run(
            [airflow, *arguments], env=given, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def once():
        said = run("dags", "test", "curator_refresh")
        newest = json.loads(run("dags", "list-runs", "curator_refresh", "-o", "json").splitlines()[-1])[0]
        tasks = run("tasks", "states-for-dag-run", "curator_refresh", newest["run_id"], "-o", "json").splitlines()[-1]
        return {task["task_id"]: task["state"] for task in json.loads(tasks)}, said

    run("db", "migrate")
    return once


@pytest.mark.slow
def test_airflow_refreshes_tells_the_version_and_skips_a_night_without_news(night):
    states, said = night()
    assert states == {"refresh": "success", "tell": "success"}
    assert "version 1 of run " in said
    states, said = night()
    assert states == {"refresh": "skipped", "tell": "skipped"}
    assert "version" not in said.split("exit code 99")[-1]
