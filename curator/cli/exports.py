"""The commands that write a run for others: its weights for a trainer, a page about it for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curator.cli.options import (
    ConfigOption,
    DestinationOption,
    JsonOption,
    LakeArgument,
    open_given,
    print_next,
    read_settings,
)

if TYPE_CHECKING:
    from curator.export.croissant import Description
    from curator.export.export import Export


def export(
    lake_url: LakeArgument = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.", show_default=False)] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="megatron, megatron-splits, energon, nanotron, olmo-core, torchtitan, levanter, streaming, torch, "
            "datasets, trl, axolotl, llama-factory or data-juicer; or croissant, which describes a published version.",
        ),
    ] = "megatron",
    run: Annotated[str, typer.Option("--run", help="The run whose weights are written.")] = "latest",
    places: Annotated[
        str,
        typer.Option("--places", help="Where the trainer finds a domain: a template, or a JSON file {domain: place}."),
    ] = "{domain}",
    budget_tokens: Annotated[
        int | None,
        typer.Option("--budget-tokens", help="Tokens that will be trained on; tells repetition.", show_default=False),
    ] = None,
    quantiles: Annotated[
        int | None,
        typer.Option(
            "--quantiles", help="So many buckets of every domain by row weight, domain/q1 …", show_default=False
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit",
            help="rows or sequences: what the trainer counts, for energon, torchtitan, streaming and datasets.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", help="For croissant: which version; default: the newest.", show_default=False),
    ] = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's domain weights as the file that a trainer reads, in its unit; or describe a published version."""
    import dataclasses

    from curator import console
    from curator.errors import ConfigError
    from curator.export.export import DESCRIPTION, find_format
    from curator.files import read_object

    if out is None:
        raise ConfigError("no file was named", hint="pass --out FILE")
    settings = read_settings(lake_url, config)
    if format_ == DESCRIPTION:
        _check_description({"budget-tokens": budget_tokens, "quantiles": quantiles, "unit": unit})
        with open_given(settings, destination=destination) as lake:
            described = lake.describe(out, version=version, overwrite=overwrite, dry_run=dry_run)
        _print_description(described, dry_run=dry_run, as_json=as_json)
        return
    find_format(format_)
    if version is not None:
        raise ConfigError("--version is for croissant, which describes a version", hint="name a run with --run")
    where = read_object(Path(places), "places", "{domain: place}") if places.endswith(".json") else places
    with open_given(settings, destination=destination) as lake:
        found = lake.run(run)
        done = found.export(
            format_,
            out,
            places=where,
            budget_tokens=budget_tokens,
            quantiles=quantiles,
            unit=unit,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    notes = [note for note in (found.note_on_ranks,) if note and quantiles is not None]
    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(done), "notes": notes})
        return
    _print_export(done, notes, dry_run=dry_run)


def _print_export(done: Export, notes: Sequence[str], *, dry_run: bool) -> None:
    from curator import console

    for note in notes:
        console.err().print(console.printable(f"note: {note}"))
    print_ = console.out().print
    names = ["domain", done.unit, *(["epochs"] if done.epochs else [])]
    console.print_rows(
        names,
        [
            [
                domain,
                f"{weight:.6f}" if weight < 1 else f"{weight:,.6g}",
                *([f"{done.epochs[domain]:.2f}"] if done.epochs else []),
            ]
            for domain, weight in done.weights.items()
        ],
    )
    print_(f"\n{'would write' if dry_run else 'wrote'} {console.printable(done.path)} for {done.reader}")
    if done.left_out:
        print_(f"left out, since they have no weight: {console.printable(', '.join(done.left_out))}")
    if done.repeated:
        print_(
            f"repeated more than four times at that budget: {console.printable(', '.join(done.repeated))}; "
            "learn with learn.weights.budget_tokens, which caps them"
        )


def _check_description(given: Mapping[str, object]) -> None:
    from curator.errors import ConfigError

    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--{name} means nothing to croissant, which describes a published version", hint="leave it out"
            )


def _print_description(done: Description, *, dry_run: bool, as_json: bool) -> None:
    import dataclasses

    from curator import console

    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(done)})
        return
    written = "would write" if dry_run else "wrote"
    print_ = console.out().print
    print_(console.printable(f"{written} {done.path}: version {done.version} with {len(done.columns)} columns"))
    if done.left_out:
        print_(console.printable(f"left out, since their types are nested: {', '.join(done.left_out)}"))


def report(
    lake_url: LakeArgument = None,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("report.html"),
    run: Annotated[str, typer.Option("--run", help="The run that is reported on.")] = "latest",
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the report says; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file about a run: weights, verdict, losses, comparisons, provenance, what to do next."""
    import dataclasses

    from curator import console

    with open_given(read_settings(lake_url, config), destination=destination) as lake:
        done = lake.run(run).report(out, overwrite=overwrite, dry_run=dry_run)
    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(done)})
        return
    print_ = console.out().print
    print_(console.printable(f"{done.headline}."))
    for sentence in done.next_steps:
        print_(console.printable(sentence))
    written = "would write" if dry_run else "wrote"
    size = console.size(done.size_bytes)
    print_(f"\n{written} {console.printable(done.path)}, {size}, about run {console.printable(done.run_id)}")
    if done.commands:
        print_next(*map(console.printable, done.commands))
