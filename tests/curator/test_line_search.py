"""Learned weights are judged on target rows that learning has not seen, and give way to the prior where they lose."""

import dataclasses
import json
import math
import os
import signal
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lake_cases import (
    FAST,
    command,
    curator,
    environment,
    refusal,
    sentences,
    values_of,
    write_lake,
    write_rows,
    write_target,
)
from process_cases import wait_until
from scipy.special import softmax

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator import open_lake
from curator.begun import Begun
from curator.config import LearnConfig, override
from curator.line_search import against_last, choose, line_search
from curator.retrain import training_config
from curator.tokens import TokenCache
from curator.weights import DomainWeight
from curator.worker import WorkerResult
from optim.diagnostics import Summary, Verdict, tilt_intervals


@given(
    logits=st.lists(st.floats(-800, 800), min_size=2, max_size=5),
    noise=st.floats(0, 1e3),
    place=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    most=st.sampled_from([1.0, 0.6]),
)
def test_weights_are_within_their_intervals_and_these_within_0_and_1(logits, noise, place, most):
    """At whatever place the line search took, capped or not, with weights that are 0 or 1 to the last digit."""
    grads_TD = noise * np.random.default_rng(0).standard_normal((12, len(logits)))
    learned, taken = softmax(logits), softmax(place * np.array(logits))
    taken = np.minimum(taken, most) / np.minimum(taken, most).sum()
    low_D, high_D = tilt_intervals(learned, grads_TD, 0.1)
    figures = dict.fromkeys((field.name for field in dataclasses.fields(Summary)), 0.0)
    summary = Summary(**figures | {"ci_low": low_D.tolist(), "ci_high": high_D.tolist()})
    verdict = Verdict(status="converged", reason="")
    result = WorkerResult(weights=learned.tolist(), summary=summary, verdict=verdict, backend=None, compute_tokens=0.0)
    found = result.at(taken.tolist(), place)
    if place == 0:  # the prior, which was not learned
        assert (found.summary.ci_low, found.summary.ci_high) == (None, None)
        return
    row = DomainWeight(domain="d", domain_weight=0.0, natural_share=0.5, ratio=1.0, num_samples=1, num_tokens=1)
    for weight, low, high in zip(found.weights, found.summary.ci_low, found.summary.ci_high, strict=True):
        assert low - 1e-12 <= weight <= high + 1e-12  # but for rounding they are by themselves
        measured = dataclasses.replace(row, domain_weight=weight).measured(low, high, 1.0)
        assert 0 <= measured.ci_low <= weight <= measured.ci_high <= 1


JUDGED = {"places": [1.0], "steps": 40, "tokens_per_step": 256}
GOOD, BAD = (0.05, 0.9, 0.05), (0.49, 0.02, 0.49)  # of east, north and south; the target is northern


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A line search over the lake of a run that was not judged; trainings are kept from one to the next."""
    folder = tmp_path_factory.mktemp("judged")
    write_lake(folder / "lake", num_rows=120)
    write_target(folder / "target.parquet", num_rows=40)
    with open_lake(str(folder / "lake")) as lake:
        run = lake.learn(str(folder / "target.parquet"), **FAST, data_parallel=1)
        job = Begun.read(run.run_dir).job
        learn = override(job.learn, learning_rate=5e-3, line_search=JUDGED)
        job = dataclasses.replace(job, learn=learn)
        yield lambda learned: line_search(job, learned, lake.workdir, "cpu", lambda _: None), job


@pytest.fixture
def here(tmp_path):
    write_lake(tmp_path / "lake")
    write_target(tmp_path / "target.parquet", num_rows=40)
    return tmp_path


def test_weights_that_win_are_taken_and_said_to(judge):
    search, job = judge
    found = search(GOOD)
    assert found.places == [0.0, 1.0]
    assert found.place == 1.0
    assert found.weights == pytest.approx(GOOD)
    assert found.difference_low < found.difference < found.difference_high < 0
    assert "beat the prior's on 20 target rows kept out" in found.verdict
    # two places with each of five seeds
    assert found.compute_tokens == pytest.approx(10 * 40 * 256, rel=0.02)
    assert search(GOOD) == found

    result = found.applied_to(WorkerResult.read(job.run_dir))
    before = WorkerResult.read(job.run_dir)
    assert result.weights == found.weights
    assert result.verdict.status == before.verdict.status
    assert result.verdict.reason == f"{before.verdict.reason}; {found.verdict}"
    assert result.compute_tokens == before.compute_tokens + found.compute_tokens
    for low, weight, high in zip(result.summary.ci_low, result.weights, result.summary.ci_high, strict=True):
        assert low <= weight <= high


def test_the_two_places_that_did_best_with_one_seed_go_on_and_the_better_of_them_is_taken(judge):
    _, job = judge
    search = override(job.learn.line_search, places=[0.25, 0.5, 1.0, 1.5])
    job = dataclasses.replace(job, learn=override(job.learn, line_search=search.model_dump()))
    found = line_search(job, GOOD, job.corpus.parents[2], "cpu", lambda _: None)
    assert found.num_seeds[0] == 5
    assert sorted(found.num_seeds[1:]) == [1, 1, 3, 5]
    by_first_seed = sorted(range(1, 5), key=found.val_losses.__getitem__)
    assert {at for at in range(1, 5) if found.num_seeds[at] > 1} == set(by_first_seed[:2])
    for at in by_first_seed[2:]:
        assert found.differences[at] == pytest.approx(found.val_losses[at] - found.val_losses[0])
    taken = found.places.index(found.place)
    assert found.num_seeds[taken] == 5
    assert found.differences[taken] == pytest.approx(found.difference)
    assert found.compute_tokens == pytest.approx(15 * 40 * 256, rel=0.02)


@pytest.mark.parametrize("alike", [0.0, 0.5])
@pytest.mark.parametrize("of_rows", [0.0, 0.5])
def test_weights_that_are_worth_nothing_are_seldom_taken_and_good_ones_are(alike, of_rows):
    """The rule alone, on losses drawn at random: what one place has in common with the others, and rows with seeds."""
    rng, search = np.random.default_rng(0), LearnConfig().line_search
    places, seeds, tokens_N = [0.0, *search.places], range(search.seeds), np.ones(100, dtype=np.int64)

    def taken(gain):
        def drawn(scale, size):
            own = rng.standard_normal((len(places), size)) * math.sqrt(1 - alike)
            return scale * (own + rng.standard_normal(size) * math.sqrt(alike))

        by_seed, by_row = drawn(0.05, search.seeds), drawn(of_rows, 100)
        by_seed[0], by_row[0] = 0, 0
        means = {place: (0 if place == 0 else -gain) for place in places}

        def losses(of, some):
            at = {place: places.index(place) for place in of}
            return {(p, s): 5 + means[p] + by_seed[at[p], s] + by_row[at[p]] for p in of for s in some}

        return choose(losses, places, seeds, search, tokens_N).place > 0

    assert 0.005 < np.mean([taken(0.0) for _ in range(1500)]) < 0.1
    assert np.mean([taken(0.3) for _ in range(200)]) > 0.97


@pytest.mark.parametrize(
    ("num_rows", "share", "num_judging"),
    [
        (8, None, 4),
        (40, None, 20),
        (105, None, 52),
        (300, None, 100),
        (399, None, 100),
        (600, None, 150),
        (40, 0.25, 10),
    ],
)
def test_a_quarter_of_the_target_judges_and_of_a_small_one_up_to_half(num_rows, share, num_judging):
    config = LearnConfig(line_search={"validation_share": share})
    assert num_rows - config.num_fit_rows(num_rows, 2) == num_judging
    assert config.num_fit_rows(num_rows, 1) == num_rows  # one domain has one mixture: there is nothing to judge


def test_weights_are_compared_with_those_of_the_last_version(judge):
    """On the same rows by the same seeds: what the line search found against the prior is found against it again."""
    search, job = judge

    def against(taken, last):
        return against_last(job, taken, last, job.corpus.parents[2], "cpu", lambda _: None)

    uniform = search(GOOD)
    found = against(GOOD, [1 / 3] * 3)
    assert (found.difference, found.difference_low, found.difference_high) == pytest.approx(
        (uniform.difference, uniform.difference_low, uniform.difference_high)
    )
    worse = against([1 / 3] * 3, GOOD)
    assert (worse.difference, worse.difference_low) == pytest.approx((-found.difference, -found.difference_high))
    assert worse.difference_low > 0.01  # what the gate refuses
    same = against(GOOD, GOOD)
    assert (same.difference, same.difference_high, same.num_rows) == (0, 0, 20)


def test_the_trainings_that_judge_take_the_blocks_and_the_layout_of_the_run():
    learn = LearnConfig(
        blocks={"size": 1, "edges": "frozen"}, tensor_parallel=2, sequence_parallel=True, recompute=True
    )
    made = training_config(learn, steps=7, tokens_per_step=256, seeds=2)
    assert (made.blocks, made.layout, made.recompute) == (learn.blocks, learn.layout, True)
    assert (made.steps, made.tokens_per_step, made.seeds) == (7, 256, 2)


def test_weights_that_lose_give_way_to_the_prior(judge):
    search, job = judge
    found = search(BAD)
    result = found.applied_to(WorkerResult.read(job.run_dir))
    assert found.place == 0
    assert found.weights == pytest.approx([1 / 3] * 3)
    assert found.val_losses[1] > found.val_losses[0]
    assert found.differences[1] > 0
    assert found.num_seeds == [3, 3]  # what loses with three seeds gets no more
    assert result.verdict.status == "no gain"
    assert "so it is kept" in result.verdict.reason
    assert result.weights == found.weights
    assert (result.summary.ci_low, result.summary.ci_high) == (None, None)  # the prior was not learned


def test_a_budget_has_the_trainings_repeat_rows_as_it_will(judge):
    """A budget 20 times as large is judged on a twentieth of the rows, and there a narrow mixture loses."""
    search, job = judge
    budget = override(job.learn.weights, budget_tokens=20 * 40 * 256, max_epochs=1e6)
    told = dataclasses.replace(job, learn=override(job.learn, weights=budget.model_dump()))
    found = line_search(told, GOOD, job.corpus.parents[2], "cpu", lambda _: None)
    free = search(GOOD)
    assert (free.place, found.place) == (1.0, 0.0)
    assert min(found.val_losses) > max(free.val_losses)
    small = override(job.learn.weights, budget_tokens=10, max_epochs=1e6)
    told = dataclasses.replace(job, learn=override(job.learn, weights=small.model_dump()))
    assert line_search(told, GOOD, job.corpus.parents[2], "cpu", lambda _: None) == free


def test_the_rows_that_judge_take_no_part_in_learning(judge):
    """Learning sees the first half of so small a target cache, the trainings are measured on the rest."""
    search, job = judge
    search(BAD)
    target = TokenCache.open(job.target)
    first = job.learn.num_fit_rows(target.num_rows, 2)
    assert (first, target.num_rows) == (20, 40)
    assert override(job.learn, method="doge").num_fit_rows(40, 2) == job.learn.num_fit_rows(40, 1) == 40
    kept = [json.loads(path.read_text()) for path in (job.corpus.parents[2] / "trainings").glob("*.json")]
    assert {len(training["losses"]) for training in kept} == {20}
    fit, rest = target.rows(0, first), target.rows(first, 40)
    assert fit.sample_ids().to_pylist() + rest.sample_ids().to_pylist() == target.sample_ids().to_pylist()
    assert rest.start.tolist() == target.start[20:].tolist()
    assert rest.rows(2, 4).first_row == 22


def test_a_run_prepared_for_other_machines_is_not_judged_here(here):
    with open_lake(str(here / "lake")) as lake:
        settings = FAST | {"line_search": JUDGED}
        folder = lake.prepare(str(here / "target.parquet"), run_dir=here / "run", **settings)
    assert not Begun.read(folder).job.learn.is_judged(2)


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
        assert row["ci_low"] <= row["domain_weight"] <= row["ci_high"]
    assert np.isclose(sum(row["domain_weight"] for row in run.record["domains"]), 1)


def test_what_cannot_be_judged_or_filled_is_refused(here):
    write_rows(here / "few.parquet", text=sentences("north", 1007)[1000:])
    config = here / "c.toml"
    write_rows(here / "three.parquet", text=sentences("north", 1003)[1000:])
    for unjudged in ('method = "doge"', "line_search.places = []"):
        config.write_text(f"[learn]\nsteps = 12\nvocab_size = 300\n{unjudged}\n")
        said = refusal(curator(here, "learn", "lake", "--target", "three.parquet", "--config", "c.toml"), 2)
        assert "has 3 distinct rows; at least 4 are needed: add rows" in said
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
    assert "target rows kept out" in learned["verdict"]
    with open_lake(str(here / "lake")) as lake:
        found = lake.run("latest").record["line_search"]
    assert found["places"] == [0.0, 1.0]
    assert found["num_rows"] == 20


@pytest.mark.slow
def test_a_judgement_that_was_stopped_goes_on(here):
    (here / "c.toml").write_text(
        "[learn]\nsteps = 12\nsequence_length = 32\nrows_per_domain = 2\ntarget_rows = 4\nvocab_size = 300\n"
        "line_search = { places = [1.0], steps = 150, tokens_per_step = 64 }\n"
    )
    asked = ["learn", "lake", "--target", "target.parquet", "--config", "c.toml", "--run-dir", "run"]
    process = subprocess.Popen(
        command(*asked), cwd=here, env=environment(here), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: list((here / "lake" / "_curator" / "trainings").glob("*.steps")), 120, process)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1].splitlines()[-1]
    assert said == (
        "curator: stopped before all models were trained; finished ones are kept; go on with "
        f"`curator learn lake --resume {here / 'run'}`"
    )
    learned = values_of(curator(here, "learn", "lake", "--resume", "run", "--json"))
    assert "target rows kept out" in learned["verdict"]
