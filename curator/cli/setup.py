"""Commands before there is work: the demo, a configuration file, a check of the machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from curator.cli.learning import learn_values
from curator.cli.options import JsonOption, print_next


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="New folder for the demo's lake.")] = Path("curator-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the lake and of the run.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the run.", show_default=False)] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Build a small lake of real text, learn its weights, publish them, and ask SQL about them."""
    from curator import console
    from curator.demo import STEPS, run_demo

    if not as_json:
        console.err().print(f"Building a lake from the text of this Python installation in {folder} …")
    with console.progress() as tell:
        result = run_demo(folder, seed=seed, steps=STEPS if steps is None else steps, on_progress=tell)
    record = result.run.record
    if as_json:
        console.print_json(
            learn_values(record)
            | {"version": result.publication.version, "lake": str(result.lake), "target": str(result.target)}
            | {"report": str(result.report)}
            | {"related": result.related, "corrupted": result.corrupted}
        )
        return
    print_ = console.out().print
    print_("\nTarget: the Python language reference. Which of these sources is worth training on?\n")
    console.print_domains(record)
    print_(f"\nVerdict   {result.run.verdict}")
    print_(
        f"Truth     half the characters of '{result.corrupted}' were replaced on purpose: "
        f"ratio {result.ratios[result.corrupted]:.2f}; '{result.related}' is documentation like the target: "
        f"ratio {result.ratios[result.related]:.2f}"
    )
    print_(f"\nLake      {result.lake}\nTarget    {result.target}\nRun       {result.run.run_dir}")
    print_(f"Version   {result.publication.version} in {result.publication.location}")
    print_(f"Report    {result.report}")
    query = (
        "SELECT domain, count(*) AS num_rows, avg(sample_weight) AS sample_weight FROM samples GROUP BY ALL ORDER BY 3"
    )
    print_next(
        f'curator sql {result.lake} "{query}"',
        f"curator learn {result.lake} --target {result.target} --domain source --tensor-parallel 2 --steps 50",
        f"curator history {result.lake}",
    )


def init(
    lake_url: Annotated[str, typer.Argument(metavar="LAKE_URL", help="Folder, file or glob of Parquet files.")],
    target: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("curator.toml"),
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file instead of writing it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a lake and write a commented configuration file for it, with the columns that look right and why."""
    import dataclasses

    from curator import console
    from curator.config import DEFAULT_FILE
    from curator.initialize import propose, render, write_config

    proposal = propose(lake_url)
    if dry_run and not as_json:
        print(render(proposal), end="")  # noqa: T201
        return
    if not dry_run:
        write_config(proposal, target, overwrite=overwrite)
    if as_json:
        values = dataclasses.asdict(proposal)
        console.print_json({"status": "ok", "config": None if dry_run else str(target)} | values)
        return
    console.out().print(
        f"{target}: text={proposal.text}, domain={proposal.domain}, key={proposal.key or 'content hash'} "
        f"({proposal.num_files} files, {proposal.num_rows:,} rows)"
    )
    named = "" if target.resolve() == Path(DEFAULT_FILE).resolve() else f" --config {shlex.quote(str(target))}"
    print_next(f"curator ingest{named}", f"curator learn{named} --target TARGET_URL")


def doctor(
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="A lake or destination to test by writing to it; default: that of ./curator.toml.",
            show_default=False,
        ),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check versions, extras, credentials, intruding packages and a destination; say how to mend each failure."""
    import dataclasses

    from curator import console
    from curator.doctor import diagnose

    checks = diagnose(destination)
    failed = any(check.outcome == "failed" for check in checks)
    if as_json:
        status = "failed" if failed else "ok"
        console.print_json({"status": status, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        console.print_rows(["check", "", "found", "fix"], [[c.name, c.outcome, c.found, c.fix] for c in checks])
    if failed:
        raise typer.Exit(1)
