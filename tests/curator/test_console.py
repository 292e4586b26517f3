import io
import json
import os
import pty
import subprocess
import sys

import pytest
from lake_cases import REPOSITORY

from curator import console
from curator.progress import Progress

NAMES = ["[red]", "[/bold]", ":smile:", "a\nb", "\x1b[31mred", "日本語", "x" * 300]
SHOWN = ["[red]", "[/bold]", ":smile:", "a\\nb", "\\x1b[31mred", "日本語", "x" * 300]


def test_names_in_a_table_are_printed_as_they_are_one_row_a_line(capsys):
    console.print_rows(["domain", "weight"], [[name, 0.5] for name in NAMES], title="[blue]title")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "[blue]title"
    assert lines[1].split() == ["domain", "weight"]
    assert [line.split()[0] for line in lines[2:]] == SHOWN
    assert all(line.rstrip().endswith("0.5") for line in lines[2:])


def test_names_of_columns_are_printed_as_they_are(capsys):
    console.print_rows(["[red]count(*)"], [[1]])
    assert capsys.readouterr().out.split() == ["[red]count(*)", "1"]


def test_missing_values_and_numbers_are_readable(capsys):
    console.print_rows(["a", "b"], [[None, 0.123456789], [True, 1e9]])
    assert capsys.readouterr().out.split() == ["a", "b", "NULL", "0.123457", "True", "1e+09"]


def test_grouped_numbers_have_commas_and_stay_on_the_right(capsys):
    console.print_rows(["rows", "at"], [[1234567, "x"], [5, ""]], grouped=True)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "     rows  at",
        "1,234,567  x",
        "        5",
    ]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((0,), "0 B"),
        ((812,), "812 B"),
        ((54_600,), "55 kB"),
        ((1_234_567,), "1.2 MB"),
        ((2.5e12,), "2,500.0 GB"),
        ((900_000, 1_400_000), "0.9 to 1.4 MB"),
    ],
)
def test_sizes_are_in_a_unit_that_shows_them(sizes, said):
    assert console.size(*sizes) == said


def test_the_domain_table_is_sorted_by_weight(capsys):
    row = {"natural_share": 0.25, "ratio": 2.0, "num_samples": 1234, "num_tokens": 5}
    domains = [{"domain": "low", "domain_weight": 0.1, **row}, {"domain": "[top]", "domain_weight": 0.9, **row}]
    console.print_domains({"domains": domains})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["domain", "[top]", "low"]
    assert lines[1].split()[1:] == ["0.250", "0.900", "2.00", "1,234", "5"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        ([1.5, float("inf")], [1.5, None]),
        ("NaN", "NaN"),
        ("a\nb", "a\nb"),
        (b"bytes\xff", "bytes\\xff"),
        ("日本語", "日本語"),
    ],
)
def test_json_is_one_line_that_any_reader_takes(capsys, value, expected):
    def refuse(word):
        raise ValueError(word)

    console.print_json({"status": "ok", "value": value})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line, parse_constant=refuse) == {"schema_version": 1, "status": "ok", "value": expected}


def test_json_survives_a_terminal_that_has_only_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console.print_json({"name": "日"})
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == {"schema_version": 1, "name": "日"}


def test_progress_without_a_terminal_is_one_line_at_the_end_of_each_stage(capsys):
    with console.progress() as tell:
        for done in range(1, 101):
            tell(Progress(stage="ingest", done=done, total=100, detail="rows"))
        for done in (1, 2, 2):
            tell(Progress(stage="learn", done=done, total=2, detail="[red] 0.5, a\nb 0.5"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["ingest 100/100 rows", "learn 2/2 [red] 0.5, a\\nb 0.5"]


def test_progress_of_a_long_stage_tells_when_it_will_end(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress() as tell:
        for done in (0, 5, 10, 11, 20):
            tell(Progress(stage="learn", done=done, total=100))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["learn 10/100 , about 99 s left", "learn 20/100 , about 88 s left"]


def test_what_is_left_is_told_once_enough_is_done_to_know_it(capsys, monkeypatch):
    """The first steps are slow, and what is to be done may turn out to be more."""
    clock = iter([0.0, 20.0, 40.0, 50.0, 70.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress() as tell:
        for done, total in ((0, 100), (1, 100), (60, 100), (60, 200), (80, 200)):
            tell(Progress(stage="train", done=done, total=total))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train 1/100 ",
        "train 60/100 , about 27 s left",
        "train 60/200 ",
        "train 80/200 , about 120 s left",
    ]


def test_what_was_done_before_says_nothing_of_the_speed(capsys, monkeypatch):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress() as tell:
        for done in (60, 70):
            tell(Progress(stage="train", done=done, total=100))
    assert capsys.readouterr().err == "train 70/100 , about 60 s left\n"


@pytest.mark.parametrize("columns", [150, 80])
def test_progress_on_a_terminal_is_a_bar_that_shows_names_literally(columns):
    program = (
        "from curator import console\nfrom curator.progress import Progress\n"
        "with console.progress() as tell:\n"
        "    tell(Progress(stage='learn', done=1, total=2, detail='[red] 0.5'))\n"
        "    tell(Progress(stage='learn', done=2, total=2, detail='[red] 0.7 [/bold]'))\n"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stderr=slave, stdout=slave, env=environment
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # the other end was closed
        pass
    os.close(master)
    assert process.wait(30) == 0, shown.decode()
    text = shown.decode()
    assert "[red] 0.7 [/bold]" in text
    assert "2/2" in text
    assert "ETA" in text
    assert 24 * "━" in text  # the bar is whole, however much there is to say beside it
