"""The command that weighs every row of a lake by a run's scorer."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from curator.cli.options import (
    ConfigOption,
    DestinationOption,
    DryRunOption,
    JsonOption,
    LakeArgument,
    open_given,
    read_settings,
)


def score(
    lake_url: LakeArgument = None,
    run: Annotated[str, typer.Option("--run", help="A run that weighed rows or clusters (--granularity).")] = "latest",
    out: Annotated[
        str | None, typer.Option("--out", help="Folder or URL of the shards, one a file.", show_default=False)
    ] = None,
    way: Annotated[
        Literal["copies", "text", "clusters"] | None,
        typer.Option(
            "--way",
            help="How rows that the run has not measured are weighed: text (fast), copies (as it measured its own), or "
            "clusters; by default copies where it kept them and measured all rows, else what it has.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            help="Processes that score, by default 1; with --ray, tasks at a time.",
            min=1,
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Score by a Ray cluster: auto, HOST:PORT, or local.", show_default=False),
    ] = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Weigh every row that the lake has now within its domain, by what a run made of its text."""
    import dataclasses

    from curator import console
    from curator.errors import ConfigError

    if out is None:
        raise ConfigError("no place was named", hint="pass --out FOLDER")
    with open_given(read_settings(lake_url, config), destination=destination) as lake, console.progress() as tell:
        done = lake.score(run, out, way=way, workers=workers, ray=ray, dry_run=dry_run, on_progress=tell)
    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(done)})
        return
    there = f"; {done.num_there} of {done.num_files} were there already" if done.num_there else ""
    gone = f", {done.num_removed} of files that are gone removed" if done.num_removed else ""
    what = f"{done.num_written} shards of {done.num_rows:,} rows by run {done.run_id} ({done.way})"
    if dry_run:
        said = f"would write {what} to {done.location}{gone}{there}; nothing was written"
    else:
        said = f"wrote {what} to {done.location} in {done.seconds:,.1f} s{gone}{there}"
    console.out().print(console.printable(said))
