"""README and guides show what works: Python that runs on a real lake, commands that exist, links to what is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lake_cases import FAST

pytest.importorskip("megatron.core", reason="needs the extra [train]")

import curator
from curator import demo_corpus
from curator.config import RefreshConfig, load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ROOT / "examples" / "guides"
IN_ORDER = (
    "look", "learn", "rows", "compare", "publish", "query", "select", "refresh", "export", "scale_out", "your_model",
    "settings",
)  # fmt: skip
"""The guides; each finds in the lake what those before it left."""

AS_THEY_STAND = ("look", "publish", "query", "select", "export")
"""Guides whose commands are run; those of the others learn for long, need many devices, or a model of one's own."""


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def guide(name):
    return (GUIDES / f"{name}.md").read_text(encoding="utf-8")


def run_in_order(codes, folder):
    """As scripts of their own, on one lake in `folder` in place of the bucket."""
    corpus = demo_corpus.build(folder)
    rows = pq.read_table(corpus.target)
    pq.write_table(rows.slice(0, 200), corpus.target)
    pq.write_table(rows.slice(200, 200), folder / "test.parquet")
    for code in codes:
        here = code.replace("s3://bucket/corpus/", str(corpus.lake)).replace("s3://bucket", str(folder))
        assert "s3://" not in here
        here = re.sub(r"steps=\d+", "steps=4", here)
        script = folder / "block.py"
        script.write_text(here)
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{here}\n{done.stderr}"


def test_python_blocks_run(tmp_path):
    assert blocks("python")
    run_in_order(blocks("python"), tmp_path)


def test_python_blocks_of_the_guides_run(tmp_path):
    assert {path.stem for path in GUIDES.glob("*.md")} == set(IN_ORDER)
    run_in_order([code for name in IN_ORDER for code in blocks("python", guide(name))], tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A lake with a version that is published, and a target."""
    corpus = demo_corpus.build(tmp_path_factory.mktemp("small"))
    with curator.open_lake(str(corpus.lake), text="text", domain="source") as lake:
        lake.publish(lake.learn(str(corpus.target), **FAST))
    return corpus


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "look")) for name in AS_THEY_STAND]
)
def test_console_blocks_of_the_guides_run(small, name, tmp_path):
    commands = [command for block in blocks("console", guide(name)) for command in session_of(block)]
    assert commands
    for command in commands:
        here = command.replace("s3://bucket/corpus/", str(small.lake)).replace("s3://bucket", str(small.lake.parent))
        call = re.sub(r"^curator ", f"{sys.executable} -m curator ", here)
        done = subprocess.run(call, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{here}\n{done.stdout}\n{done.stderr}"


def test_settings_of_readme_and_guides_are_those_that_there_are(tmp_path):
    """Every TOML block is read as a settings file; those of refresh are the defaults but for the age."""
    texts = [README, *(guide(name) for name in IN_ORDER)]
    found = [block for text in texts for block in blocks("toml", text)]
    assert sum("[refresh]" in block for block in found) >= 2
    for block in found:
        (tmp_path / "corpus.toml").write_text(block)
        load_config(tmp_path / "corpus.toml", environ={})
    shown = blocks("toml", guide("refresh"))[0]
    (tmp_path / "corpus.toml").write_text(shown)
    read, usual = load_config(tmp_path / "corpus.toml", environ={}).refresh, RefreshConfig()
    changed = {name for name in RefreshConfig.model_fields if getattr(read, name) != getattr(usual, name)}
    assert changed == {"max_age_days"}
    unnamed = RefreshConfig.model_fields.keys() - tomllib.loads(shown)["refresh"].keys()
    assert unnamed == {"mode", "lease_minutes"}


def test_the_page_of_settings_is_that_of_the_settings():
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "tests" / "settings_page.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.page() == program.PAGE.read_text(encoding="utf-8")
    assert "| `learn.weights.budget_tokens` |" in program.page()


def test_commands_of_the_guides_have_their_options():
    lines = [line for name in IN_ORDER for line in re.findall(r"(?<!\w)curator [a-z]+ [^`\n]*", guide(name))]
    help_of = {}
    for line in lines:
        verb = line.split()[1]
        if verb not in help_of:
            command = [sys.executable, "-m", "curator", verb, "--help"]
            help_of[verb] = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        options = set(re.findall(r"(--[a-z][\w-]*)", line.split("#")[0]))
        assert options <= set(re.findall(r"--[a-z][\w-]*", help_of[verb])), line
    assert len(help_of) > 8


def test_commands_exist():
    verbs = {
        verb for text in (README, *map(guide, IN_ORDER)) for verb in re.findall(r"(?<!\w)curator ([a-z]+)\b", text)
    }
    targets = set(re.findall(r"^\$ make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"learn", "compare", "publish", "sql"} <= verbs
    known = {"demo", "init", "ingest", "learn", "compare", "publish", "plan", "sql", "history", "doctor"}
    known |= {"rollback", "gc", "verify", "views", "export", "report", "refresh", "status", "materialize"}
    known |= {"score"}
    assert known <= verbs
    for verb in sorted(verbs & known):
        command = [sys.executable, "-m", "curator", verb, "--help"]
        assert subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "test-slow", "bench"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_links_lead_to_files_and_headings():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md"), *ROOT.glob("examples/*/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text())]
    assert len(links) > 20
    for page, link in links:
        name, _, heading = link.partition("#")
        place = page.parent / name if name else page
        assert place.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], link


def session_of(text):
    """Commands of a recorded session; a line that ends with a backslash goes on in the next."""
    return [command.replace("\\\n", "") for command in re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)]


def test_the_recorded_session_is_that_of_its_program():
    spec = importlib.util.spec_from_file_location("record_session", ROOT / "tests" / "record_session.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    (recorded,) = re.findall(f"{program.BEGIN}(.*){program.END}", README, flags=re.DOTALL)
    assert session_of(recorded) == [command.replace("\\\n", "") for command in program.COMMANDS]
    assert not re.search(r"(?<!…)/(tmp|home|work|root)/", recorded)


@pytest.mark.slow
def test_the_session_still_works(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "record_session.py"), "--folder", str(tmp_path), "--steps", "12"]
    done = subprocess.run([*command, "--print"], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(session_of(done.stdout)) == 11
    assert (tmp_path / "report.html").exists()
