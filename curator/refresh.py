"""The scheduled job: what changed → learn again, or keep the weights → gates → publish. Safe to repeat and to kill.

`plan` decides and writes nothing but the local index; `refresh` does what it decided. A refresh that was killed goes on
with its run (`curator.learn.resume`); a version is made once for a run and a snapshot, however often that is tried. The
lock keeps two refreshes from doing the same work; that no half version appears is the commit's doing, not the lock's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from connectors.commit import Version
from connectors.lease import LOCK_FOLDER, Hold, hold
from connectors.manifest import Manifest
from curator.begun import Begun, LastVersion
from curator.carry import LakeWeights, weights_now
from curator.changes import Changes, find_changes
from curator.clusters import Clusters
from curator.config import LearnConfig, RefreshConfig, TargetConfig
from curator.errors import ConfigError
from curator.learn import RECORD
from curator.places import JOB
from curator.prepare import distinct_texts, find_goal, fingerprint, row_batch
from curator.progress import ProgressCallback
from curator.publish import check_column_names, in_order, layout_of, publish
from curator.rules import Gate, Reason, changed_settings, check_gates, data_reasons, drift_from, settings_reasons
from curator.tokens import TokenCache
from curator.views import renew_views
from curator.weights import WeightIdentityError

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.run import Run

REPORT = "report.html"
"""In the folder of a run that a refresh learned."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the weights are to be learned for, and how; without a target, its part is not compared."""

    learn: LearnConfig
    leaks: Literal["exclude", "keep"] | None = None
    texts: Sequence[str] = ()
    fingerprint: str | None = None

    def is_met_by(self, lake: Lake, record: Any) -> bool:
        """Whether a run had this target and these settings."""
        return self.has_target_of(record) and not self.changed_since(lake, record)

    def has_target_of(self, record: Any) -> bool:
        """Whether a run had this target."""
        return self.fingerprint in (None, record["target"].get("fingerprint"))

    def changed_since(self, lake: Lake, record: Any) -> list[str]:
        """The settings that a run had otherwise."""
        return changed_settings(record, lake.config, self.learn, self.leaks)

    @property
    def excluded(self) -> Sequence[str]:
        """Texts whose rows get no weight."""
        return self.texts if self.leaks == "exclude" else ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a refresh would do, and why.

    `run` is the one whose weights are kept, or None; `newest` and `manifest` are the newest version. `rows_read` counts
    rows that had to be indexed to find out.
    """

    action: Literal["nothing", "publish", "learn"]
    reasons: tuple[Reason, ...]
    run: Run | None
    newest: Version | None
    manifest: Manifest | None
    changes: Changes
    rows_read: int


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """What a refresh did, or with a dry run would do.

    `outcome` is "nothing" if there was nothing to do, "refused" if a gate kept it from publishing, or in a dry run
    would, else "planned" for a dry run. `version` is the newest one afterwards. `snapshot_in` names the lake's content
    that was read, `snapshot_out` the content that the newest version was made from. `weights_changed` says whether the
    domain weights differ from those of the version before. `report` is the page about a run that was learned, `way` how
    rows that came since the run were weighed (`Run.ways_to_score`): None if none came, or by their domain's mean.
    """

    outcome: Literal["nothing", "published", "refused", "planned"]
    action: Literal["nothing", "publish", "learn"]
    reasons: tuple[Reason, ...]
    gates: tuple[Gate, ...] = ()
    run_id: str | None
    version: int | None
    snapshot_in: str
    snapshot_out: str | None
    location: str | None = None
    num_new_rows: int
    rows_read: int
    rows_written: int = 0
    weights_changed: bool = False
    way: str | None = None
    seconds: float
    report: str | None = None


def wanted(lake: Lake, target: TargetConfig, learn: LearnConfig) -> Wanted:
    """The settings with the texts of the target read.

    Raises:
        ConfigError: no target is named.
        InputError: it cannot be used.
    """
    texts = distinct_texts(find_goal(lake, target), "target")
    return Wanted(learn=learn, leaks=target.leaks, texts=texts, fingerprint=fingerprint(row_batch(texts).sample_id))


def plan(
    lake: Lake, want: Wanted, settings: RefreshConfig, on_progress: ProgressCallback, *, force: bool = False
) -> Plan:
    """Decide by the rules of `curator.rules`; the work folder keeps only the index and the drift.

    Raises:
        InputError: the lake cannot be read.
        StorageError: its log is damaged, or the storage did not answer.
    """
    indexed = lake.ingest(on_progress)
    check_column_names(lake)
    log = lake.connector.read_log()
    newest = log[-1] if log else None
    manifest = lake.connector.read_manifest(newest) if newest else None
    runs = lake.runs()
    run = _kept_run(lake, want, runs, log)
    changes = find_changes(lake, run, manifest, on_progress)
    if run is not None:
        reasons = data_reasons(run, changes, settings)
    else:
        published = newest.run_id if newest else None
        record = next((each.record for each in runs if each.run_id == published), None)
        changed = want.changed_since(lake, record) if record else []
        reasons = settings_reasons(record, changed, same_target=bool(record) and want.has_target_of(record))
    if force:
        reasons.append(Reason(code="forced", said="it was asked for"))
    action: Literal["nothing", "publish", "learn"] = "learn" if reasons else "publish"
    if run is not None and not reasons and _is_published(lake, run, newest, manifest, settings):
        action = "nothing"
    return Plan(
        action=action,
        reasons=tuple(reasons),
        run=run,
        newest=newest,
        manifest=manifest,
        changes=changes,
        rows_read=indexed.rows_indexed,
    )


def refresh(
    lake: Lake,
    target: TargetConfig,
    learn: LearnConfig,
    settings: RefreshConfig,
    on_progress: ProgressCallback,
    *,
    force: bool,
    dry_run: bool,
) -> Refresh:
    """Bring the published weights up to date with the lake, the target and the settings.

    Raises:
        ConfigError, InputError: the settings, the lake or the target cannot be used.
        LearningError: the run failed.
        InterruptedRunError: stopped by the user; the next refresh goes on.
        TryAgainError: another refresh is at work.
        StorageError: the destination cannot be written; the version before stays.
    """
    started = time.monotonic()
    want = wanted(lake, target, learn)
    job = _Job(lake=lake, target=target, want=want, settings=settings, tell=on_progress, force=force, started=started)
    found = job.plan()
    if found.action == "nothing":
        return job.ended("nothing", found)
    if dry_run:
        weights, gates = job.weigh(found, found.run) if found.run and found.action == "publish" else (None, [])
        passed = all(gate.passed for gate in gates)
        way = weights and weights.way
        return job.ended("planned" if passed else "refused", found, gates=tuple(gates), way=way)
    lake.check_destination()
    with hold(lake.destination, LOCK_FOLDER, seconds=60 * settings.lease_minutes) as lease:
        again = job.plan()  # another may have done it meanwhile
        found = replace(again, rows_read=found.rows_read + again.rows_read)
        return job.ended("nothing", found) if found.action == "nothing" else job.run(found, lease)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One call of `refresh`."""

    lake: Lake
    target: TargetConfig
    want: Wanted
    settings: RefreshConfig
    tell: ProgressCallback
    force: bool
    started: float

    def plan(self) -> Plan:
        """What to do."""
        return plan(self.lake, self.want, self.settings, self.tell, force=self.force)

    def run(self, found: Plan, lease: Hold) -> Refresh:
        """Do what was planned, under the lock."""
        told: dict[str, Any] = {"rows_read": found.rows_read}
        run = found.run
        if run is None or found.action == "learn":
            run = self.learned(found)
            told["report"] = run.report(run.run_dir / REPORT, overwrite=True).path
            told["rows_read"] += self.lake.ingest(self.tell).rows_indexed  # hours may have passed
        weights, gates = self.weigh(found, run)
        told |= {"run": run, "gates": tuple(gates), "way": weights and weights.way}
        if weights is None or not all(gate.passed for gate in gates):
            return self.ended("refused", found, **told)
        lease.check()
        label = _label(self.lake, run, weights, found, self.settings)
        how: dict[str, Any] = {"mode": self.settings.mode, "bloom_filters": self.settings.bloom_filters}
        made = publish(self.lake, run, self.tell, weights_now=weights, label=label, **how)
        renew_views(self.lake)
        return self.ended(
            "published",
            found,
            **told,
            version=made.version,
            snapshot_out=made.snapshot_id,
            location=made.location,
            rows_written=made.num_rows if made.created else 0,
            weights_changed=found.manifest is None or drift_from(found.manifest, weights) > 0,
        )

    def weigh(self, found: Plan, run: Run) -> tuple[LakeWeights | None, list[Gate]]:
        """The weights that would be published, and whether they may be; None if they do not add up."""
        try:
            weights = weights_now(self.lake, run, self.want.excluded, self.tell)
        except WeightIdentityError as error:
            return None, [Gate(name="identities", passed=False, said=str(error))]
        num_rows = self.lake.corpus.num_rows
        return weights, check_gates(run, weights, found.manifest, num_rows, self.settings, forced=self.force)

    def learned(self, found: Plan) -> Run:
        """A run on the lake as it is: one that was killed is gone on with, else a new one."""
        folder = _unfinished(self.lake, self.want)
        if folder is None:
            warm, config = self.settings.warm_start, self.want.learn
            return self.lake.learn_after(_last(found), self.target, config, None, self.tell, warm_start=warm)
        record = folder / RECORD
        if not record.exists():
            return self.lake.resume(folder, on_progress=self.tell)
        values = json.loads(record.read_text(encoding="utf-8"))  # killed before it could tell the lake
        with self.lake.writing():
            self.lake.record_run(folder, values)
        return self.lake.run(values["run_id"])

    def ended(
        self,
        outcome: Literal["nothing", "published", "refused", "planned"],
        found: Plan,
        *,
        run: Run | None = None,
        **values: Any,
    ) -> Refresh:
        """What is said of it; without `values` the newest version is as it was found."""
        run = run or found.run
        before = {
            "version": found.newest.number if found.newest else None,
            "snapshot_out": found.newest.snapshot_id if found.newest else None,
            "rows_read": found.rows_read,
        }
        return Refresh(
            outcome=outcome,
            action=found.action,
            reasons=found.reasons,
            run_id=run.run_id if run else None,
            snapshot_in=self.lake.snapshot_id,
            num_new_rows=found.changes.num_new_rows,
            seconds=round(time.monotonic() - self.started, 3),
            **before | values,
        )


def _last(found: Plan) -> LastVersion | None:
    """The newest version as what is learned anew is compared with it, if it says its domains' weights."""
    if found.newest is None or found.manifest is None or not found.manifest.extra.get("domains"):
        return None
    weights = {row["domain"]: float(row["domain_weight"]) for row in found.manifest.extra["domains"]}
    return LastVersion(version=found.newest.number, run_id=found.newest.run_id, domains=weights)


def _kept_run(lake: Lake, want: Wanted, runs: Sequence[Run], log: Sequence[Version]) -> Run | None:
    """The run whose weights the lake is to have, unless a rule says to learn: it has this target and these settings.

    That of the newest version, so that a rollback stays; but a newer one that was never published comes first.
    """
    matching = [run for run in runs if want.is_met_by(lake, run.record)]
    published = {version.run_id for version in log}
    current = next((run for run in runs if log and run.run_id == log[-1].run_id), None)
    since = runs.index(current) + 1 if current else 0
    fresh = [run for run in matching if run.run_id not in published and runs.index(run) >= since]
    if fresh:
        return fresh[-1]
    if current in matching:
        return current
    return matching[-1] if matching else None


def _is_published(
    lake: Lake, run: Run, newest: Version | None, manifest: Manifest | None, settings: RefreshConfig
) -> bool:
    """Whether the newest version has this run's weights for the rows that the lake has now."""
    if newest is None or manifest is None:
        return False
    is_same = (newest.run_id, newest.snapshot_id) == (run.run_id, lake.snapshot_id)
    is_whole = run.record["snapshot_id"] == lake.snapshot_id or bool(manifest.extra.get("carried"))
    is_alike = manifest.extra.get("mode", "copy") == settings.mode
    is_alike &= manifest.extra.get("bloom_filters", []) == in_order(settings.bloom_filters)
    return is_same and is_whole and is_alike


def _label(lake: Lake, run: Run, weights: LakeWeights, found: Plan, settings: RefreshConfig) -> str:
    """Tells carried weights from the run's own; and once more what was the newest version before, and is not now."""
    label = "carried" if weights.is_carried else ""
    layout = layout_of(settings.mode, settings.bloom_filters)
    key = f"{run.run_id}/{layout}{label}{'-' if label else ''}{lake.snapshot_id}"
    if found.newest is None or not any(version.idempotency_key == key for version in lake.connector.read_log()):
        return label
    return f"{label}{'-' if label else ''}after-{found.newest.number}"


def _prior_of(begun: Begun) -> dict[str, float]:
    """The mixture that a run began at, by domain."""
    corpus, prior = TokenCache.open(begun.job.corpus), begun.job.prior
    if begun.job.learn.granularity == "cluster":
        clusters = Clusters.of(corpus)
        return dict(zip(clusters.domains, clusters.fold(prior), strict=True))
    return dict(zip(corpus.domains, prior, strict=True))


def _unfinished(lake: Lake, want: Wanted) -> Path | None:
    """The newest run of this snapshot, target and settings that the lake does not know to be finished."""
    known = {run.run_id for run in lake.runs()}
    for job in sorted((lake.workdir / "runs").glob(f"*/{JOB}"), reverse=True):
        try:
            begun = Begun.read(job.parent)
        except ConfigError:  # damaged, or of another version of this package
            continue
        if begun.run_id in known or begun.snapshot_id != lake.snapshot_id or begun.job.learn.method == "dsir":
            continue
        if not (begun.job.corpus.is_dir() and begun.job.target.is_dir()):
            continue
        record = {
            "learn": begun.job.learn.model_dump(mode="json"),
            "lake": lake.config.model_dump(include={"text", "domain", "key", "id_hash", "skip_bad_rows"}),
            "leaks": begun.leaks.to_json(),
            "target": {"fingerprint": fingerprint(TokenCache.open(begun.job.target).sample_ids())},
            "prior": _prior_of(begun),
        }
        if want.is_met_by(lake, record):
            return job.parent
    return None
