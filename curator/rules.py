"""The rules of a refresh: what makes it learn again, and what it does not publish. Each says why, in words and in code.

Rules to learn (`learn_reasons`, see `curator.config.RefreshConfig` for the thresholds):

    first            no finished run has these settings and this target
    target, config   the newest version's run had another target, other settings or other columns
    new_domain       rows in domains without a weight are more than `new_domain_share` of all
    vanished_domain  a domain of the run has no row any more
    shares           the domains' shares of rows changed by more than `max_share_change` since the run
    features         new rows of domains whose text drifted by more than `max_feature_drift` (`curator.drift`) are more
                     than `new_domain_share` of all
    gaps             likewise, of domains whose gaps, as the scorer expects them, drifted by more than `max_gap_drift`
    age              the run is older than `max_age_days`
    forced           it was asked for

Gates (`check_gates`):

    verdict      the run's verdict is one that is published
    identities   the weights add up (checked where they are made)
    row_weight   every row weighs at least `min_row_weight` and at most `max_row_weight`, where the mean is 1
    drift        the domain weights changed by at most `max_drift` since the newest version, unless forced
    unweighted   at most `max_unweighted_share` of the rows get no weight
    validation   models trained on the new domain weights are not worse than those trained on the newest version's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc

from connectors.manifest import Manifest
from curator.changes import Changes, total_variation
from curator.config import EXECUTION_FIELDS, PRIORS, LakeConfig, LearnConfig, RefreshConfig
from curator.errors import ConfigError
from curator.mixtures import weights_in

if TYPE_CHECKING:
    from curator.carry import LakeWeights
    from curator.run import Run

Code = Literal[
    "first", "target", "config", "new_domain", "vanished_domain", "shares", "features", "gaps", "age", "forced"
]
_COLUMNS = ("text", "domain", "key", "id_hash", "skip_bad_rows")
MOST_NAMED = 5
"""Of what a sentence lists; the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a refresh learns: `code` for machines, `said` for people."""

    code: Code
    said: str


GATES = ("verdict", "identities", "row_weight", "drift", "unweighted", "validation")
"""In the order in which they are checked; those that compare with a version before only where there is one."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What has to hold before a refresh publishes, and what was found."""

    name: Literal["verdict", "identities", "row_weight", "drift", "unweighted", "validation"]
    passed: bool
    said: str


def changed_settings(record: Mapping[str, Any], lake: LakeConfig, learn: LearnConfig, leaks: str | None) -> list[str]:
    """What of a run's settings is not as it would be now, each in words; `leaks` is None where no target is named.

    Settings that a run of an older version does not tell had their defaults. How the work is shared out does not count.
    """
    now = _flat(learn.model_dump(mode="json", exclude=set(EXECUTION_FIELDS)))
    then = _flat(LearnConfig().model_dump(mode="json")) | _flat(record["learn"])
    pairs = [(f"learn.{name}", then.get(name), value) for name, value in now.items()]
    lake_then = LakeConfig().model_dump(include=set(_COLUMNS)) | record["lake"]
    pairs += [(f"lake.{name}", lake_then[name], getattr(lake, name)) for name in _COLUMNS]
    if leaks is not None and "leaks" in record:
        pairs.append(("target.leaks", "keep" if record["leaks"]["kept"] else "exclude", leaks))
    changed = [f"{name} was {_shown(old)} and is {_shown(new)}" for name, old, new in pairs if old != new]
    if not changed and _reads_otherwise(record, learn.weights.prior):
        changed.append(f"the file learn.weights.prior={learn.weights.prior!r} held another mixture")
    return changed


def _shown(value: object) -> str:
    return "not set" if value is None else repr(value)


def _reads_otherwise(record: Mapping[str, Any], prior: str) -> bool:
    """Whether the prior is a file that does not hold what the run began at; what is wrong with it, learning says."""
    began = record.get("prior")
    if prior in PRIORS or began is None:
        return False
    try:
        mixtures = weights_in(Path(prior), tuple(began)).values()
    except ConfigError:  # of other domains, or none any more
        return True
    return not any(np.allclose(found, list(began.values())) for found in mixtures)


def settings_reasons(record: Mapping[str, Any] | None, changed: Sequence[str], *, same_target: bool) -> list[Reason]:
    """Why the weights that the lake has are not those that the settings ask for; `record` is of their run, if any."""
    if record is None:
        return [Reason(code="first", said="no run has been learned with these settings and published yet")]
    reasons = []
    if not same_target:
        reasons.append(Reason(code="target", said=f"the target is not what run {record['run_id']} was learned for"))
    if changed:
        reasons.append(Reason(code="config", said=f"since run {record['run_id']}, {named(changed, '; ')}"))
    return reasons


def data_reasons(run: Run, changes: Changes, settings: RefreshConfig) -> list[Reason]:
    """Why the weights of a run do not fit the lake any more."""
    reasons = []
    if changes.new_domain_share > settings.new_domain_share:
        said = (
            f"{changes.new_domain_share:.1%} of the rows are in domains without a weight "
            f"({named(changes.new_domains)}), more than refresh.new_domain_share={settings.new_domain_share:g}"
        )
        reasons.append(Reason(code="new_domain", said=said))
    if changes.vanished:
        reasons.append(Reason(code="vanished_domain", said=f"no row is left of {named(changes.vanished)}"))
    if (changes.share_change or 0.0) > settings.max_share_change:
        said = (
            f"the domains' shares of rows changed by {changes.share_change:.3f} since run {run.run_id}, more than "
            f"refresh.max_share_change={settings.max_share_change:g}"
        )
        reasons.append(Reason(code="shares", said=said))
    reasons += _drift_reasons(changes, settings)
    age = datetime.now(UTC) - datetime.fromisoformat(run.record["created_at"])
    if settings.max_age_days is not None and age.total_seconds() > settings.max_age_days * 86400:
        said = (
            f"run {run.run_id} is {age.total_seconds() / 86400:.1f} days old, more than "
            f"refresh.max_age_days={settings.max_age_days:g}"
        )
        reasons.append(Reason(code="age", said=said))
    return reasons


def _drift_reasons(changes: Changes, settings: RefreshConfig) -> list[Reason]:
    """Why new rows of known domains are not what the run was learned on; few of them count as little as new domains."""
    features = [
        (state.num_new, f"{state.domain} by {state.drift.features:.2f}")
        for state in changes.domains
        if state.drift and state.drift.features > settings.max_feature_drift
    ]
    gaps = [
        (state.num_new, f"{state.domain} by {state.drift.gaps:+.2f}")
        for state in changes.domains
        if state.drift and abs(state.drift.gaps or 0.0) > settings.max_gap_drift
    ]
    total = sum(state.num_rows for state in changes.domains)
    kinds: list[tuple[Code, str, str, list[tuple[int, str]]]] = [
        ("features", "text", f"max_feature_drift={settings.max_feature_drift:g}", features),
        ("gaps", "expected gaps", f"max_gap_drift={settings.max_gap_drift:g}", gaps),
    ]
    reasons = []
    for code, what, bound, drifted in kinds:
        share = sum(num_new for num_new, _ in drifted) / max(total, 1)
        if drifted and share > settings.new_domain_share:
            said = (
                f"{what} of new rows drifted ({named([each for _, each in drifted])}), more than refresh.{bound}; "
                f"they are {share:.1%} of the rows, more than refresh.new_domain_share={settings.new_domain_share:g}"
            )
            reasons.append(Reason(code=code, said=said))
    return reasons


def check_gates(
    run: Run, weights: LakeWeights, before: Manifest | None, num_rows: int, settings: RefreshConfig, *, forced: bool
) -> list[Gate]:
    """What has to hold before the weights are published.

    Args:
        run: whose weights they are.
        weights: made, and so their identities checked.
        before: the newest version.
        num_rows: of the lake.
        settings: the bounds.
        forced: whether drift is let pass.
    """
    verdict = run.record["verdict"]["status"]
    told = f"the verdict on run {run.run_id} is {verdict!r}; published are {', '.join(settings.verdicts) or 'none'}"
    gates = [
        Gate(name="verdict", passed=verdict in settings.verdicts, said=f"{told} (refresh.verdicts)"),
        Gate(name="identities", passed=True, said="the weights add up"),
        _row_weight_gate(weights, settings),
    ]
    if before is not None:
        drift = drift_from(before, weights)
        passed = "" if drift <= settings.max_drift or not forced else ", forced"
        said = f"the domain weights changed by {drift:.3f}; refresh.max_drift={settings.max_drift:g}{passed}"
        gates.append(Gate(name="drift", passed=drift <= settings.max_drift or forced, said=said))
    share = 1 - weights.samples.num_rows / max(num_rows, 1)
    said = f"{share:.1%} of the rows get no weight; refresh.max_unweighted_share={settings.max_unweighted_share:g}"
    gates.append(Gate(name="unweighted", passed=share <= settings.max_unweighted_share, said=said))
    validation = _validation_gate(run, before, settings) if before is not None else None
    return [*gates, validation] if validation else gates


def _validation_gate(run: Run, before: Manifest, settings: RefreshConfig) -> Gate | None:
    """Whether models trained on the run's domain weights are worse than those trained on the version's; by its record.

    None for a run that the version is of. A run that was not compared with that version passes, and why is said.
    """
    if run.run_id == before.run_id:
        return None
    found = run.record.get("last_version")
    if found is None or found["run_id"] != before.run_id:
        said = f"not compared: run {run.run_id} was not learned by a refresh of the weights of run {before.run_id}"
        return Gate(name="validation", passed=True, said=said)
    if found.get("why_not"):
        said = f"run {run.run_id} was not compared with version {found['version']}: {found['why_not']}"
        return Gate(name="validation", passed=True, said=said)
    said = (
        f"models trained on the new domain weights differ from those of version {found['version']} by "
        f"{found['difference']:+.3f} nats per token on {found['num_rows']} target rows kept out, 95 % interval "
        f"[{found['difference_low']:+.3f}, {found['difference_high']:+.3f}]; refresh.max_val_rise="
        f"{settings.max_val_rise:g}"
    )
    return Gate(name="validation", passed=found["difference_low"] <= settings.max_val_rise, said=said)


def _row_weight_gate(weights: LakeWeights, settings: RefreshConfig) -> Gate:
    """Whether no row weighs too little or too much; rows without a weight do not count."""
    found = pc.min_max(weights.samples["sample_weight"]).as_py()
    low, high = found["min"] or 0.0, found["max"] or 0.0
    said = (
        f"rows weigh {low:.3g} … {high:.3g}, where the mean is 1; refresh.min_row_weight={settings.min_row_weight:g}, "
        f"refresh.max_row_weight={settings.max_row_weight:g}"
    )
    return Gate(name="row_weight", passed=settings.min_row_weight <= low and high <= settings.max_row_weight, said=said)


def drift_from(before: Manifest, weights: LakeWeights) -> float:
    """½ Σ |now − then| of the domain weights against those of a version, from 0 to 1."""
    then = {row["domain"]: row["domain_weight"] for row in before.extra.get("domains", ())}
    return total_variation(then, {row["domain"]: row["domain_weight"] for row in weights.domains})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"weights": {"floor": 0}} → {"weights.floor": 0}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def named(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return separator.join(names[:MOST_NAMED]) + (f"{separator}and {more} more" if more > 0 else "")
