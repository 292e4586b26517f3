"""A selection as a dataset of its own: Parquet files that say where they come from, written as the rows stream by.

A local folder is written beside its place and renamed: it appears whole or not at all. On object storage the files come
first and `_manifest.json`, which names them, last; so a folder without one is unfinished. Replacing writes files of
other names, then the manifest, then removes the old files; a local folder is renamed away and removed.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from connectors import duck
from connectors.commit import Version
from connectors.store import (
    Store,
    delete,
    exists,
    list_objects,
    read_bytes,
    stat_object,
    write_object,
)
from curator.errors import InputError, StorageError, UsageError, one_line
from curator.macros import TOKENS
from curator.mixtures import check_domains
from curator.parts import staging, write_parts
from curator.progress import Progress, ProgressCallback
from curator.selection import MixtureBudget, Quantiles, Selection, TokenBudget, TopK, WeightedSample

if TYPE_CHECKING:
    from curator.lake import Lake

MANIFEST = "_manifest.json"
_FOOTER = "lake-curator"
_BATCH_ROWS = 8192
_NOTED_LOSS = 0.02
"""Share of the tokens that a domain lacks to its weight before it is said."""


@dataclass(frozen=True, kw_only=True)
class SelectedDomain:
    """What a selection takes of one domain; `num_rows` and `num_tokens` count a row as often as it is repeated."""

    domain: str
    num_distinct: int
    num_rows: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Materialization:
    """A selection of a version's rows that was written, or with a dry run would be.

    `num_rows` and `num_tokens` count a row as often as it is repeated, whether it was written so or once with its
    `repeats`; tokens are those that the run counted. `size_bytes` and `num_files` are 0 for a dry run. `notes` say
    where the selection is not what its weights ask for.
    """

    location: str
    run_id: str
    version: int
    selection: dict[str, Any]
    num_rows: int
    num_tokens: int
    num_files: int
    size_bytes: int
    domains: list[SelectedDomain]
    notes: tuple[str, ...]
    created: bool


def materialize(
    lake: Lake,
    selection: Selection,
    place: Store,
    version: Version,
    on_progress: ProgressCallback,
    *,
    repeat_rows: bool,
    overwrite: bool,
    dry_run: bool,
) -> Materialization:
    """Write the selected rows of a version to `place`; see `Lake.materialize`."""
    old = _check_free(place, overwrite=overwrite)
    _check_ids(lake, version)
    if isinstance(selection, MixtureBudget):
        known = lake.sql("SELECT DISTINCT domain FROM samples ORDER BY 1", version=version.number).fetchall()
        check_domains([domain for (domain,) in known], selection.shares, "the mixture")
    domains = _count(lake, selection, version)
    if not dry_run:
        if not domains:
            raise UsageError(f"{selection.call} selects no row of version {version.number}; nothing was written")
        token = secrets.token_hex(4)
        with lake.writing(), staging(place, token) as staged:
            rows = _rows(lake, selection, version, repeat_rows=repeat_rows)
            footer = {"schema_version": 1, **_provenance(lake, selection, version)}
            total = sum(each.num_rows if repeat_rows else each.num_distinct for each in domains)
            files = _write(staged, token, rows, json.dumps(footer), total, on_progress)
            record = footer | {
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "repeat_rows": repeat_rows,
                "domains": [asdict(each) for each in domains],
                "files": files,
            }
            write_object(staged, MANIFEST, json.dumps(record, indent=1, ensure_ascii=False).encode())
        for path in old if staged is place else []:
            delete(place, path)
    return Materialization(
        location=place.url,
        run_id=version.run_id,
        version=version.number,
        selection=selection.values,
        num_rows=sum(each.num_rows for each in domains),
        num_tokens=sum(each.num_tokens for each in domains),
        num_files=0 if dry_run else len(files),
        size_bytes=0 if dry_run else sum(file["size_bytes"] for file in files),
        domains=domains,
        notes=_notes(lake, selection, version, domains),
        created=not dry_run,
    )


def _provenance(lake: Lake, selection: Selection, version: Version) -> dict[str, Any]:
    return {
        "lake": lake.url,
        "run_id": version.run_id,
        "version": version.number,
        "snapshot_id": version.snapshot_id,
        "selection": selection.values,
        "sql": f"FROM {selection.call}",
    }


def _check_free(place: Store, *, overwrite: bool) -> list[str]:
    """The files of an earlier materialization that are to be replaced.

    Raises:
        UsageError: there is anything else, or it may not be replaced.
    """
    if place.is_local and Path(place.path).is_file():
        raise UsageError(f"{place.url} is a file", hint="name a folder")
    found = [info.path for info in list_objects(place, with_temporaries=True)]
    if not found:
        return []
    if not exists(place, MANIFEST):
        raise UsageError(
            f"{place.url} is not empty and has no {MANIFEST} of an earlier call, so that it is not replaced",
            hint="name another folder, or remove what is there",
        )
    if not overwrite:
        raise UsageError(
            f"{place.url} is there already", hint="name another folder, or allow it to be replaced (--overwrite)"
        )
    try:
        ours = {MANIFEST, *(file["path"] for file in json.loads(read_bytes(place, MANIFEST))["files"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{place.describe(MANIFEST)} cannot be read ({error})", hint="name another folder, or remove this one"
        ) from error
    if foreign := sorted(set(found) - ours):
        raise UsageError(
            f"{place.describe(foreign[0])} is not of the earlier call that wrote {place.url}, so that the folder is "
            "not replaced",
            hint="move it away, or name another folder",
        )
    return sorted(ours - {MANIFEST})


def _check_ids(lake: Lake, version: Version) -> None:
    """Refuse a version whose weighted rows cannot all be told apart: a selection would pass them over in silence."""
    query = "SELECT count(*) FROM samples WHERE sample_weight IS NOT NULL AND sample_id IS NULL"
    (num_nameless,) = lake.sql(query, version=version.number).fetchall()[0]
    if num_nameless:
        raise InputError(
            f"{num_nameless:,} rows of version {version.number} have no id any more, since their files in {lake.url} "
            "have changed",
            hint="publish the run again, or restore the files",
        )


def _rows(lake: Lake, selection: Selection, version: Version, *, repeat_rows: bool) -> duck.Relation:
    """The selected rows with `num_tokens` and, if they are not repeated themselves, `repeats`."""
    columns = lake.select(selection, version=version.number).columns
    query = f"SELECT q.* FROM {selection.call} AS q"
    if "num_tokens" not in columns:
        query = f"SELECT q.*, t.num_tokens FROM {selection.call} AS q JOIN {TOKENS} AS t ON t.sample_id = q.sample_id"
    if repeat_rows and "repeats" in columns:
        copy = "copy"
        while copy in map(str.casefold, columns):
            copy = f"_{copy}"
        query = f"SELECT * EXCLUDE (repeats, {copy}) FROM (SELECT *, unnest(range(repeats)) AS {copy} FROM ({query}))"
    return lake.sql(f"SELECT * EXCLUDE (usable) FROM ({query})", version=version.number)


def _count(lake: Lake, selection: Selection, version: Version) -> list[SelectedDomain]:
    """By domain, sorted by name."""
    rows = _rows(lake, selection, version, repeat_rows=False)
    times = "repeats" if "repeats" in rows.columns else "1"
    counted = rows.aggregate(
        f"domain, count(*), CAST(sum({times}) AS BIGINT), CAST(sum({times} * num_tokens) AS BIGINT)", "domain"
    )
    return [
        SelectedDomain(domain=domain, num_distinct=distinct, num_rows=num_rows, num_tokens=num_tokens)
        for domain, distinct, num_rows, num_tokens in sorted(counted.fetchall())
    ]


def _notes(lake: Lake, selection: Selection, version: Version, domains: Sequence[SelectedDomain]) -> tuple[str, ...]:
    """What of the weights is lost, where there are too few rows for what was asked."""
    num_rows, num_tokens = sum(d.num_rows for d in domains), sum(d.num_tokens for d in domains)
    if isinstance(selection, WeightedSample) and num_rows < selection.n:
        return (
            f"only {num_rows:,} rows have a weight, fewer than n={selection.n:,}, so that all are taken whatever they "
            "weigh: ask for fewer",
        )
    if isinstance(selection, TopK | Quantiles):
        noted = (run.note_on_ranks for run in lake.runs() if run.run_id == version.run_id)
        return tuple(note for note in noted if note)
    if not isinstance(selection, TokenBudget) or not domains:
        return ()
    most, remedy = selection.max_repeats, "lower the budget, or raise max_repeats"
    said = lake.connector.read_manifest(version).extra.get("domains") or ()
    weights = {row["domain"]: row["domain_weight"] for row in said}
    short = [
        (weights[d.domain] - d.num_tokens / num_tokens, d)
        for d in domains
        if d.num_rows == most * d.num_distinct and d.domain in weights
    ]
    found = []
    lost, worst = max(short, key=lambda item: item[0], default=(0.0, domains[0]))
    if lost > _NOTED_LOSS:
        found.append(
            f"rows are taken {most} times at most, so that {worst.domain!r} has {worst.num_tokens / num_tokens:.3f} of "
            f"the tokens instead of the {weights[worst.domain]:.3f} of its weight: {remedy}"
        )
    if all(d.num_rows == most * d.num_distinct for d in domains) and num_tokens < selection.tokens:
        found.append(
            f"all rows with a weight, {most} times each, are {num_tokens:,} of the {selection.tokens:,} tokens: "
            f"{remedy}"
        )
    return tuple(found)


def _write(
    staged: Store, token: str, rows: duck.Relation, footer: str, total: int, on_progress: ProgressCallback
) -> list[dict[str, Any]]:
    """Write the rows; (path, num_rows, size_bytes) of each file."""
    reader = rows.to_arrow_reader(_BATCH_ROWS)
    schema = reader.schema.with_metadata({_FOOTER: footer})

    def tell(done: int, path: str) -> None:
        on_progress(Progress(stage="materialize", done=done, total=total, detail=path))

    files = write_parts(staged, token, schema, _batches(reader), tell)
    done = sum(num_rows for _, num_rows in files)
    if done != total:
        raise StorageError(
            f"{done:,} rows were read where {total:,} had been counted", hint="the lake changed, try again"
        )
    return [
        {"path": path, "num_rows": num_rows, "size_bytes": stat_object(staged, path).size_bytes}
        for path, num_rows in files
    ]


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """What cannot be read is told from what cannot be written."""
    try:
        yield from reader
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"the selected rows cannot be read: {one_line(error)}") from error
