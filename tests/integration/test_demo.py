"""`curator demo` keeps its promise, as a user runs it. Five seeds: tests/bench/bench_demo_seeds.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator.demo import MAX_CORRUPTED_RATIO, MIN_RELATED_RATIO


def curator(*arguments):
    command = [sys.executable, "-m", "curator", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout


def test_the_corrupted_domain_loses_weight_and_the_related_one_gains_it(tmp_path):
    answer = json.loads(curator("demo", "--dir", tmp_path / "demo", "--json").splitlines()[-1])
    ratio = {name: weight / answer["natural_share"][name] for name, weight in answer["domain_weights"].items()}
    assert len(ratio) >= 5
    assert ratio[answer["corrupted"]] < MAX_CORRUPTED_RATIO
    assert ratio[answer["related"]] > MIN_RELATED_RATIO
    assert ratio[answer["related"]] == max(ratio.values())
    assert answer["version"] == 1
    query = "SELECT domain, avg(sample_weight) FROM samples GROUP BY ALL ORDER BY 2 DESC"
    rows = json.loads(curator("sql", answer["lake"], query, "--json"))["rows"]
    assert [rows[0][0], rows[-1][0]] == [answer["related"], answer["corrupted"]]


def test_the_demo_says_where_everything_lies_and_what_to_try_next(tmp_path):
    shown = curator("demo", "--dir", tmp_path / "demo", "--steps", 4)
    for word in ("natural share", "learned weight", "ratio", "Verdict", "Lake", "Target", "Run", "Version", "Next:"):
        assert word in shown
    (report,) = [line.split()[-1] for line in shown.splitlines() if line.startswith("Report")]
    assert "<h1>" in Path(report).read_text(encoding="utf-8")
    commands = [line.strip() for line in shown.partition("Next:")[2].splitlines() if line.strip()]
    assert len(commands) == 3
    assert all(command.startswith("curator ") for command in commands)
