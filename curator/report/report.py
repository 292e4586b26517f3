"""One report: what is known of a run, laid out as a page, and a file that appears whole."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from curator import __version__
from curator.config import LearnConfig, WeightsConfig
from curator.files import write_result
from curator.report.advice import Advice, Findings, advice
from curator.report.comparisons import newest_of, with_run
from curator.report.content import sections, tiles
from curator.report.rows import read_rows
from curator.report.source import Source
from curator.report.steps import read_steps
from curator.report.text import brief, shown

if TYPE_CHECKING:
    from curator.run import Run
_ATTRIBUTE_COLUMNS = 120


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written, or would be: the page's headline, its advice, and the comparisons that it shows."""

    run_id: str
    path: str
    size_bytes: int
    headline: str
    next_steps: list[str]
    commands: list[str]
    comparisons: list[str]


def report(run: Run, path: str | Path, *, overwrite: bool = False, dry_run: bool = False) -> Report:
    """Write one HTML file about `run`, which asks for nothing beyond itself.

    Args:
        run: a finished run.
        path: a local file; its folder must exist.
        overwrite: whether a file that is there may be replaced.
        dry_run: write nothing.

    Raises:
        ConfigError: a file that is there already, or that cannot be written.
        StorageError: the steps or rows of the run, a comparison or the log are damaged.
    """
    lake, record = run.lake, run.record
    compared = with_run(lake.comparisons(), run.run_id)
    source = Source(
        record=record,
        lake_url=lake.address,
        destination=lake.destination.url,
        steps=read_steps(lake.destination, run.run_id, [row["domain"] for row in record["domains"]]),
        comparisons=compared,
        versions=[version for version in lake.history() if version.run_id == run.run_id],
        rows=read_rows(lake, record),
    )
    advised = advice(_findings(run, source))
    page = _page(run, source, advised)
    write_result(Path(path), page, overwrite=overwrite, dry_run=dry_run)
    return Report(
        run_id=run.run_id,
        path=str(path),
        size_bytes=len(page.encode()),
        headline=advised.headline,
        next_steps=list(advised.sentences),
        commands=list(advised.commands),
        comparisons=[each.comparison_id for each in compared],
    )


def _findings(run: Run, source: Source) -> Findings:
    record, leaks, learn = run.record, run.leaks, run.record["learn"]
    search = record.get("line_search")
    weights = learn.get("weights", {})
    return Findings(
        status=record["verdict"]["status"],
        num_domains=len(record["domains"]),
        is_stepwise=record["summary"] is not None,
        place=search["place"] if search else None,
        compared=newest_of(source.comparisons, run.run_id),
        num_leaks_kept=leaks.num_leaks if leaks and leaks.kept else 0,
        steps=learn["steps"],
        weights_rate=WeightsConfig(**weights).usual_rate,
        budget_tokens=weights.get("budget_tokens"),
        versions=tuple(version.version for version in source.versions),
        lake=run.lake.command_address,
        run_id=shlex.quote(run.run_id),
        target=shlex.quote(record["target"]["url"]),
        options="".join(f" --{name} {shlex.quote(str(value))}" for name, value in _options(record).items()),
    )


def _options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `curator learn` that a run had and that are not the defaults; old records lack some."""
    learn, usual = record["learn"], LearnConfig()
    names = ("method", "granularity", "model", "seed", "tensor_parallel", "pipeline_parallel")
    values = {name: learn.get(name, getattr(usual, name)) for name in names}
    given = {name.replace("_", "-"): value for name, value in values.items() if value != getattr(usual, name)}
    if block_size := learn.get("blocks", {}).get("size"):
        given["block-size"] = block_size
    if record["target"]["text"] != record["lake"]["text"]:
        given["target-text"] = record["target"]["text"]
    return given


def _page(run: Run, source: Source, advised: Advice) -> str:
    environment = Environment(
        loader=PackageLoader("curator.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": shown, "in_attribute": _in_attribute}
    return environment.get_template("page.html.jinja").render(
        run_id=run.run_id,
        title=_in_attribute(f"Report on run {run.run_id}"),
        target=run.record["target"]["url"],
        lake=source.lake_url,
        status=run.record["verdict"]["status"],
        reason=run.record["verdict"]["reason"],
        advised=advised,
        tiles=tiles(source),
        sections=sections(source),
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
    )


def _shown(value: Any) -> Any:
    """Every expression of the template goes through it, so that none can forget: text is shown, markup is markup."""
    return value if isinstance(value, Markup) else shown(str(value))


def _in_attribute(text: str) -> Markup:
    """Where there can be no markup."""
    return escape(brief(text, _ATTRIBUTE_COLUMNS))
