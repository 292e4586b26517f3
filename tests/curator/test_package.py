"""What importing costs, and what the package shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lake_cases import REPOSITORY, environment

import curator

HEAVY = {"torch", "transformers", "tokenizers", "polars", "megatron", "ray", "pandas"}


def modules_after(program):
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_loads_none_of_the_heavy_ones():
    assert "curator" in modules_after("import curator")
    assert not modules_after("import curator") & (HEAVY | {"duckdb", "pyarrow", "pydantic", "rich"})


def test_opening_a_lake_loads_none_of_the_heavy_ones():
    assert not modules_after("import curator; curator.open_lake('.')") & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["learn", "--help"], ["--version"]])
def test_help_loads_nothing_but_what_prints_it(arguments):
    program = (
        f"import sys\nsys.argv = ['curator', *{arguments}]\nfrom curator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    loaded = modules_after(program)
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"duckdb", "pyarrow", "numpy", "fsspec"})


def test_all_is_sorted_complete_and_loadable():
    assert curator.__all__ == sorted(curator.__all__)
    assert {getattr(curator, name).__name__ for name in curator.__all__} == set(curator.__all__)
    assert set(curator.__all__) <= set(dir(curator))


def test_a_public_name_is_the_class_of_its_module():
    from curator.errors import CuratorError
    from curator.lake import Lake

    assert curator.Lake is Lake
    assert curator.CuratorError is CuratorError


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Lakes'"):
        _ = curator.Lakes


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert curator.__version__ == version("lake-curator")


def test_completion_is_of_the_word_curator_whatever_started_it(tmp_path):
    """What bash gets from `python -m curator --show-completion` or `--install-completion` is for `curator`."""
    # It asks which shell it was started from: a bash that does not become the program, as with one command it would.
    asked = ["bash", "-c", '"$0" -m curator --show-completion && true', sys.executable]
    given = environment(tmp_path)
    script = subprocess.run(asked, env=given, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "_CURATOR_COMPLETE=complete_bash" in script
    assert "complete -o default -F _curator_completion curator" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("shell", "variables", "offered"),
    [
        ("bash", {"COMP_WORDS": "curator re", "COMP_CWORD": "1"}, {"refresh", "report"}),
        ("bash", {"COMP_WORDS": "curator publish --mo", "COMP_CWORD": "2"}, {"--mode"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "curator ro"}, {"rollback"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "curator ro", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}, {"rollback"}),
    ],
)
def test_shells_are_told_the_commands_and_options(tmp_path, shell, variables, offered):
    """As the function that `curator --install-completion` writes asks for them."""
    program = [str(Path(sys.executable).with_name("curator"))]
    given = environment(tmp_path, _CURATOR_COMPLETE=f"complete_{shell}", **variables)
    done = subprocess.run(program, env=given, capture_output=True, text=True, check=True, timeout=60)
    found = set(re.findall(r"[a-z-]+", done.stdout))
    assert offered <= found
    assert "demo" not in found
