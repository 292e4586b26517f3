"""The command that writes rows selected by their weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curator.cli.options import (
    AsOfOption,
    ConfigOption,
    DestinationOption,
    JsonOption,
    LakeArgument,
    VersionOption,
    open_given,
    read_settings,
)

if TYPE_CHECKING:
    from curator.selection import Selection


def materialize(
    lake_url: LakeArgument = None,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder or URL to write; empty or not there.", show_default=False)
    ] = None,
    curated: Annotated[
        float | None, typer.Option("--curated", help="Rows with at least this sample_weight.", show_default=False)
    ] = None,
    top_k: Annotated[
        float | None,
        typer.Option(
            "--top-k", help="This fraction of every domain's rows, those that weigh most.", show_default=False
        ),
    ] = None,
    weighted_sample: Annotated[
        int | None,
        typer.Option("--weighted-sample", help="This many rows, drawn by weight, none twice.", show_default=False),
    ] = None,
    repeats: Annotated[
        float | None,
        typer.Option("--repeats", help="Every row this factor times its sample_weight.", show_default=False),
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option("--token-budget", help="Rows of so many tokens, in proportion to weight.", show_default=False),
    ] = None,
    mixture: Annotated[
        Path | None,
        typer.Option(
            "--mixture", help="With --token-budget: a JSON file {domain: share of tokens}.", show_default=False
        ),
    ] = None,
    quantiles: Annotated[
        int | None,
        typer.Option("--quantiles", help="All rows, with the bucket of their weight, domain/q1 ….", show_default=False),
    ] = None,
    max_repeats: Annotated[
        int | None, typer.Option("--max-repeats", help="Most times of one row; default: 4.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the draws; default: 0.", show_default=False)] = None,
    version: VersionOption = None,
    as_of: AsOfOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    repeat_rows: Annotated[
        bool,
        typer.Option("--repeat-rows/--repeats-column", help="Write a row as often as it is selected, or once."),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count rows and tokens; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write rows that are selected, or repeated, by their weights as Parquet that any trainer reads."""
    import dataclasses

    from curator import console
    from curator.errors import ConfigError

    if out is None:
        raise ConfigError("no place was named", hint="pass --out FOLDER")
    chosen = _selection(
        {
            "curated": curated,
            "top-k": top_k,
            "weighted-sample": weighted_sample,
            "repeats": repeats,
            "token-budget": token_budget,
            "quantiles": quantiles,
        },
        mixture,
        {"max_repeats": max_repeats, "seed": seed},
    )
    with open_given(read_settings(lake_url, config), destination=destination) as lake, console.progress() as tell:
        done = lake.materialize(
            chosen,
            out,
            version=version,
            as_of=as_of,
            repeat_rows=repeat_rows,
            overwrite=overwrite,
            dry_run=dry_run,
            on_progress=tell,
        )
    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(done)})
        return
    console.print_rows(
        ["domain", "distinct rows", "rows", "tokens", "share of tokens"],
        [
            [d.domain, f"{d.num_distinct:,}", f"{d.num_rows:,}", f"{d.num_tokens:,}", d.num_tokens / done.num_tokens]
            for d in done.domains
        ],
    )
    for note in done.notes:
        console.err().print(console.printable(f"note: {note}"))
    said = f"{done.num_rows:,} rows, {done.num_tokens:,} tokens of version {done.version} (run {done.run_id})"
    if dry_run:
        console.out().print(f"\nwould write {said} to {console.printable(done.location)}; nothing was written")
    else:
        size = f"{done.num_files} files, {console.size(done.size_bytes)}"
        console.out().print(f"\nwrote {said}: {size} in {console.printable(done.location)}")


def _selection(given: dict[str, float | int | None], mixture: Path | None, shared: dict[str, int | None]) -> Selection:
    """The one selection that was asked for."""
    from curator import selection
    from curator.errors import ConfigError
    from curator.files import read_object

    kinds: dict[str, tuple[type[selection.Selection], str]] = {
        "curated": (selection.Curated, "threshold"),
        "top-k": (selection.TopK, "fraction"),
        "weighted-sample": (selection.WeightedSample, "n"),
        "repeats": (selection.Repeats, "factor"),
        "token-budget": (selection.TokenBudget, "tokens"),
        "quantiles": (selection.Quantiles, "buckets"),
    }
    named = {name: value for name, value in given.items() if value is not None}
    if mixture is not None and not named:
        raise ConfigError("--mixture divides a --token-budget", hint="pass both")
    if len(named) != 1:
        options = ", ".join(f"--{name}" for name in kinds)
        found = f"{' and '.join(f'--{name}' for name in named)} were" if named else "none was"
        raise ConfigError(f"one selection can be written, but {found} given", hint=f"pass one of {options}")
    ((name, value),) = named.items()
    kind, field = kinds[name]
    settings: dict[str, object] = {key: each for key, each in shared.items() if each is not None}
    if mixture is not None:
        if kind is not selection.TokenBudget:
            raise ConfigError("--mixture divides a --token-budget", hint="pass both")
        kind = selection.MixtureBudget
        settings["shares"] = read_object(mixture, "mixture", "{domain: share}")
    if other := sorted(settings.keys() - kind.__dataclass_fields__.keys()):
        raise ConfigError(f"--{other[0].replace('_', '-')} means nothing to --{name}", hint="leave it out")
    return kind(**{field: value}, **settings)
