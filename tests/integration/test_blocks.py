"""Every fenced block of every page is run, read as settings, or listed here with the reason why it is not.

`s3://bucket` of the pages is a folder on a real S3 server, reached by the variables of AWS, as a user has them.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lake_cases import environment, write_settings
from s3fs import S3FileSystem

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from curator import demo_corpus
from curator.config import RefreshConfig, load_config

ROOT = Path(__file__).parents[2]
GUIDES = "examples/guides"
IN_ORDER = tuple(
    f"{GUIDES}/{name}.md"
    for name in (
        "look", "learn", "rows", "compare", "publish", "query", "select", "refresh", "export", "scale_out",
        "your_model", "settings",
    )
)  # fmt: skip
"""The guides; the Python of each finds in the lake what those before it left."""

NOT_RUN = {
    "make demo": "installs for minutes; tests/integration/test_demo.py runs what it ends with",
    "make format": "rewrites the sources",
    "make test": "runs this test",
    "make test-slow": "takes an hour",
    "make bench": "takes hours",
    "make bench-multilingual SEEDS=5": "takes hours",
    "make bench-ablations STUDY=noise": "takes hours",
    "make bench-transfer": "takes hours",
    "pip install -e '.[train,s3]'": "this environment was made so; what it names is read here",
    "curator score s3://bucket/corpus/ --run latest --out s3://bucket/scores/ --ray auto": "needs a Ray cluster; "
    "tests/curator/test_score.py has one of one machine",
}
"""Commands that are not run; `test_commands_that_are_not_run_can_be` reads them."""
FIRST_SESSION = "curator demo"
"""What the recorded session begins with; `test_readme.py` runs it by its program."""
NO_COMMANDS = {
    "README.md": ("domain       natural share", "            ┌────", "curator/      the SDK"),
}
"""Blocks in which nothing can be run, by how they begin: what the demo prints, and drawings."""

SMALLER = {
    "/shared/run": "run",
    "/models/mine": "model",
    "first-machine:29500": "127.0.0.1:$PORT",
    "--tensor-parallel 8 --pipeline-parallel 2": "--tensor-parallel 2 --pipeline-parallel 1",
    "--tensor-parallel 2 --pipeline-parallel 2 --data-parallel 2": "--pipeline-parallel 2 --data-parallel 1",
    "--nproc-per-node 8": "--nproc-per-node 1",
    "--steps 300": "--steps 2",
    "--tokens-per-step 2048": "--tokens-per-step 256",
    "--workers 8": "--workers 2",
    "compare lake ": "compare s3://bucket/corpus/ ",
}
"""What is named otherwise, or smaller, where two cores run it."""
SETTINGS = {
    "steps": 4,
    "sequence_length": 32,
    "rows_per_domain": 2,
    "target_rows": 4,
    "vocab_size": 300,
    "line_search": {"places": []},
    "rows": {"pairs": 2, "max_rows": 400},
}
"""Of runs of seconds, in the settings file that lies where the commands run."""
SEEDS = ("RUN0", "RUN1", "RUN2")
"""Stand for runs' ids."""
SLOW = ("look", "learn", "rows", "compare", "your_model")
"""Guides whose commands take more than half a minute here."""
SLURM = {
    "sbatch": 'SLURM_JOB_ID=7 SLURM_JOB_NODELIST=one exec bash <(sed "s/:29500/:$PORT/" "$1")',
    "srun": 'exec "$@"',
    "scontrol": "echo localhost",
}
"""What the script asks of Slurm, on one machine that has none."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences, on which page and line."""

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Of a console; a line that ends with a backslash goes on in the next, and comments are left out."""
        found = re.findall(r"^\$ ((?:.*\\\n)*.*)$", self.text, flags=re.MULTILINE)
        return [re.sub(r"\s+# .*$", "", command.replace("\\\n", "")) for command in found]


def blocks_of(page: Path) -> list[Block]:
    found, begun = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.lstrip().startswith("```"):
            continue
        if begun is None:
            begun = number, line.strip().removeprefix("```")
        else:
            lines = page.read_text(encoding="utf-8").splitlines()[begun[0] : number - 1]
            found.append(Block(page.relative_to(ROOT).as_posix(), begun[0], begun[1], "\n".join(lines) + "\n"))
            begun = None
    assert begun is None, f"{page}: a block that begins on line {begun} does not end"
    return found


PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md"), *ROOT.glob("examples/*/*.md")})
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
WITH_COMMANDS = sorted({block.page for block in BLOCKS if set(block.commands) - NOT_RUN.keys()})


def blocks(page: str, language: str) -> list[Block]:
    return [block for block in BLOCKS if (block.page, block.language) == (page, language)]


def test_every_block_is_run_or_read_or_listed():
    """Python and TOML are, on every page where they stand, and console blocks by their commands."""
    for block in BLOCKS:
        where = f"{block.page}:{block.line}"
        if block.language == "python":
            assert block.page in (*IN_ORDER, "README.md"), where
        elif block.language != "toml":
            listed = block.text.startswith(NO_COMMANDS.get(block.page, ()))
            assert bool(block.commands) != listed, f"{where}: neither run nor listed"
            assert listed or block.language == "console", where
    commands = {command for block in BLOCKS for command in block.commands}
    assert NOT_RUN.keys() <= commands
    told = {name for names in NO_COMMANDS.values() for name in names}
    assert all(any(block.text.startswith(name) for block in BLOCKS) for name in told)
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in SMALLER if name not in pages] == []
    assert {page for page in WITH_COMMANDS if page != "README.md"} <= set(IN_ORDER)


def test_commands_that_are_not_run_can_be():
    """Make knows the target, an extra is one, and `curator` has the options."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command in NOT_RUN:
        program, verb, *rest = shlex.split(command)
        if program == "make":
            asked = ["make", "--dry-run", verb, *rest]
            assert subprocess.run(asked, cwd=ROOT, capture_output=True, check=False).returncode == 0, command
        elif program == "pip":
            extras = set(re.search(r"\[(.*)\]", command)[1].split(","))
            assert extras <= project["optional-dependencies"].keys()
        else:
            asked = [sys.executable, "-m", program, verb, "--help"]
            told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
            assert {word for word in rest if word.startswith("--")} <= set(re.findall(r"--[a-z][\w-]*", told)), command


def test_settings_are_those_that_there_are(tmp_path):
    """Every TOML block is read as a settings file; those of refresh are the defaults but for the age."""
    found = [block for block in BLOCKS if block.language == "toml"]
    assert sum("[refresh]" in block.text for block in found) >= 2
    for block in found:
        (tmp_path / "corpus.toml").write_text(block.text)
        load_config(tmp_path / "corpus.toml", environ={})
    shown = blocks(f"{GUIDES}/refresh.md", "toml")[0].text
    (tmp_path / "corpus.toml").write_text(shown)
    read, usual = load_config(tmp_path / "corpus.toml", environ={}).refresh, RefreshConfig()
    changed = {name for name in RefreshConfig.model_fields if getattr(read, name) != getattr(usual, name)}
    assert changed == {"max_age_days"}
    unnamed = RefreshConfig.model_fields.keys() - tomllib.loads(shown)["refresh"].keys()
    assert unnamed == {"mode", "bloom_filters", "lease_minutes"}


@dataclass(frozen=True)
class Shell:
    """A folder to type commands in, and the variables of one who has set up access to the bucket."""

    folder: Path
    bucket: str
    variables: dict[str, str] = field(repr=False)

    def in_copy(self, folder: Path) -> Shell:
        """The same in a copy of its folder: what one page writes is not there when the next is run."""
        return replace(self, folder=shutil.copytree(self.folder, folder / "here"))

    def here(self, text: str) -> str:
        """What a page shows, with the bucket that there is and the sizes that two cores bear."""
        for shown, smaller in SMALLER.items():
            text = text.replace(shown, smaller)
        return text.replace("s3://bucket", self.bucket)

    def start(self, *program: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            program,
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """`command` of a page, as it stands there but for `here`."""
        return outcome(self.start("bash", "-c", self.here(command)))


def outcome(process: subprocess.Popen[str]) -> str:
    try:
        said, _ = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        raise
    assert process.returncode == 0, f"{process.args}\n{said}"
    return said


def programs(folder: Path) -> Path:
    """What is typed by name: this checkout's `curator`, torchrun, and what the script asks of Slurm."""
    folder.mkdir()
    ours = {"curator": "curator", "torchrun": "torch.distributed.run"}
    scripts = {name: f'exec {shlex.quote(sys.executable)} -m {module} "$@"' for name, module in ours.items()}
    for name, script in (scripts | SLURM).items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def shell(s3_server, tmp_path_factory):
    """With a lake of real text in the bucket, a target, and a test of its kind; the same for all pages."""
    made, bucket = tmp_path_factory.mktemp("blocks"), f"s3://lake/{uuid.uuid4().hex}"
    corpus = demo_corpus.build(made)
    rows = pq.read_table(corpus.target)
    for path in corpus.lake.iterdir():
        pq.write_table(pq.read_table(path).slice(0, 600), path)
    fs = S3FileSystem(**s3_server.options, use_listings_cache=False)
    fs.put(f"{corpus.lake}/", f"{bucket}/corpus/", recursive=True)
    folder = made / "here"
    folder.mkdir()
    for name, offset in (("target", 0), ("test", 200)):
        pq.write_table(rows.slice(offset, 200), folder / f"{name}.parquet")
        fs.put_file(str(folder / f"{name}.parquet"), f"{bucket}/{name}.parquet")
    found = {
        "AWS_ACCESS_KEY_ID": s3_server.options["key"],
        "AWS_SECRET_ACCESS_KEY": s3_server.options["secret"],
        "AWS_ENDPOINT_URL": s3_server.options["endpoint_url"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "PATH": f"{programs(made / 'bin')}{os.pathsep}{os.environ['PATH']}",
        "PORT": free_port(),
    }
    return Shell(folder, bucket, environment(made, **found))


@pytest.mark.parametrize("pages", [("README.md",), IN_ORDER], ids=["readme", "guides"])
def test_python_runs(shell, pages, tmp_path):
    """As scripts of their own, one after another on one lake."""
    shell = shell.in_copy(tmp_path)
    codes = [block.text for page in pages for block in blocks(page, "python")]
    assert codes
    for code in codes:
        script = shell.folder / "block.py"
        code = re.sub(r"steps=\d+", "steps=4", code).replace("s3://bucket/train/", "s3://bucket/trained-on/")
        script.write_text(shell.here(code))  # and leaves the place that a command names free
        outcome(shell.start(sys.executable, str(script)))


@pytest.fixture(scope="module")
def prepared(shell):
    """A run is learned, and the folder has what the pages name."""
    lake = f'[lake]\nurl = "{shell.bucket}/corpus/"\ndomain = "source"\n'
    learn = write_settings(shell.folder / "learn.toml", **SETTINGS).read_text()
    (shell.folder / "curator.toml").write_text(f"{lake}{learn}[compare]\nsteps = 2\nsequence_length = 32\n")
    refresh = blocks(f"{GUIDES}/refresh.md", "toml")[1].text
    (shell.folder / "corpus.toml").write_text(shell.here(refresh) + learn)
    (shell.folder / "by-hand.json").write_text('{"docstrings": 0.75, "readmes": 0.25}')
    shell.run("curator learn s3://bucket/corpus/ --target s3://bucket/target.parquet")
    return shell


def make_model(folder: Path) -> None:
    """A model folder, as the example of one makes it."""
    program = runpy.run_path(str(ROOT / "examples" / "07_your_own_model.py"))
    program["make_model"](folder, ["any text", "of a few words"])


def learned(shell: Shell) -> list[str]:
    """Three runs, as with seeds 0, 1 and 2."""
    while len(runs := json.loads(shell.run("curator history --json").splitlines()[-1])["runs"]) < len(SEEDS):
        shell.run(f"curator learn s3://bucket/corpus/ --target s3://bucket/target.parquet --seed {len(runs)}")
    return [run["run_id"] for run in runs[: len(SEEDS)]]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (Path(page).stem in SLOW)) for page in WITH_COMMANDS]
)
def test_commands_run(prepared, page, tmp_path):
    """But for those of `NOT_RUN`, the recorded session, and torchrun's, which have tests of their own.

    Of Slurm nothing is run: its script is, on one machine, by stand-ins for `sbatch`, `srun` and `scontrol`.
    """
    prepared = prepared.in_copy(tmp_path)
    if not any(line.startswith("curator learn") for block in blocks(page, "console") for line in block.commands):
        prepared.run("curator publish s3://bucket/corpus/")  # which the page takes for granted
    if page == f"{GUIDES}/your_model.md":
        make_model(prepared.folder / "model")
    for block in blocks(page, "console"):
        if block.commands[:1] and block.commands[0].startswith(FIRST_SESSION):
            continue
        for shown in block.commands:
            if shown in NOT_RUN or shown.startswith("torchrun "):
                continue
            runs = learned(prepared) if SEEDS[0] in shown else []
            command = shown
            for name, run in zip(SEEDS, runs, strict=False):
                command = command.replace(name, run)
            prepared.run(command)


def test_workers_of_two_machines_find_each_other(prepared):
    """Both are this one, with a worker each."""
    page = f"{GUIDES}/scale_out.md"
    shown = [line.replace("/shared/run", "of-two") for block in blocks(page, "console") for line in block.commands]
    prepare, resume, torchrun = (line for line in shown if "of-two" in line and not line.startswith("sbatch"))
    prepared.run(prepare)
    machines = [prepared.start("bash", "-c", prepared.here(torchrun)) for _ in range(2)]
    for machine in machines:
        outcome(machine)
    assert "Verdict" in prepared.run(resume)
