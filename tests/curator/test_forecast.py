"""What a plan says of a run against what the run then is."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from lake_cases import FAST, curator, refusal, sentences, tree, values_of, write_settings

import curator as sdk
from curator.config import LearnConfig
from curator.console import print_forecast
from curator.errors import InputError
from curator.forecast import _in_parts, _Sample, _tokens, _trainings
from curator.intervals import Estimate
from curator.tokens import RowBatch, train_tokenizer, write_cache

pytest.importorskip("megatron.core", reason="needs the extra [train]")


def test_the_interval_holds_the_tokens_of_the_whole_lake():
    """Domains whose tokens follow their bytes more or less; a tenth of the rows looked at, 300 times."""
    rng = np.random.default_rng(0)
    rows_D = [400, 900, 60]
    domain = np.repeat(np.arange(3), rows_D)
    sizes = rng.integers(20, 2000, len(domain)).astype(float)
    tokens = np.round(sizes * rng.uniform(0.15, 0.35, len(domain)) * np.array([1.0, 2.0, 0.5])[domain] + 1).astype(int)
    sizes_D = np.bincount(domain, weights=sizes)
    held = []
    for _ in range(300):
        taken = np.concatenate(
            [rng.choice(np.flatnonzero(domain == d), rows_D[d] // 10, replace=False) for d in range(3)]
        )
        found = _tokens(tokens[taken], sizes[taken], domain[taken], np.array(rows_D, float), sizes_D)
        held.append(found.low <= tokens.sum() <= found.high)
    assert 0.9 <= np.mean(held) <= 0.99
    whole = _tokens(tokens, sizes, domain, np.array(rows_D, float), sizes_D)
    assert whole.low == whole.high == pytest.approx(tokens.sum(), rel=1e-12)


def test_the_line_search_trains_as_many_models_as_are_told():
    usual = LearnConfig()
    assert _trainings(usual, 2) == (11, 15)
    assert _trainings(LearnConfig(line_search={"places": []}), 2) == (0, 0)
    assert _trainings(LearnConfig(line_search={"places": [1.0], "seeds": 2}), 2) == (2, 4)
    assert _trainings(LearnConfig(method="doge"), 2) == _trainings(usual, 1) == (0, 0)


@pytest.mark.parametrize(
    ("budget", "asked", "size"),
    [
        (None, {}, (300, 2048)),  # as long as the run
        (10**12, {}, (300, 2048)),
        (307_200, {}, (300, 1024)),  # as many steps, each smaller
        (307_201, {}, (300, 1025)),
        (25_600, {}, (100, 256)),  # no smaller than this
        (1, {}, (1, 256)),
        (307_200, {"steps": 600}, (600, 512)),
        (307_200, {"tokens_per_step": 2048}, (150, 2048)),
        (10, {"steps": 30, "tokens_per_step": 100}, (30, 100)),  # as asked
    ],
)
def test_the_line_search_trains_no_longer_than_the_budget(budget, asked, size):
    assert LearnConfig(weights={"budget_tokens": budget}, line_search=asked).search_size == size


def test_a_plan_is_what_the_run_then_is(learned, tmp_path):
    """Rows, tokens, steps and bytes against the record and the version; the plan leaves nothing behind."""
    settings = write_settings(tmp_path / "fast.toml")
    before = tree(learned.folder)
    process = curator(
        tmp_path, "plan", learned.lake, "--target", learned.target, "--config", settings, "--json",
        "--calibration-steps", 3,
    )  # fmt: skip
    found = values_of(process)
    assert tree(learned.folder) == before
    with sdk.open_lake(str(learned.lake)) as lake:
        record = lake.run(learned.run_id).record
        version = lake.publish(learned.run_id)
    assert found["num_rows"] == found["num_sampled"] == 72
    assert found["tokens"]["mean"] == pytest.approx(sum(row["num_tokens"] for row in record["domains"]))
    assert (found["steps"], found["num_domains"], found["num_target_rows"]) == (FAST["steps"], 3, 20)
    assert found["publish_bytes"]["low"] < version.size_bytes < found["publish_bytes"]["high"]
    assert found["calibration"]["num_steps"] == 3
    step = found["calibration"]["step_seconds"]
    assert 0 <= step["low"] <= step["mean"] <= step["high"]
    assert found["seconds"]["mean"] == pytest.approx(sum(part["mean"] for part in found["parts"].values()))
    assert found["parts"].keys() == {"tokenize", "learn"}
    assert found["parts"]["learn"]["mean"] >= FAST["steps"] * step["mean"]
    assert found["worst_total_bytes"] > 8 * found["num_parameters"]  # two copies in float32


def test_a_plan_of_row_weights_has_the_pairs_that_compare_rows(learned):
    rows = {"granularity": "sample", "rows": {"pairs": 3, "steps": 5}}
    with sdk.open_lake(str(learned.lake)) as lake:
        found = lake.forecast(str(learned.target), calibration_steps=2, **FAST | rows)
    assert found.steps == FAST["steps"] + 15
    assert found.parts.keys() == {"tokenize", "learn", "rows"}
    step = found.calibration.step_seconds.mean
    measured = 3 * 2 / 3 * found.tokens.mean / found.calibration.step_compute_tokens  # in steps
    assert found.parts["rows"].mean == pytest.approx((15 + measured) * step)


def test_a_plan_says_its_uncertainty_and_refuses_what_learn_would(learned, tmp_path, capsys):
    settings = write_settings(tmp_path / "fast.toml")
    with sdk.open_lake(str(learned.lake)) as lake:
        found = lake.forecast(str(learned.target), calibration_steps=0, **FAST | {"line_search": {"places": [1.0]}})
        assert (found.search_trainings, found.seconds, found.parts) == ((6, 10), None, {})
        with pytest.raises(InputError, match="has no column"):
            lake.forecast(str(learned.target), target_text="txt", **FAST)
    call = ("plan", learned.lake, "--target", learned.target, "--config", settings)
    shown = curator(tmp_path, *call, "--calibration-steps", 0).stdout
    assert "time      not known: no step was timed" in shown
    assert ", all rows tokenized" in shown
    print_forecast(dataclasses.replace(found, num_sampled=found.num_rows - 1), 1)
    assert f"(95 % interval {found.tokens.low:,.0f} … " in capsys.readouterr().out
    rows = values_of(curator(tmp_path, *call, "--calibration-steps", 0, "--granularity", "sample", "--json"))
    assert rows["steps"] == FAST["steps"] + 4 * FAST["steps"] // 3  # four pairs, a third of the steps each
    assert "leave --granularity out" in refusal(curator(tmp_path, "plan", "--granularity", "sample"), 2)
    assert "leave --devices out" in refusal(curator(tmp_path, *call, "--devices", 2), 2)
    assert "pass LAKE_URL" in refusal(curator(tmp_path, "plan", "--target", "x"), 2)
    assert json.loads(curator(tmp_path, "plan", "--target", "x", "--json").stdout)["error"]["code"] == "config"


def test_a_plan_takes_the_settings_here_if_it_is_asked_about_a_lake(learned, tmp_path):
    settings = write_settings(tmp_path / "curator.toml")
    settings.write_text(f'[lake]\nurl = "{learned.lake}"\n{settings.read_text()}[target]\nurl = "{learned.target}"\n')
    assert values_of(curator(tmp_path, "plan", "--calibration-steps", 0, "--json"))["num_rows"] == 72
    assert values_of(curator(tmp_path, "plan", "--json"))["num_rows"] == 72
    assert "num_rows" not in values_of(curator(tmp_path, "plan", "--model", "tiny", "--json"))
    assert "num_rows" not in values_of(curator(tmp_path, "plan", "--devices", 1, "--memory", 80, "--json"))
    assert "leave --devices out" in refusal(curator(tmp_path, "plan", "--target", learned.target, "--devices", 2), 2)


def test_no_part_of_a_sample_is_empty(tmp_path):
    """A domain may get more clusters than it has rows in the sample."""
    (tmp_path / "corpus").mkdir()
    texts = sentences("north", 9)
    rows = RowBatch(
        sample_id=pa.array([str(i) for i in range(9)]),
        text=texts,
        domain=np.array([0] * 6 + [1] * 3, np.int32),
    )
    cache = write_cache(tmp_path / "corpus", train_tokenizer(texts, 300), [rows], ["a", "b"])
    some = Estimate(mean=1.0, low=1.0, high=1.0)
    sample = _Sample(folder=tmp_path, corpus=cache, target=cache, tokens=some, num_rows=9, tokenize_seconds=some)
    found = _in_parts(sample, [2, 50]).corpus
    assert np.bincount(found.domain, minlength=len(found.domains)).tolist() == [3, 3, 1, 1, 1]
    np.testing.assert_array_equal(found.num_targets, cache.num_targets)
