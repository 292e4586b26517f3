"""What the command line shows: tables on stdout, progress on stderr, one JSON object when asked."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column, Table

from curator.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from curator.answers import Sink
    from curator.compare import ComparisonPlan
    from curator.comparison import Comparison
    from curator.forecast import Forecast

_SECONDS_BETWEEN_LINES = 10.0
_LEAST_DONE = 0.05
"""Share of a stage after which what is left is estimated: its first steps are the slow ones."""
_WIDE = 100_000
"""Columns of what is no terminal, so that a table's row is one line."""
_MOST_CLUSTERS = 24
_UNITS = ((1e9, "GB", 1), (1e6, "MB", 1), (1e3, "kB", 0), (1, "B", 0))


def out() -> Console:
    """The console of results; `[red]` and `:smile:` in a name or path are printed as they are."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)


def err() -> Console:
    """The console of progress and errors."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Terminal:
    """Takes text in UTF-8 and shows it, so that what is in it cannot steer the terminal."""

    def write(self, data: bytes) -> None:
        sys.stdout.write("\n".join(map(printable, data.decode().split("\n"))))


def raw_out() -> Sink:
    """Where bytes for other programs go: stdout as it is, if it is no terminal."""
    return _Terminal() if sys.stdout.isatty() else sys.stdout.buffer


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A bar with an ETA per stage on a terminal, else a line now and then; nothing if `quiet`."""
    if quiet:
        yield silent
        return
    console = err()
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[detail]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Bar(*columns, console=console, expand=True) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(state: Progress) -> None:
            if state.stage not in tasks:
                tasks[state.stage] = bar.add_task(state.stage, total=state.total, detail="")
            detail = escape(printable(state.detail))
            bar.update(tasks[state.stage], completed=state.done, total=state.total, detail=detail)

        yield tell


def _lines() -> ProgressCallback:
    """Progress as log lines: the end of a stage once, its middle every few seconds with an ETA."""
    last: dict[str, float] = {}
    ended: dict[str, Progress] = {}
    started: dict[str, tuple[float, int, int | None]] = {}

    def tell(state: Progress) -> None:
        now = time.monotonic()
        begun, before, total = started.setdefault(state.stage, (now, state.done, state.total))
        if state.total != total:  # there turned out to be more of it
            begun, before, _ = started[state.stage] = (now, state.done, state.total)
        finished = state.total is not None and state.done >= state.total
        if finished and ended.get(state.stage) == state:
            return
        if finished:
            ended[state.stage] = state
        if not finished and now - last.setdefault(state.stage, begun) < _SECONDS_BETWEEN_LINES:
            return
        last[state.stage] = now
        left = ""
        if state.total and state.done - before >= _LEAST_DONE * state.total and not finished:
            left = f", about {(now - begun) * (state.total - state.done) / (state.done - before):.0f} s left"
        of = f"/{state.total:,}" if state.total is not None else ""
        print(  # noqa: T201
            f"{state.stage} {state.done:,}{of} {printable(state.detail)}{left}", file=sys.stderr, flush=True
        )

    return tell


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout; numbers that JSON does not have become null."""
    line = json.dumps({"schema_version": 1, **values}, default=_plain, ensure_ascii=False)
    if "NaN" in line or "Infinity" in line:
        line = json.dumps(_finite(json.loads(line)), ensure_ascii=False, allow_nan=False)
    print(line.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8"))  # noqa: T201
    sys.stdout.flush()


def size(num_bytes: float, *more: float) -> str:
    """So many bytes in the unit of the last, largest one: `812 B`, `55 kB`, `1.2 to 1.4 MB`."""
    sizes = (num_bytes, *more)
    unit, name, digits = next((each for each in _UNITS if sizes[-1] >= each[0]), _UNITS[-1])
    return f"{' to '.join(f'{each / unit:,.{digits}f}' for each in sizes)} {name}"


def print_rows(
    names: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None, *, grouped: bool = False
) -> None:
    """A table; numbers to the right, `grouped` ones with commas. Into a pipe every row is one line, however long."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(names):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(printable(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if grouped and isinstance(value, int) else _cell(value) for value in row))
    out().print(table)


def printable(text: str) -> str:
    """`text` with line breaks, escape sequences and the like spelled out, so that a name cannot steer a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_domains(record: Mapping[str, Any]) -> None:
    """The domain table of a run, largest weight first."""
    rows = sorted(record["domains"], key=lambda row: -row["domain_weight"])
    print_rows(
        ["domain", "natural share", "learned weight", "95 % interval", "ratio", "rows", "tokens"],
        [
            [
                row["domain"],
                f"{row['natural_share']:.3f}",
                f"{row['domain_weight']:.3f}",
                _interval(row.get("ci_low"), row.get("ci_high")),
                f"{row['ratio']:.2f}",
                f"{row['num_samples']:,}",
                f"{row['num_tokens']:,}",
            ]
            for row in rows
        ],
    )


def print_clusters(record: Mapping[str, Any]) -> None:
    """The clusters that gained and lost most, for a run that weighed them."""
    clusters = sorted(record.get("clusters") or (), key=lambda row: -row["ratio"])
    if not clusters:
        return
    half = _MOST_CLUSTERS // 2
    shown = [*clusters[:half], *clusters[-half:]] if len(clusters) > _MOST_CLUSTERS else clusters
    out().print("")
    print_rows(
        ["cluster", "words", "natural share", "learned weight", "ratio", "rows"],
        [
            [
                row["cluster"],
                row["words"],
                f"{row['natural_share']:.3f}",
                f"{row['domain_weight']:.3f}",
                f"{row['ratio']:.2f}",
                f"{row['num_samples']:,}",
            ]
            for row in shown
        ],
    )
    if len(shown) < len(clusters):
        out().print(f"{len(clusters) - len(shown):,} clusters between them are in the table clusters of `curator sql`")


def print_comparison(found: Comparison) -> None:
    """The mixtures of a comparison, best first, and its verdict."""
    from curator.comparison import COLUMNS

    print_rows(COLUMNS, [result.cells for result in found.ranked])
    print_ = out().print
    print_(f"\n{printable(found.conditions)}")
    for sentence in found.sentences:
        print_(printable(sentence))
    print_(f"\nComparison {found.comparison_id} in {found.location}")


def print_comparison_plan(found: ComparisonPlan) -> None:
    """What a comparison would train."""
    missing = found.num_trainings - found.num_finished
    out().print(
        f"would train {missing} models of {found.tokens:,} tokens each ({found.steps:,} steps); "
        f"{found.num_finished} of {found.num_trainings} are there already\n"
        f"mixtures  {printable(', '.join(found.mixtures))}\n"
        f"seeds     {found.seeds}\n"
        f"test      {found.num_test_rows:,} rows, {found.num_test_tokens:,} tokens "
        f"({found.num_left_out:,} more rows stand in the target or the lake)"
    )


def print_forecast(found: Forecast, memory_bytes: int) -> None:
    """What a run will take."""
    tokens, sizes, (few, many) = found.tokens, found.publish_bytes, found.search_trainings
    searched = f"; then {few} to {many} trainings judge what was learned" if many else ""
    is_known = found.num_sampled == found.num_rows
    interval = f" (95 % interval {tokens.low:,.0f} … {tokens.high:,.0f})"
    source = ", all rows" if is_known else f"{interval}, from {found.num_sampled:,} rows"
    workers = f"each of {found.data_parallel} workers" if found.data_parallel > 1 else "the worker"
    out().print(
        f"rows      {found.num_rows:,} in {found.num_files:,} files, {found.num_domains:,} domains; "
        f"target {found.num_target_rows:,} rows\n"
        f"tokens    {tokens.mean:,.0f}{source} tokenized\n"
        f"steps     {found.steps:,} (learn.steps, or --steps) of at most {found.step_tokens:,} tokens{searched}\n"
        f"publish   writes {size(sizes.low, sizes.high)}, the lake's files with the weights\n"
        f"memory    {memory_bytes / 2**30:,.2f} GiB for {workers} at most"
    )
    if found.seconds is None or found.calibration is None:
        out().print("time      not known: no step was timed")
        return
    made, total = found.calibration, found.seconds
    step = made.step_seconds
    parts = ", ".join(f"{name} {part.mean:,.0f} s" for name, part in found.parts.items())
    out().print(
        f"time      {total.mean:,.0f} s ({total.low:,.0f} … {total.high:,.0f}): {parts}\n"
        f"          {made.num_steps} steps took {step.mean:.3g} s each (95 % interval of the mean {step.low:.3g} … "
        f"{step.high:.3g}) on this machine as busy as it is now; reading, leaks and publishing come on top"
    )


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} … {high:.3f}"


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))


def _plain(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
