"""The lake's versions: finding one by number or time, its rows in SQL, and making an older one the newest again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from connectors import commit, duck
from connectors import errors as connector_errors
from curator.catalog import WEIGHT_COLUMNS, check_published_files, unchanged_files
from curator.errors import NotFoundError, UsageError
from curator.sidecar import check_fresh, check_no_views, is_sidecar

if TYPE_CHECKING:
    from curator.lake import Lake

_VERSION_VIEW = re.compile(r"version_\d+")
_AT_VERSION = re.compile(r"\bat_version\s*\(\s*(\d+)\s*\)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What a rollback did.

    `version` is the newest version now (with a dry run, the one that would be committed), whose content is that of
    version `restores`; `replaces` was the newest before. `created` is False for a dry run, and if the newest version
    had that content already.
    """

    version: int
    restores: int
    replaces: int
    run_id: str
    created: bool


def find_version(lake: Lake, version: int | None = None, as_of: str | datetime | None = None) -> commit.Version:
    """The version of this number, or the newest one committed at or before `as_of`; the newest by default.

    Raises:
        UsageError: both are given, or `as_of` is not an ISO date or datetime.
        NotFoundError: nothing was published, no such version, or its files were let go.
    """
    if version is not None and as_of is not None:
        raise UsageError("version and as_of both name a version", hint="give one of them")
    moment = None if as_of is None else _moment(as_of)
    log = lake.connector.read_log()
    if not log:
        raise NotFoundError(f"{lake.destination.url} has no published version yet", hint="publish a run first")
    if moment is not None:
        early = [each for each in log if datetime.fromisoformat(each.committed_at) <= moment]
        if not early:
            raise NotFoundError(
                f"{lake.destination.url} had no version at {moment.isoformat()}",
                hint=f"the first was committed at {log[0].committed_at}",
            )
        return _readable(lake, log, early[-1])
    found = log[-1] if version is None else next((each for each in log if each.number == version), None)
    if found is None:
        raise NotFoundError(f"{lake.destination.url} has no version {version}", hint=f"there are 1 to {log[-1].number}")
    return _readable(lake, log, found)


def create_samples_at(connection: duck.Connection, lake: Lake, version: commit.Version, name: str = "samples") -> None:
    """Make the view `name` of a version: its rows as they were published, whatever the lake has become.

    `sample_id` and `usable` are NULL in files that the lake has no longer as they were.

    Raises:
        StorageError: a published file is gone.
        InputError: its weights lie beside source files that have changed.
    """
    manifest = lake.connector.read_manifest(version)
    check_published_files(lake.connector.data, manifest)
    unchanged = unchanged_files(lake.corpus, manifest)
    sidecars = None
    if is_sidecar(manifest):
        check_fresh(lake, manifest)
        sidecars = (lake.destination, [file.published_path for file in manifest.files])
    paths = [file.source_path if sidecars else file.published_path for file in manifest.files]
    duck.create_version_view(
        connection,
        lake.corpus.store if sidecars else lake.connector.data,
        [
            (path, file.source_path, file.source_path in unchanged)
            for path, file in zip(paths, manifest.files, strict=True)
        ],
        columns=WEIGHT_COLUMNS,
        domain=lake.config.domain,
        key=lake.config.key,
        sidecars=sidecars,
        name=name,
    )


def create_versions_asked(connection: duck.Connection, lake: Lake, query: str) -> None:
    """Make the views `version_3` that a query with `at_version(3)` asks for, unless they are there.

    Only then, since a view of every version would read the footers of all files that were ever published.

    Raises:
        NotFoundError: no such version.
    """
    asked = {int(number) for number in _AT_VERSION.findall(query)}
    made = connection.execute("SELECT view_name FROM duckdb_views() WHERE temporary").fetchall() if asked else []
    for number in sorted(asked):
        name = f"version_{number}"
        if (name,) not in made:
            create_samples_at(connection, lake, find_version(lake, number), name)


def drop_versions(connection: duck.Connection) -> None:
    """Drop the views that `create_versions_asked` made, since a version may have been let go meanwhile."""
    made = connection.execute("SELECT view_name FROM duckdb_views() WHERE temporary").fetchall()
    for (name,) in made:
        if _VERSION_VIEW.fullmatch(name):
            connection.execute(f"DROP VIEW {name}")


def rollback(lake: Lake, version: int, *, dry_run: bool = False) -> Rollback:
    """Make the content of an older version the newest, by one more entry of the log; nothing is removed.

    Raises:
        NotFoundError: no such version.
        InputError: it has weights beside source files that have changed.
        StorageError: one of its files is gone, or the destination cannot be written.
        TryAgainError: another version was published meanwhile.
    """
    target = find_version(lake, version)
    log = lake.connector.read_log()
    manifest = lake.connector.read_manifest(target)
    check_published_files(lake.connector.data, manifest)
    if is_sidecar(manifest):
        check_no_views(lake)
        check_fresh(lake, manifest)
    same = log[-1].manifest_path == target.manifest_path
    if dry_run or same:
        made, created = log[-1].number + (0 if same else 1), False
    else:
        lake.check_destination()
        with lake.writing():
            restored = lake.connector.restore(version)
        made, created = restored.number, restored.created
        lake.forget_views()
    return Rollback(
        version=made,
        restores=commit.restored_number(log, target) or target.number,
        replaces=log[-1].number,
        run_id=target.run_id,
        created=created,
    )


def _readable(lake: Lake, log: Sequence[commit.Version], version: commit.Version) -> commit.Version:
    try:
        commit.check_readable(log, version, lake.destination.url)
    except connector_errors.NotFoundError as error:
        raise NotFoundError(str(error)) from error
    return version


def _moment(given: str | datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError as error:
        raise UsageError(
            f"as_of {given!r} is not an ISO date or datetime, such as 2026-11-25 (its first moment) or "
            "2026-11-25T18:00+01:00"
        ) from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
