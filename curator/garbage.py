"""Garbage collection: removing what crashed publications left in a lake's destination, and old versions on request.

An entry of the log cannot go, since the numbers have no gaps. So versions are let go by one more entry that says so:
history lists them still, nobody can read them, and their files are garbage from then on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from connectors.commit import beyond
from connectors.commit import collect as let_go
from connectors.garbage import DATA_FOLDER, Garbage, find_garbage, find_table_garbage, remove_garbage
from curator.catalog import carried_tokens_path
from curator.errors import UsageError

if TYPE_CHECKING:
    from curator.lake import Lake

_STAGED = re.compile(rf"{DATA_FOLDER}/[^/]+-[0-9a-f]{{12}}/.+", re.DOTALL)
"""Paths of what `curator.publish` stages: folders for a run and a snapshot; nothing else below data/ is ours."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a collection removed, or with a dry run would remove.

    `items` are objects, temporary files and unfinished uploads, their paths relative to the destination, or to the
    table where copies of a table are staged. `versions` are the numbers of those that were let go.
    """

    items: tuple[Garbage, ...]
    versions: tuple[int, ...] = ()
    dry_run: bool

    @property
    def size_bytes(self) -> int:
        """What they took."""
        return sum(item.size_bytes for item in self.items)


def collect(lake: Lake, grace: str | timedelta, keep: int | None, *, dry_run: bool) -> Removal:
    """Let go all versions of `lake` but the newest `keep`, and remove what none names and is older than `grace`.

    Raises:
        UsageError: `grace` is not a duration, or `keep` is less than 1.
        StorageError: the log is damaged, or the destination cannot be written.
        TryAgainError: a version was published meanwhile.
    """
    seconds = _seconds(grace)
    if keep is not None and keep < 1:
        raise UsageError(f"keep {keep} would let go the newest version, too", hint="keep at least 1")
    if not lake.connector.owns_log:
        named = lake.connector.named_manifests
        left = find_table_garbage(lake.destination, lake.connector.data, named, grace_seconds=seconds)
        removed = [item for store, item in left if dry_run or remove_garbage(store, item)]
        return Removal(items=tuple(removed), dry_run=dry_run)
    versions: tuple[int, ...] = ()
    if keep is not None and dry_run:
        versions = beyond(lake.connector.read_log(), keep)
    elif keep is not None:
        with lake.writing():
            versions = let_go(lake.destination, keep)
        lake.forget_views()
    found = find_garbage(lake.destination, _STAGED, grace_seconds=seconds, without=versions)
    kept = [v for v in lake.connector.read_log() if v.collected_by is None and v.number not in versions]
    tokens = {carried_tokens_path(version.run_id, version.snapshot_id) for version in kept}
    found = [item for item in found if item.path not in tokens]
    if not dry_run:
        found = [item for item in found if remove_garbage(lake.destination, item)]
    return Removal(items=tuple(found), versions=versions, dry_run=dry_run)


def _seconds(grace: str | timedelta) -> float:
    if isinstance(grace, timedelta):
        seconds = grace.total_seconds()
    else:
        match = re.fullmatch(r"(\d+)([smhd])", grace.strip())
        if not match:
            raise UsageError(
                f"grace {grace!r} is not a duration", hint="write a number and a unit, such as 24h, 90m or 7d"
            )
        seconds = int(match[1]) * _UNITS[match[2]]
    if seconds < 0:
        raise UsageError(f"grace {grace} is negative; nothing can be older than that")
    return float(seconds)
