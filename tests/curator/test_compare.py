"""The Performance Evaluator on a lake of three alphabets, the target in one of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from lake_cases import sentences, write_lake, write_rows, write_target

import curator
from curator.compare import ComparisonPlan
from curator.comparison import Comparison, MixtureResult, judged
from curator.config import CompareConfig
from curator.errors import ConfigError, InputError, LearningError, StorageError
from curator.intervals import Estimate

pytest.importorskip("megatron.core", reason="needs the extra [train]")

SHORT = {"steps": 16, "tokens_per_step": 256, "sequence_length": 32, "vocab_size": 300, "seeds": 3}
HELD_OUT = sentences("north", 2100)[2000:]
IN_TARGET = sentences("north", 1003)[1000:]
IN_LAKE = sentences("south", 2)


@dataclass(frozen=True)
class Compared:
    """A lake, and what was said of uniform, its twin, one domain alone and the target itself."""

    folder: Path
    comparison: Comparison

    @property
    def given(self):
        return {"target": str(self.folder / "target.parquet"), "test": str(self.folder / "test.parquet"), **SHORT}

    def open(self):
        return curator.open_lake(str(self.folder / "lake"))


MIXTURES = ("twin=uniform", "domain:north", "oracle")


@pytest.fixture(scope="session")
def compared_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    write_lake(folder / "lake")
    write_target(folder / "target.parquet")
    write_rows(folder / "test.parquet", text=[*HELD_OUT, *IN_TARGET, *IN_LAKE, HELD_OUT[0]])
    found = Compared(folder, None)
    with found.open() as lake:
        return replace(found, comparison=lake.compare(*MIXTURES, **found.given))


@pytest.fixture
def compared(compared_once, tmp_path):
    """A copy, modification times kept."""
    shutil.copytree(compared_once.folder, tmp_path / "compared", copy_function=shutil.copy2)
    return replace(compared_once, folder=tmp_path / "compared")


def test_what_was_trained_on_is_better_than_uniform(compared_once):
    found = compared_once.comparison
    assert [result.mixture for result in found.results] == ["uniform", "twin", "domain:north", "oracle"]
    assert found["uniform"].judgement == "reference"
    assert found["domain:north"].test_loss < found["uniform"].test_loss
    assert found["domain:north"].judgement == found["oracle"].judgement == "better"
    for result in found.results:
        assert result.test_loss_low < result.test_loss < result.test_loss_high
        assert result.difference == pytest.approx(result.test_loss - found["uniform"].test_loss)
        assert result.judgement in (
            "reference",
            judged(Estimate(mean=0, low=result.difference_low, high=result.difference_high)),
        )


def test_equal_mixtures_differ_by_exactly_nothing(compared_once):
    twin = compared_once.comparison["twin"]
    assert (twin.difference, twin.difference_low, twin.difference_high) == (0.0, 0.0, 0.0)
    assert twin.judgement == "no gain"


def test_test_rows_of_the_target_or_the_lake_are_left_out_and_counted(compared_once):
    found = compared_once.comparison
    assert found.num_left_out == len(IN_TARGET) + len(IN_LAKE)
    assert found.num_test_rows == len(HELD_OUT)


def test_every_model_saw_the_tokens_that_are_said_and_domains_as_often(compared_once):
    found = compared_once.comparison
    assert found.tokens == 16 * 256
    assert all(abs(result.train_tokens - found.tokens) <= 3 * 32 for result in found.results)
    north = found["domain:north"]
    assert north.weights == {"east": 0.0, "north": 1.0, "south": 0.0}
    assert north.most_repeated == "north"
    assert north.max_epochs == pytest.approx(3 * found["uniform"].max_epochs, rel=0.2)
    assert found["oracle"].weights == {}
    assert found["oracle"].most_repeated == "target"
    assert all(result.train_seconds > 0 for result in found.results)
    assert all(result.learn_seconds == 0 for result in found.results)


def test_a_comparison_is_a_record_a_table_to_read_and_rows_of_sql(compared):
    found = compared.comparison
    (folder,) = (compared.folder / "lake" / "_curator" / "comparisons").iterdir()
    assert folder.name == found.comparison_id == Path(found.location).name
    assert json.loads((folder / "comparison.json").read_text())["verdict"] == found.verdict
    text = (folder / "comparison.md").read_text()
    assert all(f"| {result.mixture} | {result.test_loss:.4f} |" in text for result in found.results)
    assert found["oracle"].sentence in text
    with compared.open() as lake:
        (again,) = lake.comparisons()
        rows = lake.sql("SELECT mixture, test_loss, judgement, num_test_rows, num_left_out, seeds FROM comparisons")
        expected = {(r.mixture, r.test_loss, r.judgement, 100, 5, 3) for r in found.results}
        assert set(rows.fetchall()) == expected
    assert again == replace(found, location=str(folder))


def test_another_comparison_trains_only_what_is_new(compared):
    asked = ("domain:north", "oracle", "natural", ("twice", {"east": 1, "north": 1, "south": 1}))
    with compared.open() as lake:
        planned = lake.plan_comparison(*asked, **compared.given)
        more_seeds = lake.plan_comparison(*asked, **compared.given | {"seeds": 4})
        longer = lake.plan_comparison(*asked, **compared.given | {"steps": 17})
    assert planned == ComparisonPlan(
        mixtures=("uniform", "domain:north", "oracle", "natural", "twice"),
        seeds=3,
        steps=16,
        tokens=16 * 256,
        num_trainings=12,
        num_finished=9,
        num_test_rows=100,
        num_test_tokens=compared.comparison.num_test_tokens,
        num_left_out=5,
    )
    assert (more_seeds.num_trainings, more_seeds.num_finished) == (16, 9)
    assert (longer.num_trainings, longer.num_finished) == (12, 0)


def test_nothing_is_trained_twice(compared):
    folder = compared.folder / "lake" / "_curator" / "trainings"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 9
    assert all(name.endswith(".json") for name in before)
    told = []
    with compared.open() as lake:
        again = lake.compare(*MIXTURES, on_progress=told.append, **compared.given)
        assert len(lake.comparisons()) == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.results == compared.comparison.results
    trained = [state for state in told if state.stage == "train"]
    assert [(state.done, state.total, state.detail) for state in trained] == [
        (192, 192, "steps, 12 of 12 trainings done")
    ]


@pytest.mark.parametrize("content", ["", "{}", '{"losses": [1.0], "train_loss": 1, "tokens": 1, "seconds": 1}'])
def test_a_damaged_training_is_made_again(compared, content):
    victim = sorted((compared.folder / "lake" / "_curator" / "trainings").iterdir())[0]
    victim.write_text(content)
    with compared.open() as lake:
        assert lake.plan_comparison(*MIXTURES, **compared.given).num_finished == 8


@pytest.mark.parametrize(
    "change", [{"losses": [None]}, {"losses": [float("nan")]}, {"tokens": "many"}, {"seconds": None}]
)
def test_a_training_with_a_figure_that_is_none_is_made_again(compared, change):
    victim = sorted((compared.folder / "lake" / "_curator" / "trainings").iterdir())[0]
    values = json.loads(victim.read_text())
    if "losses" in change:
        change = {"losses": change["losses"] + values["losses"][1:]}
    victim.write_text(json.dumps(values | change))
    with compared.open() as lake:
        assert lake.plan_comparison(*MIXTURES, **compared.given).num_finished == 8


def test_a_training_that_fails_names_itself_and_leaves_its_log(compared):
    given = compared.given | {"learning_rate": 1e30, "seeds": 1, "at_once": 1}
    with compared.open() as lake, pytest.raises(LearningError) as caught:
        lake.compare("natural", **given)
    assert str(caught.value).startswith("the training on uniform with seed 0 failed: the ")
    folder = compared.folder / "lake" / "_curator"
    assert len(list((folder / "comparisons").iterdir())) == 1
    assert sorted(path.suffix for path in (folder / "trainings").iterdir()) == [".json"] * 9 + [".log"]


def test_a_damaged_record_is_named(compared):
    (path,) = (compared.folder / "lake" / "_curator" / "comparisons").rglob("*.json")
    values = json.loads(path.read_text())
    for broken in (
        "{",
        "[]",
        json.dumps(values | {"results": [{}]}),
        json.dumps({k: v for k, v in values.items() if k != "test"}),
    ):
        path.write_text(broken)
        with compared.open() as lake, pytest.raises(StorageError, match=r"comparison\.json is not a comparison record"):
            lake.comparisons()


def refused(compared, *mixtures, kind=InputError, **given):
    with compared.open() as lake, pytest.raises(kind) as caught:
        lake.compare(*mixtures, **compared.given | given)
    return str(caught.value)


def test_a_test_part_that_is_the_target_or_in_the_lake_is_refused(compared):
    target = compared.given["target"]
    inside = str(compared.folder / "lake" / "north.parquet")
    for test in (target, inside):
        said = refused(compared, test=test)
        assert said == (
            f"every row of the test part {test} also stands in the target or in the lake; "
            "a test needs rows that nothing was trained on"
        )


def test_a_test_part_without_text_or_files_is_refused(compared):
    write_rows(compared.folder / "blank.parquet", text=[None, " "])
    said = refused(compared, test=str(compared.folder / "blank.parquet"))
    assert said == (
        f"column 'text' of test part {compared.folder / 'blank.parquet'} has no row with text; the test part needs "
        "rows of the kind the model should be good at"
    )
    assert "gone.parquet does not exist" in refused(compared, test=str(compared.folder / "gone.parquet"))


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"steps": 0}, ConfigError, "steps=0: input should be greater than or equal to 1"),
        ({"seeds": 0}, ConfigError, "seeds=0: input should be greater than or equal to 1"),
        ({"tokens_per_step": 16}, ConfigError, "compare.tokens_per_step=16 is less than compare.sequence_length=32; "),
        (
            {"blocks": {"size": 99}},
            ConfigError,
            "compare.blocks: block size 99 is outside 0..4, the layers of the model",
        ),
        ({"tensor_parallel": 3}, InputError, "tensor_parallel=3 cannot split a model with 4 attention heads"),
        ({"data_parallel": 999}, InputError, "needs 999 workers, but this machine has "),
        (
            {"model": "huge"},
            InputError,
            "model 'huge' is neither a preset (tiny, small) nor a Hugging Face model folder",
        ),
        ({"stepps": 3}, ConfigError, "stepps is not a known key; did you mean 'steps'?"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(compared, given, kind, said):
    assert said in refused(compared, kind=kind, **given)


def test_bad_mixtures_are_refused_before_anything_is_tokenized(compared):
    shutil.rmtree(compared.folder / "lake" / "_curator" / "tokens")
    assert "'nort', which the lake does not have; did you mean 'north'?" in refused(
        compared, "domain:nort", kind=ConfigError
    )
    assert not (compared.folder / "lake" / "_curator" / "tokens").exists()


def result(name="mine", **changed):
    values = dict.fromkeys(
        (
            "test_loss",
            "test_loss_low",
            "test_loss_high",
            "train_loss",
            "train_tokens",
            "max_epochs",
            "learn_seconds",
            "learn_tokens",
            "train_seconds",
        ),
        1.0,
    )
    values |= {"difference": -0.25, "difference_low": -0.5, "difference_high": -0.125, "judgement": "better"}
    values |= {"mixture": name, "run_id": None, "most_repeated": "north", "weights": {"north": 1.0}}
    return MixtureResult(**values | changed)


def test_an_interval_that_is_none_is_not_shown():
    nan = float("nan")
    cells = result(difference_low=nan, difference_high=nan, judgement="not judged").cells
    assert cells[2:5] == ["-0.2500", "", "not judged"]
    assert result().cells[3] == "-0.5000 … -0.1250"


@pytest.mark.parametrize(
    ("low", "high", "judgement", "said"),
    [
        (-0.5, -0.125, "better", "mine is better than uniform: -0.250 nats per token, 95 % interval [-0.500, -0.125]."),
        (0.125, 0.5, "worse", "mine is worse than uniform: -0.250 nats per token, 95 % interval [+0.125, +0.500]."),
        (
            -0.5,
            0.5,
            "no gain",
            "mine brings no gain over uniform: -0.250 nats per token, 95 % interval [-0.500, +0.500] includes 0.",
        ),
        (
            0.0,
            0.5,
            "no gain",
            "mine brings no gain over uniform: -0.250 nats per token, 95 % interval [+0.000, +0.500] includes 0.",
        ),
        (
            np.nan,
            np.nan,
            "not judged",
            "mine differs from uniform by -0.250 nats per token; one seed or one test row tells no interval.",
        ),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, judgement, said):
    assert judged(Estimate(mean=-0.25, low=low, high=high)) == judgement
    assert result(judgement=judgement, difference_low=low, difference_high=high).sentence == said


def comparison(*results):
    return Comparison(
        comparison_id="20260102T030405-abcdef",
        created_at="2026-01-02T03:04:05+00:00",
        snapshot_id="1234",
        target="t.parquet",
        test="v.parquet",
        num_test_rows=40,
        num_test_tokens=400,
        num_left_out=2,
        tokens=4096,
        compare=CompareConfig(seeds=1).model_dump(mode="json"),
        results=results,
        location="lake/_curator/comparisons/20260102T030405-abcdef",
    )


UNIFORM = result(
    "uniform", judgement="reference", test_loss=1.25, difference=0.0, difference_low=0.0, difference_high=0.0
)


def test_numbers_that_are_none_survive_json():
    found = comparison(UNIFORM, result(difference_low=float("nan"), difference_high=float("nan")))
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Comparison.from_json(json.loads(text) | {"of a later version": 1})
    assert repr(again) == repr(found)
    assert np.isnan(again["mine"].difference_low)
    assert again["mine"].run_id is None


def test_a_comparison_shows_itself_best_first():
    assert repr(comparison(UNIFORM, result())) == (
        "Comparison('20260102T030405-abcdef': 1 seed, 4,096 tokens each, model tiny; 40 test rows (2 more stand in "
        "the target or the lake))\n"
        "  mine     1.0000  -0.2500 [-0.5000, -0.1250] better\n"
        "  uniform  1.2500"
    )


def test_a_name_cannot_break_the_table():
    lines = comparison(UNIFORM, result("a|b\nc")).to_markdown().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 4
    assert any(line.startswith("| a\\|b c | 1.0000 |") for line in lines)


def test_an_unknown_mixture_is_a_key_error_that_names_the_known_ones():
    with pytest.raises(KeyError, match="'other' was not compared; 'uniform', 'mine' were"):
        comparison(UNIFORM, result())["other"]
