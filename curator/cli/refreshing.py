"""The scheduled job, and where a lake stands between two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator.cli.options import (
    ConfigOption,
    DestinationOption,
    DomainOption,
    DryRunOption,
    JsonOption,
    KeyOption,
    LakeArgument,
    TargetTextOption,
    TextOption,
    open_given,
    print_next,
    read_settings,
)

if TYPE_CHECKING:
    from curator.drift import Drift
    from curator.refresh import Refresh
    from curator.status import Status

NOTHING_TO_DO = 99
"""Exit code that Airflow takes for a skipped task."""
REFUSED = 3
TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="Parquet files of what the model should be good at.", show_default=False),
]


def refresh(
    lake_url: LakeArgument = None,
    target: TargetOption = None,
    text: TextOption = None,
    domain: DomainOption = None,
    key: KeyOption = None,
    target_text: TargetTextOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Learn again without a reason, and let the weights change by any amount.")
    ] = False,
    dry_run: DryRunOption = False,
    skip_exit_code: Annotated[
        bool, typer.Option("--skip-exit-code", help="Exit with 99 instead of 0 when there was nothing to do.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Tell no progress: stderr has only what somebody should look at.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the published weights up to date, learning again if a rule says so: the command of a scheduled job."""

    from curator import console
    from curator.config import override
    from curator.integrations.pipes import told_to_dagster

    settings = read_settings(lake_url, config)
    goal = override(settings.target, url=target, text=target_text)
    columns = {"text": text, "domain": domain, "key": key, "destination": destination}
    with (
        told_to_dagster() as tell_dagster,
        open_given(settings, **columns) as lake,
        console.progress(quiet=quiet) as tell,
    ):
        done = lake.refresh(
            goal, learn=settings.learn, config=settings.refresh, force=force, dry_run=dry_run, on_progress=tell
        )
        tell_dagster(done)
        named = lake.command_address
    if as_json:
        console.print_json(refresh_values(done))
    else:
        _print_refresh(done, named, dry_run=dry_run)
    if done.outcome == "refused":
        for gate in done.gates:
            if quiet and not gate.passed:
                console.err().print(console.printable(f"curator: nothing was published; {gate.name}: {gate.said}"))
        raise typer.Exit(REFUSED)
    if done.outcome == "nothing" and skip_exit_code:
        raise typer.Exit(NOTHING_TO_DO)


def status(
    lake_url: LakeArgument = None,
    target: TargetOption = None,
    target_text: TargetTextOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the newest version and its age, what has no or stale weights, and what a refresh would do."""
    import dataclasses

    from curator import console
    from curator.config import override

    settings = read_settings(lake_url, config)
    goal = override(settings.target, url=target, text=target_text)
    with open_given(settings, destination=destination) as lake, console.progress() as tell:
        found = lake.status(goal if goal.url else None, learn=settings.learn, config=settings.refresh, on_progress=tell)
        url = lake.url
    if as_json:
        console.print_json({"status": "ok", **dataclasses.asdict(found)})
        return
    _print_status(found, url)


def refresh_values(done: Refresh) -> dict[str, Any]:
    """What `--json` prints of a refresh."""
    import dataclasses

    values = dataclasses.asdict(done)
    values["table"], values["duration_s"] = values.pop("location"), values.pop("seconds")
    return {"status": "refused" if done.outcome == "refused" else "ok", **values}


def _print_refresh(done: Refresh, lake: str, *, dry_run: bool) -> None:
    from curator import console

    print_ = console.out().print
    for reason in done.reasons:
        print_(console.printable(f"{'learn' if dry_run else 'learned'}: {reason.said}"))
    for gate in done.gates:
        print_(console.printable(f"{'passed' if gate.passed else 'REFUSED'} {gate.name}: {gate.said}"))
    kept = f"the weights of run {done.run_id}"
    if done.outcome == "nothing":
        print_(f"nothing to do: version {done.version} has {kept} for the lake as it is")
    elif done.outcome == "planned":
        what = "learn, then publish" if done.action == "learn" else f"publish {kept} for the lake as it is now"
        print_(f"would {what}; nothing was written")
    elif done.outcome == "published":
        new = f", {done.num_new_rows:,} of them new since the weights were learned" if done.action == "publish" else ""
        new += f" and weighed by {done.way}" if new and done.way else ""
        print_(
            console.printable(f"version {done.version}: {kept}, {done.rows_written:,} rows{new}, in {done.location}")
        )
    elif dry_run:
        print_(f"would be refused: {kept} for the lake as it is now; nothing was written")
    else:
        print_(f"nothing was published; version {done.version} stays" if done.version else "nothing was published")
        print_next(f"curator report {lake} --run {done.run_id}", f"curator publish {lake} --run {done.run_id}")
    if done.report:
        print_(console.printable(f"report of the run: {done.report}"))


def _print_status(found: Status, url: str) -> None:
    from curator import console
    from curator.rules import named

    print_, changes = console.out().print, found.changes
    columns = ["domain", "weight", "rows", "new rows"]
    rows = [[each.domain, _weight(each.domain_weight), each.num_rows, each.num_new] for each in changes.domains]
    if any(each.drift for each in changes.domains):
        columns.append("drift")
        rows = [[*row, _drift(each.drift)] for row, each in zip(rows, changes.domains, strict=True)]
    console.print_rows(columns, rows, grouped=True)
    if found.version is None:
        print_("\nVersion   none")
    else:
        hours = (found.age_seconds or 0.0) / 3600
        print_(
            f"\nVersion   {found.version} of {found.committed_at}, {hours:,.1f} hours old, run {found.published_run}"
        )
    stale = f"{len(changes.files_changed)} changed, {len(changes.files_removed)} gone"
    print_(f"Files     {len(changes.files_added)} without weights, {stale} since that version")
    groups = {"without": changes.files_added, "changed": changes.files_changed, "gone": changes.files_removed}
    for what, paths in groups.items():
        if paths:
            print_(console.printable(f"          {what}: {named(paths)}"))
    if changes.new_domains:
        print_(console.printable(f"Domains   without weights: {named(changes.new_domains)}"))
    if found.verdict:
        print_(console.printable(f"Verdict   {found.verdict}"))
    print_(f"Lock      {console.printable(str(found.holder)) if found.holder else 'free'}")
    said = {
        "nothing": "do nothing",
        "publish": f"publish the weights of run {found.run_id} if its gates let it",
        "learn": "learn",
    }
    print_(f"Refresh   would {said[found.action]} ({console.printable(url)})")
    for reason in found.reasons:
        print_(console.printable(f"          {reason.said}"))


def _drift(found: Drift | None) -> str:
    """Of the text, and of the expected gaps where a scorer expects some."""
    if found is None:
        return ""
    return f"{found.features:.2f}" + ("" if found.gaps is None else f", gaps {found.gaps:+.2f}")


def _weight(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
