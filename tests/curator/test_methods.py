"""Runs by other methods than ScaleBiO, from the lake to the run's record."""

import json
from collections import Counter

import numpy as np
import pytest
from lake_cases import FAST, curator, refusal, values_of, write_lake, write_settings, write_target

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator import open_lake
from curator.dsir import ngram_buckets
from curator.errors import ConfigError
from curator.regmix import verdict
from curator.words import HashedWords
from optim.learners.regmix import fit, random_mixtures


@pytest.fixture
def here(tmp_path):
    write_lake(tmp_path / "lake")
    write_target(tmp_path / "target.parquet")
    return tmp_path


def test_a_run_by_doge_is_recorded_with_its_method_and_compute(here):
    write_settings(here / "fast.toml")
    arguments = ["learn", "lake", "--target", "target.parquet", "--config", "fast.toml", "--method", "doge"]
    learned = values_of(curator(here, *arguments, "--data-parallel", 1, "--json"))
    assert max(learned["domain_weights"], key=learned["domain_weights"].get) == "north"
    with open_lake(str(here / "lake")) as lake:
        run = lake.run("latest")
        ((method, compute),) = lake.sql("SELECT method, compute_tokens FROM runs").fetchall()
        run.samples()  # checks the weights' identities
    assert (method, run.record["learn"]["method"]) == ("doge", "doge")
    records = [json.loads(line) for line in (run.run_dir / "trajectory.jsonl").read_text().splitlines()]
    assert compute == run.record["compute_tokens"] == pytest.approx(sum(r["compute_tokens"] for r in records))
    # a step of this run has 6 rows of the lake and 4 of the target of at most 32 tokens
    assert 0 < compute < 12 * 32 * (6 * 5 / 3 + 4)
    assert {r["aux_train_loss"] for r in records} == {None}
    assert all(r["val_loss"] is not None for r in records)


def test_a_run_by_doremi_goes_without_a_target_loss_in_most_steps(here):
    with open_lake(str(here / "lake")) as lake:
        run = lake.learn(str(here / "target.parquet"), **FAST, method="doremi", data_parallel=1)
    records = [json.loads(line) for line in (run.run_dir / "trajectory.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["val_loss"] is not None] == [0, 11]
    assert all(r["weights"] == pytest.approx([1 / 3] * 3) for r in records[:6])
    assert records[-1]["weights"] != pytest.approx([1 / 3] * 3, abs=1e-9)


def test_dsir_finds_the_domain_of_the_targets_words(here):
    with open_lake(str(here / "lake")) as lake:
        runs = [lake.learn(str(here / "target.parquet"), **FAST, method="dsir", weights={"floor": 0.05}) for _ in "ab"]
        weights = [{row["domain"]: row["domain_weight"] for row in run.record["domains"]} for run in runs]
        table = lake.sql("SELECT method, compute_tokens, val_loss FROM runs").fetchall()
        runs[0].samples()
        with pytest.raises(ConfigError, match="is finished"):
            lake.resume(runs[0].run_dir)
    assert weights[0] == weights[1] == pytest.approx({"north": 0.9, "south": 0.05, "east": 0.05})
    assert table == [("dsir", 0.0, None)] * 2


def test_ngram_buckets_are_every_word_and_every_pair_of_neighbours():
    texts = ["to be or not", "", "to be"]
    bucket_G, row_G = ngram_buckets(texts)
    ones, twos = HashedWords(texts).sequences(1)[0], HashedWords(texts).sequences(2)[0]
    assert bucket_G.tolist() == [int(h) % 10_000 for h in [*ones, *twos]]
    assert Counter(row_G.tolist()) == {0: 4 + 3, 1: 1, 2: 2 + 1}  # a text without words is its own
    assert bucket_G[0] == bucket_G[5]  # "to"
    assert bucket_G[7] == bucket_G[-1]  # "to be"


@pytest.mark.slow
def test_regmix_finds_the_domain_of_the_targets_words(here):
    with open_lake(str(here / "lake")) as lake:
        run = lake.learn(str(here / "target.parquet"), **(FAST | {"steps": 30}), method="regmix", learning_rate=1e-2)
    weights = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
    assert max(weights, key=weights.get) == "north"
    assert run.verdict.startswith("converged: the regression is ")
    # each of 16 models on 30 steps of 2 rows of 3 domains of 32 tokens, to within a window
    assert run.record["compute_tokens"] == pytest.approx(16 * 30 * 2 * 3 * 32, rel=0.02)


def test_regmix_says_when_its_regression_tells_nothing():
    prior = np.array([0.5, 0.3, 0.2])
    mixtures = random_mixtures(prior, 16, seed=0)
    noise = np.exp(0.1 * np.random.default_rng(0).normal(size=16))
    signal = np.exp(mixtures @ np.array([1.0, 0.0, -1.0]))
    assert verdict(fit(mixtures, noise), noise).status == "not converged"
    assert verdict(fit(mixtures, signal), signal).status == "converged"


def test_what_a_method_cannot_do_is_refused(here):
    base = ["learn", "lake", "--target", "target.parquet"]
    said = refusal(curator(here, *base, "--method", "nonesuch"), 2)
    assert "method='nonesuch'" in said
    assert "'doge'" in said
    prepared = curator(here, *base, "--method", "dsir", "--prepare", "--run-dir", "run")
    assert "has no workers to run on other machines" in refusal(prepared, 2)
    with (
        open_lake(str(here / "lake")) as lake,
        pytest.raises(ConfigError, match=r"method 'sama' compares losses .* set learn\.dtype"),
    ):
        lake.learn(str(here / "target.parquet"), **FAST, method="sama", dtype="bfloat16")
