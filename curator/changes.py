"""What has changed in a lake since its newest version, and since the run whose weights it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from connectors.manifest import Manifest
from curator.catalog import unchanged_files
from curator.drift import Drift, find_drift
from curator.progress import ProgressCallback, silent

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.run import Run


@dataclass(frozen=True, kw_only=True)
class DomainState:
    """One domain of the lake: its usable rows now, how many the run has not seen, and the weight it has (or None).

    `drift` is how far those look from the run's; None where there are none, or nothing to compare them with.
    """

    domain: str
    num_rows: int
    num_new: int
    domain_weight: float | None
    drift: Drift | None = None


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What has changed.

    Files are compared with the newest version, rows and domains with the run whose weights are kept. `share_change` is
    ½ Σ |now − then| over the domains' shares of usable rows, from 0 to 1; None without a run. `vanished` are domains of
    the run that have no row any more.
    """

    files_added: tuple[str, ...]
    files_changed: tuple[str, ...]
    files_removed: tuple[str, ...]
    domains: tuple[DomainState, ...]
    vanished: tuple[str, ...]
    share_change: float | None

    @property
    def new_domains(self) -> tuple[str, ...]:
        """Domains that have no weight."""
        return tuple(state.domain for state in self.domains if state.domain_weight is None)

    @property
    def new_domain_share(self) -> float:
        """Share of the usable rows that are in domains without a weight."""
        total = sum(state.num_rows for state in self.domains)
        return sum(state.num_rows for state in self.domains if state.domain_weight is None) / max(total, 1)

    @property
    def num_new_rows(self) -> int:
        """Usable rows that the run has not seen."""
        return sum(state.num_new for state in self.domains)


def find_changes(
    lake: Lake, run: Run | None, manifest: Manifest | None, on_progress: ProgressCallback = silent
) -> Changes:
    """Compare an ingested lake with the manifest of its newest version, and with the run whose weights are kept."""
    now = {file.path for file in lake.corpus.files}
    then = {file.source_path for file in manifest.files} if manifest else set()
    same = unchanged_files(lake.corpus, manifest).keys() if manifest else set()
    counts = dict(lake.domain_counts())
    learned = {row["domain"]: row["domain_weight"] for row in run.record["domains"]} if run else {}
    new = _new_rows(lake, run) if run else counts
    drift = find_drift(lake, run, on_progress) if run else {}
    return Changes(
        files_added=tuple(sorted(now - then)),
        files_changed=tuple(sorted((now & then) - same)),
        files_removed=tuple(sorted(then - now)),
        domains=tuple(
            DomainState(
                domain=name,
                num_rows=count,
                num_new=new.get(name, 0),
                domain_weight=learned.get(name),
                drift=drift.get(name) if new.get(name) else None,  # what the run left out as leaks is no news
            )
            for name, count in counts.items()
        ),
        vanished=tuple(sorted(learned.keys() - counts.keys())),
        share_change=total_variation(_rows_then(run), counts) if run else None,
    )


def total_variation(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """½ Σ |p − q| of the shares that these amounts have in their sums, from 0 (the same) to 1 (nothing in common)."""
    all_then, all_now = sum(then.values()) or 1.0, sum(now.values()) or 1.0
    names = then.keys() | now.keys()
    return sum(abs(now.get(name, 0) / all_now - then.get(name, 0) / all_then) for name in names) / 2


def _rows_then(run: Run) -> dict[str, int]:
    """Usable rows of each domain when the run was learned, with those that it left out as leaks."""
    left_out = _left_out(run)
    return {row["domain"]: row["num_samples"] + left_out.get(row["domain"], 0) for row in run.record["domains"]}


def _left_out(run: Run) -> Mapping[str, int]:
    leaks = run.leaks
    return {} if leaks is None or leaks.kept else leaks.by_domain


def _new_rows(lake: Lake, run: Run) -> dict[str, int]:
    """Usable rows of each domain that were not there when the run was learned; known leaks are not new."""
    if run.record["snapshot_id"] == lake.snapshot_id:
        return {}
    lake.connection.register("run_samples", run.samples().select(["sample_id"]))
    rows = lake.connection.execute(
        "SELECT domain, count(*) FROM sample_index WHERE usable AND sample_id NOT IN (FROM run_samples) GROUP BY domain"
    ).fetchall()
    lake.connection.unregister("run_samples")
    left_out = _left_out(run)
    return {str(name): max(0, int(count) - left_out.get(str(name), 0)) for name, count in rows}
