"""README and guides name what there is: commands, options, settings, links; and the recorded session is the program's.

What stands between their fences is run by `test_blocks.py`.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ROOT / "examples" / "guides"
IN_ORDER = (
    "look", "learn", "rows", "compare", "publish", "query", "select", "refresh", "export", "scale_out", "your_model",
    "settings",
)  # fmt: skip


def guide(name):
    return (GUIDES / f"{name}.md").read_text(encoding="utf-8")


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
