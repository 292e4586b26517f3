"""Where a lake stands between two refreshes: its newest version, what has no or stale weights, what would be done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from connectors.lease import LOCK_FOLDER, Lease, find_holder
from curator.changes import Changes, find_changes
from curator.config import LearnConfig, RefreshConfig, TargetConfig
from curator.progress import ProgressCallback
from curator.refresh import Wanted, plan, wanted
from curator.rules import Reason

if TYPE_CHECKING:
    from curator.lake import Lake


@dataclass(frozen=True, kw_only=True)
class Status:
    """What `Lake.status` found.

    `version`, `committed_at` (UTC, ISO 8601), `age_seconds`, `published_run` and `verdict` are of the newest version,
    None if there is none; `changes` are those since it and its run, or since `run_id` where nothing is published.
    `run_id` is the run whose weights a refresh would keep. `action` and `reasons` are what it would do, as far as its
    gates let it, `holder` is who is at it now.
    """

    version: int | None
    committed_at: str | None
    age_seconds: float | None
    published_run: str | None
    verdict: str | None
    run_id: str | None
    action: Literal["nothing", "publish", "learn"]
    reasons: tuple[Reason, ...]
    changes: Changes
    num_rows: int
    holder: Lease | None


def status(
    lake: Lake, target: TargetConfig | None, learn: LearnConfig, settings: RefreshConfig, on_progress: ProgressCallback
) -> Status:
    """Look at the lake, its versions and its lock; the work folder keeps only the index and the drift.

    Raises:
        InputError: the lake or the target cannot be used.
        StorageError: the log is damaged, or the storage did not answer.
    """
    want = Wanted(learn=learn) if target is None else wanted(lake, target, learn)
    found = plan(lake, want, settings, on_progress)
    newest = found.newest
    age = datetime.now(UTC) - datetime.fromisoformat(newest.committed_at) if newest else None
    published = next((run for run in lake.runs() if newest and run.run_id == newest.run_id), None)
    changes = found.changes
    if published and (found.run is None or found.run.run_id != published.run_id):
        changes = find_changes(lake, published, found.manifest, on_progress)
    return Status(
        version=newest.number if newest else None,
        committed_at=newest.committed_at if newest else None,
        age_seconds=round(age.total_seconds(), 1) if age else None,
        published_run=newest.run_id if newest else None,
        verdict=published.verdict if published else None,
        run_id=found.run.run_id if found.run else None,
        action=found.action,
        reasons=found.reasons,
        changes=changes,
        num_rows=lake.corpus.num_rows,
        holder=find_holder(lake.destination, LOCK_FOLDER),
    )
