"""The likeliest mistakes: each is refused in a sentence that says what is wrong, where, what is allowed, what to do."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from typing import NamedTuple

import pyarrow as pa
import pytest
from lake_cases import refusal, sentences, tree, write_lake, write_rows, write_target
from report_cases import a_record, lake_with
from s3fs import S3FileSystem

import curator
from curator.cli import main

pytest.importorskip("megatron.core", reason="needs the extra [train]")


class Mistake(NamedTuple):
    """A command in the folder `here`, and what stands in the sentence that refuses it."""

    name: str
    command: str
    what: str
    where: str
    allowed: str
    do: str
    exit_code: int = 2


LEARN = "learn lake --target target.parquet"
MISTAKES = [
    Mistake(
        "no lake there",
        "ingest nowhere",
        "does not exist",
        "nowhere",
        "a folder, file or glob of Parquet files",
        "give",
    ),
    Mistake("a folder without Parquet", "ingest empty", "there is nothing", "empty", "Parquet files", "give a folder"),
    Mistake("JSON instead of Parquet", "ingest json", "no Parquet file", "json", "names ending with .parquet", "write"),
    Mistake(
        "a typo in the text column",
        "ingest lake --text txt",
        "no column 'txt'",
        "east.parquet",
        "'text'",
        "did you mean",
    ),
    Mistake(
        "another name for the domain column",
        "ingest lake --domain source",
        "no column 'source'",
        "east.parquet",
        "'domain', 'score', 'text'",
        "name one of these",
    ),
    Mistake(
        "numbers as text",
        "ingest lake --text score",
        "is float",
        "column 'score' of east.parquet",
        "a string is allowed",
        "name another column",
    ),
    Mistake(
        "a key that repeats",
        "ingest lake --key domain",
        "has the value 'east' 24 times",
        "row 0 of",
        "a key identifies one row",
        "configure no key",
    ),
    Mistake(
        "rows without text",
        "ingest holes",
        "no text in column 'text'",
        "a.parquet",
        "null, empty or only spaces",
        "--skip-bad-rows",
    ),
    Mistake(
        "a damaged file",
        "ingest damaged",
        "not a Parquet file or was cut short",
        "north.parquet",
        "a Parquet file",
        "write it again",
    ),
    Mistake(
        "one domain only",
        "learn single --target target.parquet",
        "one domain only",
        "column 'domain' of",
        "at least two",
        "--domain",
    ),
    Mistake(
        "a domain of few rows",
        "learn few --target target.parquet",
        "3 usable rows",
        "domain 'b' of",
        "min_domain_rows=8",
        "merge it",
    ),
    Mistake("no target", "learn lake", "no target was named", "--target", "a few hundred rows", "pass --target URL"),
    Mistake(
        "a target that is not there",
        "learn lake --target gone.parquet",
        "does not exist",
        "gone.parquet",
        "a folder, file or glob",
        "give",
    ),
    Mistake(
        "an empty target",
        "learn lake --target none.parquet",
        "no row with text",
        "none.parquet",
        "rows of the kind",
        "the target needs",
    ),
    Mistake(
        "a target of blanks",
        "learn lake --target blank.parquet",
        "no row with text",
        "column 'text' of target",
        "rows of the kind",
        "the target needs",
    ),
    Mistake(
        "a target with another column",
        "learn lake --target other.parquet",
        "no column 'text'",
        "other.parquet",
        "there is 'content'",
        "--target-text",
    ),
    Mistake(
        "the target inside the lake",
        "learn lake --target lake/north.parquet",
        "also a file of the lake",
        "'north.parquet'",
        "outside the lake",
        "keep it",
    ),
    Mistake(
        "a typo in a key",
        "LEARN --config typo.toml",
        "not a known key",
        "typo.toml: learn.stpes",
        "'steps'",
        "did you mean",
    ),
    Mistake(
        "a value of another kind",
        "LEARN --config kind.toml",
        "'many'",
        "kind.toml: learn.steps",
        "a valid integer",
        "should be",
    ),
    Mistake(
        "broken TOML",
        "LEARN --config broken.toml",
        "cannot be read as configuration",
        "broken.toml",
        "Expected ']'",
        "curator init",
    ),
    Mistake(
        "no settings file",
        "LEARN --config gone.toml",
        "no configuration file",
        "gone.toml",
        "curator init",
        "writes one",
    ),
    Mistake(
        "nothing named and no settings",
        "learn",
        "no LAKE_URL was given",
        "no curator.toml here",
        "curator init LAKE_URL",
        "writes one",
    ),
    Mistake("a typo in the method", "LEARN --method scalebo", "'scalebo'", "method", "'scalebio', 'seal'", "should be"),
    Mistake(
        "an unknown model",
        "LEARN --model tiniest",
        "neither a preset",
        "tiniest/config.json",
        "tiny, small",
        "a Hugging Face model folder",
    ),
    Mistake(
        "too many workers",
        "LEARN --tensor-parallel 64",
        "cannot split a model",
        "tensor_parallel=64",
        "1, 2, 4",
        "this model allows",
    ),
    Mistake(
        "a run folder in use", "LEARN --run-dir used", "not an empty folder", "run folder used", "a new one", "name"
    ),
    Mistake(
        "an unknown run", "publish runs --run nope", "no run 'nope'", "runs", "20261125T120831-ebb534", "the nearest is"
    ),
    Mistake("no run yet", "publish lake", "no run 'latest'", "lake", "no run yet", "`curator learn` makes one"),
    Mistake(
        "a typo in the format",
        "export runs --format megatorn --out x.txt",
        "no export format",
        "'megatorn'",
        "'megatron'",
        "did you mean",
    ),
    Mistake(
        "a format without its option",
        "export runs megatron",
        "unexpected extra argument",
        "megatron",
        "the file with --out",
        "name the format with --format",
    ),
    Mistake(
        "a version that is not there",
        "rollback lake 7",
        "no published version yet",
        "lake/_curator",
        "a run",
        "publish a run first",
    ),
    Mistake("a typo in SQL", "sql lake SELEC", "cannot be read", 'near "SELEC"', "FROM samples", "write one SELECT"),
    Mistake(
        "an unknown column in SQL",
        "sql lake 'SELECT domian FROM samples'",
        '"domian" not found',
        "the query",
        '"domain"',
        "Candidate",
    ),
    Mistake(
        "no permission",
        "LEARN --destination /proc/nowhere",
        "cannot be written",
        "/proc/nowhere",
        "another --destination",
        "choose",
        1,
    ),
    Mistake(
        "S3 without credentials",
        "ingest s3://bucket/corpus/",
        "credentials",
        "s3://bucket/corpus",
        "the environment or storage_options",
        "curator doctor",
        1,
    ),
    Mistake("an unknown protocol", "ingest s4://bucket/corpus/", "unknown storage", "s4://", "s3://", "a lake may be"),
    Mistake("a typo in a command", "publsh lake", "No such command", "'publsh'", "publish", "see `curator --help`"),
    Mistake(
        "a typo in an option",
        "learn lake --targte target.parquet",
        "No such option",
        "--targte",
        "--target",
        "see `curator learn --help`",
    ),
    Mistake(
        "words for a number", "LEARN --steps many", "Invalid value", "--steps", "integer", "see `curator learn --help`"
    ),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A lake and a target as they should be, and many that are not."""
    folder = tmp_path_factory.mktemp("mistakes")
    with curator.open_lake(str(write_lake(folder / "lake"))) as lake:
        lake.ingest()
    write_lake(folder / "damaged")
    (folder / "damaged" / "north.parquet").write_bytes(b"PAR1 nothing")
    lake_with(folder / "with-a-run", a_record())
    (folder / "with-a-run" / "lake").rename(folder / "runs")
    texts = sentences("north", 20)
    write_rows(folder / "holes" / "a.parquet", text=[*texts, None, " "], domain=["a"] * 22)
    write_rows(folder / "single" / "a.parquet", text=texts, domain=["a"] * 20)
    write_rows(folder / "few" / "a.parquet", text=texts, domain=["a"] * 17 + ["b"] * 3)
    write_target(folder / "target.parquet")
    write_rows(folder / "none.parquet", text=pa.array([], pa.string()))
    write_rows(folder / "blank.parquet", text=[" ", "", None])
    write_rows(folder / "other.parquet", content=texts)
    files = {
        "json/a.jsonl": '{"text": "x"}\n',
        "typo.toml": "[learn]\nstpes = 3\n",
        "kind.toml": '[learn]\nsteps = "many"\n',
        "broken.toml": "[learn\n",
        "used/x": "x",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def call(here, tmp_path, monkeypatch, capsys):
    """The command in this process, by a user without settings or credentials."""
    handler = signal.getsignal(signal.SIGTERM)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL", "FSSPEC_S3_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()  # one that an earlier test opened has the credentials of its time
    monkeypatch.chdir(here)

    def run(command):
        arguments = shlex.split(command.replace("LEARN", LEARN))
        monkeypatch.setattr(sys, "argv", ["curator", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return subprocess.CompletedProcess(sys.argv, end.value.code or 0, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_a_mistake_is_told_and_nothing_is_written(here, call, mistake):
    before = tree(here)
    said = refusal(call(mistake.command), mistake.exit_code)
    for part in (mistake.what, mistake.where, mistake.allowed, mistake.do):
        assert part in said
    assert tree(here) == before


def test_every_mistake_is_another_one():
    assert len({mistake.command for mistake in MISTAKES}) == len(MISTAKES) >= 20
