"""The examples run as they are."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator.cli.refreshing import REFUSED

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = EXAMPLES / "jobs"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def test_the_examples_learn_publish_and_query(tmp_path):
    learned = run("01_learn_and_publish.py", tmp_path / "demo", 4)
    assert "version 1:" in learned
    assert "docstrings" in learned
    asked = run("02_sql.py", tmp_path / "demo" / "lake")
    assert asked.count("garbled") == 2  # in the table of domains and in that of the filter
    assert "num_rows" in asked
    handed = run("05_train_on_weights.py", tmp_path / "demo" / "lake", tmp_path / "demo")
    assert (tmp_path / "demo" / "megatron.txt").read_text()
    assert "domains of the rows drawn: {" in handed


def test_the_example_weighs_rows(tmp_path):
    said = run("04_weigh_rows.py", tmp_path / "demo", 4)
    assert "rows weigh " in said
    assert re.search(r"\d+ rows, (19|20)\d{4} tokens in ", said)


@pytest.mark.slow
def test_the_example_refreshes(tmp_path):
    said = run("06_refresh_a_growing_lake.py", tmp_path / "demo", 12)
    assert "the first night: published, version 1" in said
    assert "nothing has changed: unchanged, version 1" in said
    assert "twenty new rows of a known domain: published, version 2" in said


@pytest.mark.slow
def test_the_examples_learn_with_a_model_folder_and_under_torchrun(tmp_path):
    assert f"model: {tmp_path / 'demo' / 'model'}" in run("07_your_own_model.py", tmp_path / "demo", 12)
    assert "workers: TP=1 PP=2 DP=1" in run("08_many_workers.py", tmp_path / "demo", 12)


@pytest.mark.slow
def test_the_example_compares(tmp_path):
    said = run("03_compare.py", tmp_path / "demo", 6, 1)
    assert "by hand differs from uniform by " in said
    assert "not judged" in said


def test_every_example_is_short_and_is_run_here():
    here = Path(__file__).read_text()
    assert len(list(EXAMPLES.glob("*.py"))) == 8
    assert all(f'run("{path.name}"' in here for path in EXAMPLES.glob("*.py"))
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES.glob("*.py"))


def test_the_job_definitions_are_readable_and_run_commands_that_exist():
    for name in ("airflow_dag.py", "dagster_job.py"):
        compile((JOBS / name).read_text(), name, "exec")
    texts = {path.name: path.read_text() for path in JOBS.iterdir() if path.is_file()}
    assert {name for name in texts if name != "README.md"} == set(
        re.findall(r"`([\w-]+\.\w+|crontab)`", texts["README.md"])
    )
    yaml = pytest.importorskip("yaml")
    (job,) = yaml.safe_load_all(texts["kubernetes.yaml"])
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings, drained = job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    policy = settings["onExitCodes"]
    assert (policy["containerName"], policy["values"]) == (container["name"], [2, REFUSED])
    # Kubernetes up to 1.34 refuses a condition without its status.
    assert drained["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    unit = configparser.ConfigParser(interpolation=None, delimiters="=", strict=False)
    unit.optionxform = str
    unit.read_string(texts["curator-refresh.service"])
    assert unit["Service"]["RestartPreventExitStatus"] == f"2 {REFUSED}"
    lines = [unit["Service"]["ExecStart"], texts["crontab"], " ".join(container["args"]), texts["airflow_dag.py"]]
    help_ = subprocess.run(
        [sys.executable, "-m", "curator", "refresh", "--help"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert " --quiet " in texts["crontab"]
    for line in lines:
        options = re.search(r"curator refresh((?: +-{2}[\w-]+(?: +/[\w/.-]+)?)+)", line)[1]
        assert set(re.findall(r"--[\w-]+", options)) <= set(re.findall(r"--[\w-]+", help_)), line
