"""Commands about what was published: make a version, list, restore, check and show them, remove what is left."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from curator.cli.options import (
    AsOfOption,
    ConfigOption,
    DestinationOption,
    DryRunOption,
    JsonOption,
    LakeArgument,
    VersionOption,
    lake_and,
    open_given,
    print_next,
    read_settings,
)


def publish(
    lake_url: LakeArgument = None,
    run: Annotated[str, typer.Option("--run", help="The run to publish.")] = "latest",
    mode: Annotated[
        Literal["copy", "sidecar"],
        typer.Option("--mode", help="copy: files with the weights in them; sidecar: the weights beside yours."),
    ] = "copy",
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    bloom_filter: Annotated[
        list[str] | None,
        typer.Option("--bloom-filter", help="A weight column that gets one; may be repeated.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's weights as columns of new Parquet files and make them the lake's newest version, atomically."""
    import dataclasses

    from curator import console

    with open_given(read_settings(lake_url, config), destination=destination) as lake, console.progress() as tell:
        filters = bloom_filter or ()
        publication = lake.publish(run, mode=mode, bloom_filters=filters, dry_run=dry_run, on_progress=tell)
        newest = max((version.version for version in lake.history()), default=None)
    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(publication)})
        return
    print_ = console.out().print
    files = f"{publication.num_files} files, {publication.num_rows:,} rows"
    if dry_run:
        print_(f"would write {files} to {publication.location}; nothing was written")
    elif publication.created:
        print_(
            f"version {publication.version}: {files}, {console.size(publication.size_bytes)} in {publication.location}"
        )
    else:
        print_(f"version {publication.version} holds this run for these files already: {publication.location}")
        if newest != publication.version:
            print_(f"the newest is version {newest}; `curator rollback` goes back to version {publication.version}")
    if publication.num_unweighted:
        print_(
            f"{publication.num_unweighted:,} rows have no weight: they stand in the target, came after the run, or "
            "have no text"
        )
    if publication.num_gone:
        print_(
            f"{publication.num_gone:,} rows that the run weighed are gone from the lake: the mean weight is not 1 "
            "any more; learn again"
        )


def history(
    lake_url: LakeArgument = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the lake's runs and its published versions."""
    import dataclasses

    from curator import console

    with open_given(read_settings(lake_url, config), destination=destination) as lake:
        versions = [dataclasses.asdict(version) for version in lake.history()]
        runs = [run.record for run in lake.runs()]
    if as_json:
        brief = [
            {key: record[key] for key in ("run_id", "created_at", "status", "snapshot_id", "run_dir")}
            | {"verdict": record["verdict"]["status"]}
            for record in runs
        ]
        console.print_json({"status": "ok", "runs": brief, "versions": versions})
        return
    console.print_rows(
        ["run", "created", "method", "model", "steps", "verdict"],
        [[r["run_id"], r["created_at"], *_learned_by(r["learn"]), r["verdict"]["status"]] for r in runs],
        title=f"Runs of {lake.url}",
        grouped=True,
    )
    print()  # noqa: T201
    names = ["version", "created_at", "run_id", "num_files", "num_rows", "restores", "gone_since", "location"]
    shown = [{name: "" if row[name] is None else row[name] for name in names} for row in versions]
    console.print_rows(
        names, [[row[name] for name in names] for row in shown], title="Published versions", grouped=True
    )


def rollback(
    lake_url: Annotated[
        str | None,
        typer.Argument(metavar="LAKE_URL", help="The lake; default: that of ./curator.toml.", show_default=False),
    ] = None,
    version: Annotated[
        str | None,
        typer.Argument(metavar="VERSION", help="Number of the version to go back to.", show_default=False),
    ] = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the content of an older version the newest again, atomically; nothing is removed."""
    import dataclasses

    from curator import console
    from curator.errors import UsageError

    lake_named, number = lake_and("VERSION", lake_url, version, config)
    if not number.isdecimal():
        raise UsageError(f"{number!r} is no number of a version", hint="`curator history` lists them")
    with open_given(read_settings(lake_named, config), destination=destination) as lake:
        done = lake.rollback(int(number), dry_run=dry_run)
    if as_json:
        console.print_json({"status": "ok", "dry_run": dry_run, **dataclasses.asdict(done)})
        return
    content = f"the content of version {done.restores}, of run {done.run_id}"
    if done.created:
        said = f"version {done.version} is the newest now and has {content}; version {done.replaces} stays readable"
    elif done.version == done.replaces:
        said = f"version {done.version} is the newest and has {content}, already; nothing was written"
    else:
        said = f"would make version {done.version} with {content}; nothing was written"
    console.out().print(said)


def _learned_by(learn: Mapping[str, Any]) -> list[Any]:
    """Method, model and steps; runs from before there were other methods do not name theirs."""
    return [learn.get("method", "scalebio"), learn["model"], learn["steps"]]


def gc(
    lake_url: LakeArgument = None,
    grace: Annotated[
        str, typer.Option("--grace", help="Only what is older goes; with less than 24h be sure that nobody publishes.")
    ] = "24h",
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", help="Let go all versions but so many, the newest; that cannot be undone.", show_default=False
        ),
    ] = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what crashed publications left: files that no version names, and unfinished uploads on S3."""
    import dataclasses

    from curator import console

    with open_given(read_settings(lake_url, config), destination=destination) as lake:
        removal, place = lake.gc(grace, keep=keep, dry_run=dry_run), lake.destination.url
        kept = [] if keep is None else [version for version in lake.history() if version.gone_since is None]
    if as_json:
        console.print_json({"status": "ok", **dataclasses.asdict(removal), "size_bytes": removal.size_bytes})
        return
    if removal.items:
        console.print_rows(
            ["kind", "path", "bytes"], [[i.kind, i.path, i.size_bytes] for i in removal.items], grouped=True
        )
    if removal.versions:
        gone = ", ".join(map(str, removal.versions))
        console.out().print(f"{'would let' if dry_run else 'let'} go version(s) {gone}")
    if dry_run:
        stay = {v.restores: v.version for v in kept if v.restores and v.version not in removal.versions}
        for restored, by in stay.items():
            console.out().print(f"version {restored} stays, since version {by} restores it")
    if removal.versions:
        stay_until = f"{'would stay' if dry_run else 'stay'} until a later collection (--grace)"
        console.out().print(f"files younger than {grace} {stay_until}")
    done = "would remove" if dry_run else "removed"
    console.out().print(f"{done} {len(removal.items)} items, {console.size(removal.size_bytes)}, in {place}")


def verify(
    lake_url: LakeArgument = None,
    version: VersionOption = None,
    as_of: AsOfOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every column, not the weights only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that a version is what was published, down to the identities of its weights; exit code 1 if it is not."""
    import dataclasses

    from curator import console

    with open_given(read_settings(lake_url, config), destination=destination) as lake, console.progress() as tell:
        found = lake.verify(version, as_of=as_of, deep=deep, on_progress=tell)
    if as_json:
        status = "ok" if found.is_sound else "failed"
        console.print_json({"status": status, **dataclasses.asdict(found)})
    else:
        if found.findings:
            console.print_rows(["", "path", "found"], [[f.level, f.path, f.said] for f in found.findings])
        state = "is what was published" if found.is_sound else "is NOT what was published"
        console.out().print(f"version {found.version} {state}: {found.num_files} files, {found.num_rows:,} rows")
    if not found.is_sound:
        raise typer.Exit(1)


def views(
    lake_url: LakeArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write; default: curator.duckdb in the work folder, which publish and rollback then renew.",
            show_default=False,
        ),
    ] = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Write a DuckDB file with the newest version, which any DuckDB opens without this package."""
    from curator import console

    with open_given(read_settings(lake_url, config), destination=destination) as lake:
        place = lake.write_views(out)
        version = lake.history()[-1].version
    if as_json:
        console.print_json({"status": "ok", "version": version, "views": str(place)})
        return
    console.out().print(f"{place}: samples, domain_weights, runs, versions of version {version}")
    print_next(
        f'duckdb -readonly {shlex.quote(str(place))} "SELECT domain, avg(sample_weight) FROM samples GROUP BY ALL"'
    )
