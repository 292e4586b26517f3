"""Packages that are too heavy for the development environment, each in one of its own: their tests are run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READERS = {
    "megatron_bridge": ("megatron-bridge==0.3.1", []),
    "trl": ("trl==1.16.0", []),
    "axolotl_loads": ("axolotl==0.19.0", ["addict", "colorama", "distro", "numba", "peft", "posthog", "trl==1.16.0"]),
    "olmo_core": ("ai2-olmo-core==3.0.0", ["bettermap", "cached-path", "dataclass-extensions", "importlib_resources"]),
    "torchtitan": ("torchtitan==0.3.0", ["spmd_types==0.2.3", "tyro"]),
    "energon": (
        "megatron-energon==7.4.1",
        ["braceexpand", "filetype", "mfusepy", "multi-storage-client", "pillow", "rapidyaml", "webdataset"],
    ),
    "streaming": (
        "mosaicml-streaming==0.13.0",
        ["boto3", "brotli", "catalogue", "pillow", "python-snappy", "zstd"],
    ),
    "levanter": (None, ["gitpython", "marin-levanter==0.2.20.dev202606180959"]),
    "llama_factory": ("llamafactory==0.9.5", ["peft"]),
    "data_juicer": (
        "py-data-juicer==1.6.1",
        [
            *("beautifulsoup4", "dep-logic", "emoji", "gitpython", "httpx", "jsonargparse[signatures]", "jsonlines"),
            *(
                "lazy-loader",
                "loguru",
                "lz4",
                "mwparserfromhell",
                "omegaconf",
                "pillow",
                "tabulate",
                "tomli",
                "tomli-w",
                "wget",
            ),
        ],
    ),
}
"""By the name in its test, the package that reads an export, and what it imports and does not find beside ours."""


def run_tests(python, *arguments, **variables):
    """That they pass there, and that none is skipped."""
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"^\d+ passed(, \d+ deselected)? in", done.stdout, flags=re.MULTILINE), done.stdout


@pytest.mark.slow
def test_the_tests_of_dagster_pass_where_it_is_installed(python_with):
    pytest.importorskip("megatron.core", reason="needs the extra [train]")
    python = python_with("dagster==1.13.29")
    run_tests(python, "tests/curator/test_dagster.py", "tests/curator/test_pipes.py", DAGSTER_PYTHON=str(python))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_trainer_reads_its_export(python_with, name):
    bare, others = READERS[name]
    python = python_with(*others, bare=bare)
    run_tests(python, "tests/curator/test_export_readers.py", "-k", name)


@pytest.mark.slow
def test_mlcroissant_reads_a_description(python_with):
    pytest.importorskip("megatron.core", reason="needs the extra [train]")
    python = python_with("mlcroissant==1.1.1", alone=True)
    run_tests(sys.executable, "tests/curator/test_croissant.py", MLCROISSANT_PYTHON=str(python))
