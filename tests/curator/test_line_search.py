"""Learned weights are judged on target rows that learning has not seen, and give way to the prior where they lose."""

import dataclasses
import json

import numpy as np
import pytest
from lake_cases import FAST, curator, refusal, sentences, values_of, write_lake, write_rows, write_target

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator import open_lake
from curator.begun import Begun
from curator.config import LearnConfig, override
from curator.line_search import line_search
from curator.tokens import TokenCache

# Five times the usual rate lets a model of 24 short rows a domain tell languages apart within 40 steps.
JUDGED = FAST | {
    "learning_rate": 1e-2,
    "line_search": {"places": [1.0], "steps": 40, "tokens_per_step": 128},
    "data_parallel": 1,
}


@pytest.fixture
def here(tmp_path):
    write_lake(tmp_path / "lake")
    write_target(tmp_path / "target.parquet", num_rows=40)
    return tmp_path


def search(run, learned):
    begun = Begun.read(run.run_dir)
    return line_search(begun.job, learned, run.lake.workdir, "cpu", lambda _: None)


def test_weights_that_win_are_taken_and_said_to(here):
    with open_lake(str(here / "lake")) as lake:
        run = lake.learn(str(here / "target.parquet"), **JUDGED)
        found = run.record["line_search"]
        domains = [row["domain"] for row in run.record["domains"]]
        good = search(run, [0.9 if name == "north" else 0.05 for name in domains])
        again = search(run, [0.9 if name == "north" else 0.05 for name in domains])
    assert found["places"] == [0.0, 1.0]
    assert found["num_rows"] == 10  # a quarter of the target
    assert good.place == 1.0
    assert good.difference_low < good.difference < good.difference_high < 0
    assert good.weights == pytest.approx([0.9 if name == "north" else 0.05 for name in domains])
    assert "beat the prior's on 10 target rows kept out" in good.verdict
    # two places with each of three seeds
    assert good.compute_tokens == pytest.approx(6 * 40 * 128, rel=0.02)
    assert again == good


def test_weights_that_lose_give_way_to_the_prior(here):
    with open_lake(str(here / "lake")) as lake:
        run = lake.learn(str(here / "target.parquet"), **JUDGED)
        domains = [row["domain"] for row in run.record["domains"]]
        bad = search(run, [0.02 if name == "north" else 0.49 for name in domains])
        from curator.worker import WorkerResult

        result = bad.applied_to(WorkerResult.read(run.run_dir))
    assert bad.place == 0
    assert bad.weights == pytest.approx([1 / 3] * 3)
    assert bad.val_losses[1] > bad.val_losses[0]
    assert result.verdict.status == "no gain"
    assert "so it is kept" in result.verdict.reason
    assert result.weights == bad.weights


def test_the_rows_that_judge_take_no_part_in_learning(here):
    """Learning sees the first three quarters of the target cache, the trainings are measured on the rest."""
    config = override(LearnConfig(), **JUDGED)
    assert config.num_fit_rows(40) == 30
    assert override(config, method="doge").num_fit_rows(40) == 40
    with open_lake(str(here / "lake")) as lake:
        run = lake.learn(str(here / "target.parquet"), **JUDGED)
        kept = [json.loads(path.read_text()) for path in (lake.workdir / "trainings").glob("*.json")]
        target = TokenCache.open(Begun.read(run.run_dir).job.target)
    assert kept
    assert {len(training["losses"]) for training in kept} == {10}
    fit, rest = target.rows(0, 30), target.rows(30, 40)
    assert fit.sample_ids().to_pylist() + rest.sample_ids().to_pylist() == target.sample_ids().to_pylist()
    assert rest.start.tolist() == target.start[30:].tolist()
    assert dataclasses.replace(rest.rows(2, 4), folder=target.folder).first_row == 32


def test_a_run_prepared_for_other_machines_is_not_judged_here(here):
    with open_lake(str(here / "lake")) as lake:
        folder = lake.prepare(str(here / "target.parquet"), run_dir=here / "run", **JUDGED)
    assert not Begun.read(folder).job.learn.is_judged


def test_a_share_is_capped_by_the_token_budget(here):
    with open_lake(str(here / "lake")) as lake:
        lake.ingest()
        settings = FAST | {"weights": {"budget_tokens": 1, "max_epochs": 1.0, "learning_rate": 5.0}}
        free = lake.learn(str(here / "target.parquet"), **settings)
        tokens = {row["domain"]: row["num_tokens"] for row in free.record["domains"]}
        budget = 2 * sum(tokens.values())
        settings["weights"] |= {"budget_tokens": budget, "max_epochs": 3.0}
        run = lake.learn(str(here / "target.parquet"), **settings)
    assert max(row["domain_weight"] for row in free.record["domains"]) > 0.6
    for row in run.record["domains"]:
        assert row["domain_weight"] * budget <= 3.0 * tokens[row["domain"]] * (1 + 1e-6)
    assert np.isclose(sum(row["domain_weight"] for row in run.record["domains"]), 1)


def test_what_cannot_be_judged_or_filled_is_refused(here):
    write_rows(here / "few.parquet", text=sentences("north", 1007)[1000:])
    config = here / "c.toml"
    config.write_text("[learn]\nsteps = 12\nvocab_size = 300\n")
    said = refusal(curator(here, "learn", "lake", "--target", "few.parquet", "--config", "c.toml"), 2)
    assert "has 7 distinct rows; to judge the weights on rows kept out it needs at least 8" in said
    config.write_text("[learn]\nweights.budget_tokens = 1000000\nvocab_size = 300\n")
    said = refusal(curator(here, "learn", "lake", "--target", "target.parquet", "--config", "c.toml"), 2)
    assert "learn.weights.budget_tokens=1000000 is more than 4 passes" in said


def test_the_command_says_what_the_judgement_rests_on(here):
    (here / "c.toml").write_text(
        "[learn]\nsteps = 12\nsequence_length = 32\nrows_per_domain = 2\ntarget_rows = 4\nvocab_size = 300\n"
        "line_search = { places = [1.0], steps = 4, tokens_per_step = 64 }\n"
    )
    learned = values_of(curator(here, "learn", "lake", "--target", "target.parquet", "--config", "c.toml", "--json"))
    assert "target rows kept out" in learned["reason"]
