"""`curator compare` as a user has it, stopped with a real signal, too."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from lake_cases import command, curator, environment, refusal, sentences, values_of, write_rows
from process_cases import outcome, processes_of, wait_until

pytest.importorskip("megatron.core", reason="needs the extra [train]")

SETTINGS = "[compare]\nsteps = 12\ntokens_per_step = 128\nsequence_length = 32\nvocab_size = 300\nseeds = 2\n"


@pytest.fixture
def asked(here):
    """The arguments of a comparison of a lake with a test part."""
    write_rows(here / "test.parquet", text=[*sentences("north", 2040)[2000:], *sentences("east", 1)])
    (here / "fast.toml").write_text(SETTINGS)
    return ["lake", "--target", "target.parquet", "--test", "test.parquet", "--config", "fast.toml"]


def test_a_comparison_is_stopped_goes_on_and_is_shown(here, asked):
    arguments = ["compare", *asked, "--mixture", "uniform"]
    planned = values_of(curator(here, *arguments, "--dry-run", "--json"))
    assert (planned["dry_run"], planned["num_trainings"], planned["num_finished"]) == (True, 2, 0)
    assert (planned["tokens"], planned["num_test_rows"], planned["num_left_out"]) == (12 * 128, 40, 1)
    trainings = here / "lake" / "_curator" / "trainings"
    assert not trainings.exists()

    (here / "tmp").mkdir()
    one_at_a_time = {"TMPDIR": str(here / "tmp"), "CURATOR__COMPARE__AT_ONCE": "1"}
    process = subprocess.Popen(
        command(*arguments, "--json"),
        cwd=here,
        env=environment(here, **one_at_a_time),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: list(trainings.glob("*.json")) and len(list(trainings.glob("*.log"))) == 1, 120, process)
    os.killpg(process.pid, signal.SIGINT)
    done = outcome(process)
    assert refusal(done, 1) == (
        "stopped before all models were trained; finished ones are kept, the same command goes on with them"
    )
    assert json.loads(done.stdout)["error"]["code"] == "interrupted"
    wait_until(lambda: not processes_of(here), 15)
    (kept,) = trainings.iterdir()
    before = kept.stat().st_mtime_ns
    assert not (here / "lake" / "_curator" / "comparisons").exists()

    shown = curator(here, *arguments, "--dry-run")
    assert shown.stdout.splitlines()[0] == (
        "would train 1 models of 1,536 tokens each (12 steps); 1 of 2 are there already"
    )
    shown = curator(here, *arguments)
    assert shown.returncode == 0, shown.stderr
    assert kept.stat().st_mtime_ns == before
    assert len(list(trainings.iterdir())) == 2
    assert "train 24/24 steps, 2 of 2 trainings done" in shown.stderr
    assert "test 41/41 rows: 1 test rows also stand in the target or in the lake; left out" in shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:2] == ["mixture", "test"]
    assert lines[1].split()[0] == "uniform"
    assert "2 seeds, 1,536 tokens each, model tiny; 40 test rows (1 more stand in the target or the lake)" in lines
    folder = Path(lines[-1].rpartition(" in ")[2])
    assert {path.name for path in folder.iterdir()} == {"comparison.json", "comparison.md"}
    assert folder.parent.samefile(here / "lake" / "_curator" / "comparisons")
    values = values_of(curator(here, *arguments, "--json"))
    assert (values["status"], values["dry_run"], values["num_left_out"]) == ("ok", False, 1)
    assert [row["judgement"] for row in values["results"]] == ["reference"]
    query = "SELECT count(DISTINCT comparison_id), min(test_loss) FROM comparisons"
    assert values_of(curator(here, "sql", "lake", query, "--json"))["rows"] == [[2, values["results"][0]["test_loss"]]]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--test", ""], "no test part was named; pass --test URL: rows of the target's kind that are not in it"),
        (["--tensor-parallel", "3"], "tensor_parallel=3 cannot split a model with 4 attention heads"),
        (["--mixture", "gone.json"], "mixture file gone.json cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(here, asked, changed, said):
    process = curator(here, "compare", *asked, *changed)
    assert refusal(process, 2).startswith(said)
    assert not (here / "lake" / "_curator" / "trainings").exists()


def test_an_unknown_run_is_refused_in_a_sentence(here, asked):
    message = refusal(curator(here, "compare", *asked, "--mixture", "latest"), 2)
    assert message == (
        "mixture 'latest' is neither uniform, natural, oracle, domain:NAME, a file of mixtures (.json, .yaml, .yml, "
        ".csv, .txt, .blend) nor a run: "
        f"{here / 'lake'} has no run 'latest'; it has no run yet: `curator learn` makes one"
    )
