"""Where a run comes from: what it was learned on, with what, and under which settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curator.report.blocks import Block, Section, Side, Table
from curator.report.text import count, duration
from curator.run import Version


def provenance_section(
    record: Mapping[str, Any], lake_url: str, destination: str, versions: Sequence[Version]
) -> Section:
    """The run's identity, its versions, and every setting that it was learned with."""
    blocks: list[Block] = [
        Table(caption="The run", columns=["", "value"], rows=_identity(record, lake_url, destination), num_words=2)
    ]
    if versions:
        rows = [[str(each.version), each.created_at, each.location] for each in versions]
        columns = ["version", "published", "location"]
        blocks.append(Table(caption="Published as", columns=columns, rows=rows, num_words=3))
    blocks.append(Side([_settings(name, values) for name, values in _groups(record["learn"], "learn")]))
    return Section(anchor="provenance", heading="Provenance", blocks=blocks)


def _identity(record: Mapping[str, Any], lake_url: str, destination: str) -> list[list[str]]:
    lake, target, learn = record["lake"], record["target"], record["learn"]
    backend = record.get("backend") or {}
    versions = backend.get("versions") or {}
    rows = {
        "run": record["run_id"],
        "finished": record["created_at"],
        "took": duration(record["seconds"]),
        "method": learn.get("method", "scalebio"),
        "seed": learn["seed"],
        "model": learn["model"],
        "parameters": count(backend.get("num_parameters")) if backend else None,
        "backend": backend.get("name"),
        "layout": backend.get("layout"),
        "device": backend.get("device"),
        "software": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
        "lake": lake_url,
        "text column": lake["text"],
        "domain column": lake["domain"],
        "key": lake.get("key") or "a hash of domain and text",
        "snapshot": record["snapshot_id"],
        "target": target["url"],
        "target's rows": f"{target['num_samples']:,}, with {target['num_tokens']:,} tokens",
        "kept in": destination,
        "run folder": record["run_dir"],
    }
    return [[name, _plain(value)] for name, value in rows.items() if value is not None]


def _settings(name: str, values: Mapping[str, Any]) -> Table:
    rows = [[each, _plain(value)] for each, value in values.items()]
    return Table(caption=f"Settings: {name}", columns=["setting", "value"], rows=rows, num_words=2)


def _groups(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings of a section without those below it, then each of these."""
    yield prefix, {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _groups(value, f"{prefix}.{name}")


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
