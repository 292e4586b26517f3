"""`curator demo` keeps its promise, as a user runs it. Five seeds: tests/bench/bench_demo_seeds.py."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator.demo import MAX_CORRUPTED_RATIO, MIN_RELATED_RATIO
from curator.demo_corpus import CORRUPTED, RELATED


def curator(*arguments):
    command = [sys.executable, "-m", "curator", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout


def test_the_demo_keeps_its_promise_and_says_where_everything_lies(tmp_path):
    shown = curator("demo", "--dir", tmp_path / "demo")
    for word in ("natural share", "learned weight", "ratio", "Verdict", "Lake", "Target", "Run", "Version", "Next:"):
        assert word in shown
    (report,) = [line.split()[-1] for line in shown.splitlines() if line.startswith("Report")]
    assert "<h1>" in Path(report).read_text(encoding="utf-8")
    commands = [line.strip() for line in shown.partition("Next:")[2].splitlines() if line.strip()]
    assert len(commands) == 3
    assert all(command.startswith("curator ") for command in commands)

    lake = tmp_path / "demo" / "lake"
    ratio = dict(json.loads(curator("sql", lake, "SELECT domain, ratio FROM domain_weights", "--json"))["rows"])
    assert len(ratio) >= 5
    assert ratio[CORRUPTED] < MAX_CORRUPTED_RATIO
    assert ratio[RELATED] > MIN_RELATED_RATIO
    assert ratio[RELATED] == max(ratio.values())
    query = shlex.split(commands[0])[-1]
    rows = json.loads(curator("sql", lake, query, "--json"))["rows"]
    assert [rows[0][0], rows[-1][0]] == [CORRUPTED, RELATED]
    done = json.loads(curator("refresh", "--config", tmp_path / "demo" / "curator.toml", "--json"))
    assert (done["outcome"], done["version"]) == ("nothing", 1)  # by the settings that the demo wrote


@pytest.mark.slow
def test_the_demo_answers_in_json(tmp_path):
    answer = json.loads(curator("demo", "--dir", tmp_path / "demo", "--steps", 4, "--json").splitlines()[-1])
    assert answer["domain_weights"].keys() == answer["natural_share"].keys()
    assert (answer["version"], answer["corrupted"], answer["related"]) == (1, CORRUPTED, RELATED)
    assert answer["lake"] == str(tmp_path / "demo" / "lake")
