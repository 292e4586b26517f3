"""The tables of experiments in the documentation are those that their programs recorded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "tests" / "bench" / "experiments"
RECORDS = sorted((EXPERIMENTS / "results").glob("*.json"))
ROW_RECORDS = [path for path in sorted((EXPERIMENTS / "results" / "rows").glob("*.json")) if path.stem != "gain"]

TRANSFERS = sorted((EXPERIMENTS / "results" / "transfer").glob("*.json"))
ABLATIONS = sorted((EXPERIMENTS / "results" / "ablations").glob("*.json"))

spec = importlib.util.spec_from_file_location("results", EXPERIMENTS / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_documented_table_is_the_recorded_one(record):
    values = json.loads(record.read_text(encoding="utf-8"))
    assert results.table(values) in (ROOT / "optim" / "EXPERIMENTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_first_page_has_the_recorded_differences(record):
    values = json.loads(record.read_text(encoding="utf-8"))
    page = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    for result in values["results"]:
        if result["mixture"] in ("scalebio", "dsir"):
            assert f"{results.short(result['difference'])} {results.interval(result)}" in page


@pytest.mark.parametrize("record", ABLATIONS, ids=lambda path: path.stem)
def test_the_documented_ablation_is_the_recorded_one(record):
    values = json.loads(record.read_text(encoding="utf-8"))
    assert results.ablation_table(values) in (ROOT / "optim" / "EXPERIMENTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("record", TRANSFERS, ids=lambda path: path.stem)
def test_the_documented_transfer_is_the_recorded_one(record):
    values = json.loads(record.read_text(encoding="utf-8"))
    assert results.transfer_table(values) in (ROOT / "optim" / "EXPERIMENTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("record", ROW_RECORDS, ids=lambda path: path.stem)
def test_the_documented_table_of_row_weights_is_the_recorded_one(record):
    values = json.loads(record.read_text(encoding="utf-8"))
    assert results.rows_table(record.stem, values) in (ROOT / "optim" / "EXPERIMENTS.md").read_text(encoding="utf-8")


def test_a_difference_is_written_without_its_zero():
    assert [results.short(value) for value in (-0.1404, 0.0141, -10.25)] == ["−.140", "+.014", "−10.250"]
