"""The DuckDB side of a lake: a catalog file with the row index, and views that answer SQL.

The catalog file caches what ingest read (tables `files` and `sample_index`, see `connectors.duck`); it can be thrown
away. Runs and versions are truth elsewhere, as records in the destination store, and become temporary tables of a
session: `runs`, `domain_weights`, `clusters`, `comparisons`, `versions`, and the views `diagnostics`, `row_gaps` and
`samples`; the view `duplicates` asks the index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors import duck
from connectors.commit import restored_number
from connectors.connector import Connector
from connectors.garbage import DATA_FOLDER
from connectors.manifest import Manifest
from connectors.plain import Corpus
from connectors.store import ObjectInfo, Store, exists, list_objects, read_bytes
from curator import macros, row_gaps, trajectory
from curator.errors import StorageError
from curator.weights import WEIGHTS

RUN_FOLDER = "runs"
COMPARISON_FOLDER = "comparisons"
COMPARISON_RECORD = "comparison.json"
WEIGHT_COLUMNS = ("sample_weight", "domain_weight", "weight_run_id")

_FIGURES = (
    "aux_val_loss_last",
    "distance_last",
    "train_gap_last",
    "weight_grad_norm_last",
    "chance_signal",
    "entropy",
    "movement",
    "swing",
    "uncertainty",
    "logit_travel",
    "reachable_range",
    "clipped_share",
)
"""Figures of a run's summary that `runs` shows under their own names; NULL in records that lack them."""
_RUNS = pa.schema(
    {
        "run_id": pa.string(),
        "created_at": pa.string(),
        "status": pa.string(),
        "method": pa.string(),
        "model": pa.string(),
        "steps": pa.int64(),
        "seed": pa.int64(),
        "target": pa.string(),
        "snapshot_id": pa.string(),
        "verdict": pa.string(),
        "verdict_reason": pa.string(),
        "val_loss": pa.float64(),
        "signal_to_noise": pa.float64(),
        "compute_tokens": pa.float64(),
        **dict.fromkeys(_FIGURES, pa.float64()),
        "seconds": pa.float64(),
        "num_leaks": pa.int64(),
        "leak_share": pa.float64(),
        "num_duplicates": pa.int64(),
        "duplicate_share": pa.float64(),
        "run_dir": pa.string(),
    }
)
_DOMAIN_WEIGHTS = pa.schema(
    {
        "run_id": pa.string(),
        "domain": pa.string(),
        "domain_weight": pa.float64(),
        "natural_share": pa.float64(),
        "ratio": pa.float64(),
        "num_samples": pa.int64(),
        "num_tokens": pa.int64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "tokens_seen": pa.int64(),
    }
)
_CLUSTERS = pa.schema([_DOMAIN_WEIGHTS.field("run_id"), pa.field("cluster", pa.string()), *list(_DOMAIN_WEIGHTS)[1:]])
_CLUSTERS = _CLUSTERS.append(pa.field("words", pa.string()))
_COMPARISONS = pa.schema(
    {
        "comparison_id": pa.string(),
        "created_at": pa.string(),
        "snapshot_id": pa.string(),
        "target": pa.string(),
        "test": pa.string(),
        "model": pa.string(),
        "num_test_rows": pa.int64(),
        "num_left_out": pa.int64(),
        "tokens": pa.int64(),
        "seeds": pa.int64(),
        "mixture": pa.string(),
        "run_id": pa.string(),
        "judgement": pa.string(),
        **dict.fromkeys(
            (
                "test_loss",
                "test_loss_low",
                "test_loss_high",
                "difference",
                "difference_low",
                "difference_high",
                "train_loss",
                "train_tokens",
                "max_epochs",
                "learn_seconds",
                "learn_tokens",
                "train_seconds",
            ),
            pa.float64(),
        ),
        "most_repeated": pa.string(),
        "location": pa.string(),
    }
)
_VERSIONS = pa.schema(
    {
        "version": pa.int64(),
        "created_at": pa.string(),
        "run_id": pa.string(),
        "snapshot_id": pa.string(),
        "num_files": pa.int64(),
        "num_rows": pa.int64(),
        "location": pa.string(),
        "restores": pa.int64(),
        "gone_since": pa.int64(),
    }
)


def list_records(destination: Store) -> list[ObjectInfo]:
    """The records of runs and of comparisons, not read."""
    return _list_run_records(destination) + _list_comparison_records(destination)


def _list_run_records(destination: Store) -> list[ObjectInfo]:
    listed = list_objects(destination, "/run.json", prefix=RUN_FOLDER)
    return [info for info in listed if info.path.count("/") == 2]


def _list_comparison_records(destination: Store) -> list[ObjectInfo]:
    return list_objects(destination, f"/{COMPARISON_RECORD}", prefix=COMPARISON_FOLDER)


def read_run_records(destination: Store) -> list[dict[str, Any]]:
    """Every finished run that the lake knows, oldest first."""
    records = [_parse_record(destination, info.path, _run_row) for info in _list_run_records(destination)]
    by_id = {record["run_id"]: record for record in records}  # a run folder inside `runs` holds the same record again
    return sorted(by_id.values(), key=lambda record: (record["created_at"], record["run_id"]))


def read_comparison_records(destination: Store) -> list[dict[str, Any]]:
    """Every comparison that the lake knows, oldest first."""
    paths = [info.path for info in _list_comparison_records(destination)]
    records = [
        _parse_record(destination, path, _comparison_rows) | {"location": destination.describe(path.rpartition("/")[0])}
        for path in paths
    ]  # where it is now, should the lake have moved
    return sorted(records, key=lambda record: (record["created_at"], record["comparison_id"]))


def register_records(connection: duck.Connection, destination: Store, connector: Connector) -> None:
    """Make the temporary tables `runs`, `domain_weights`, `clusters`, `comparisons` and `versions` out of the records.

    And the views `diagnostics` over the steps of the runs (`curator.trajectory.SCHEMA`) and `row_gaps` over the rows
    that they measured (`curator.row_gaps.SCHEMA`).
    """
    records = read_run_records(destination)
    create_run_tables(connection, records)
    run_ids = [record["run_id"] for record in records]
    _create_run_view(connection, destination, run_ids, "diagnostics", trajectory.TABLE, trajectory.SCHEMA)
    _create_run_view(connection, destination, run_ids, "row_gaps", row_gaps.TABLE, row_gaps.SCHEMA)
    compared = [row for record in read_comparison_records(destination) for row in _comparison_rows(record)]
    _create_table(connection, "comparisons", _COMPARISONS, compared)
    create_versions_table(connection, connector)


def create_run_tables(
    connection: duck.Connection, records: Sequence[dict[str, Any]], *, temporary: bool = True
) -> None:
    """Make the tables `runs`, `domain_weights` and `clusters` out of the records of runs."""
    _create_table(connection, "runs", _RUNS, [_run_row(record) for record in records], temporary=temporary)
    domains = [domain | {"run_id": record["run_id"]} for record in records for domain in record["domains"]]
    _create_table(connection, "domain_weights", _DOMAIN_WEIGHTS, domains, temporary=temporary)
    clusters = [row | {"run_id": record["run_id"]} for record in records for row in record.get("clusters") or ()]
    _create_table(connection, "clusters", _CLUSTERS, clusters, temporary=temporary)


def create_versions_table(connection: duck.Connection, connector: Connector, *, temporary: bool = True) -> None:
    """Make the table `versions` out of the log."""
    _create_table(connection, "versions", _VERSIONS, version_rows(connector), temporary=temporary)


def _create_run_view(
    connection: duck.Connection, destination: Store, run_ids: Sequence[str], view: str, file: str, schema: pa.Schema
) -> None:
    """A view over a file in the folders of the runs that have it; it reads them when it is asked."""
    listed = {info.path for info in list_objects(destination, f"/{file}", prefix=RUN_FOLDER)}
    expected = [f"{RUN_FOLDER}/{run_id}/{file}" for run_id in run_ids]
    paths = [duck.quote_literal(duck.duck_path(destination, path)) for path in expected if path in listed]
    if paths:
        duck.register_store(connection, destination)
        source = f"read_parquet([{', '.join(paths)}], union_by_name = true)"  # older ones have fewer columns
    else:
        source = f"no_{view}"
        _create_table(connection, source, schema, [])
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT * FROM {source}")


def create_samples(connection: duck.Connection, corpus: Corpus, connector: Connector, destination: Store) -> None:
    """Make the view `samples`: every row of the lake with its id, domain, own columns, and published weights.

    The three weight columns come from the newest version, for files that are still as they were when it was made;
    NULL elsewhere. The macros that select rows by their weights come with it.
    """
    manifest = connector.current(corpus)
    _create_samples(connection, corpus, connector, manifest)
    create_selections(connection, destination, (manifest.run_id, manifest.snapshot_id) if manifest else None)


def _create_samples(
    connection: duck.Connection, corpus: Corpus, connector: Connector, manifest: Manifest | None
) -> None:
    published: dict[str, str] = {}
    if manifest:
        check_published_files(connector.data, manifest)
        published = unchanged_files(corpus, manifest)
    own = "r.* EXCLUDE (file_id, row)" + _renamed(corpus)
    if not published:
        nothing = ", ".join(
            f"NULL::{kind} AS {name}" for name, kind in zip(WEIGHT_COLUMNS, ("FLOAT", "FLOAT", "VARCHAR"), strict=True)
        )
        connection.execute(f"CREATE OR REPLACE TEMP VIEW samples AS SELECT {own}, {nothing} FROM lake_rows r")
        return
    duck.create_published_view(connection, "published_weights", connector.data, published, WEIGHT_COLUMNS)
    weights = ", ".join(f"p.{name}" for name in WEIGHT_COLUMNS)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW samples AS SELECT {own}, {weights} "
        "FROM lake_rows r LEFT JOIN published_weights p ON r.file_id = p.file_id AND r.row = p.row"
    )


def create_selections(connection: duck.Connection, destination: Store, weighted: tuple[str, str] | None) -> None:
    """Make the view `sample_tokens` and the macros of `curator.macros`, over `samples` with published weights.

    `sample_tokens` can be made and fails when it is read if nothing was published, or its record of tokens is gone.

    Args:
        connection: has `samples`.
        destination: has the records of tokens.
        weighted: the run and the snapshot of the lake that the weights are of; None if nothing was published.
    """
    name = macros.TOKENS
    if weighted is None:
        _create_failing_tokens(connection, "no run was published yet, so that rows have no weights")
    else:
        duck.register_store(connection, destination)
        path = tokens_path(destination, *weighted)
        try:
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {tokens_query(destination, path)}")
        except (duck.Error, OSError):
            place = destination.describe(path)
            _create_failing_tokens(connection, f"{place}, with the tokens of every row, cannot be read; restore it")
    macros.create_macros(connection)
    connection.execute(
        "CREATE OR REPLACE TEMP MACRO at_version(number) AS TABLE FROM query_table('version_' || number)"
    )


def tokens_query(destination: Store, path: str) -> str:
    """A SELECT of the target tokens (sample_id, num_tokens) of every row with a weight, out of such a record."""
    place = duck.quote_literal(duck.duck_path(destination, path))
    return f"SELECT sample_id, num_tokens FROM read_parquet({place}, hive_partitioning = false)"


def tokens_path(destination: Store, run_id: str, snapshot_id: str) -> str:
    """In the destination: the tokens of the rows that a run's weights were published for, in a snapshot of the lake.

    Those that the run counted, unless rows came since and got weights (`carried_tokens_path`).
    """
    carried = carried_tokens_path(run_id, snapshot_id)
    return carried if exists(destination, carried) else weights_path(run_id)


def carried_tokens_path(run_id: str, snapshot_id: str) -> str:
    """In the destination: the tokens of the rows of a snapshot that a run has not seen, some of them estimated."""
    return f"{DATA_FOLDER}/{run_id}-tokens-{snapshot_id}/tokens.parquet"


def weights_path(run_id: str) -> str:
    """In the destination: the row weights of a run."""
    return f"{RUN_FOLDER}/{run_id}/{WEIGHTS}"


def _create_failing_tokens(connection: duck.Connection, reason: str) -> None:
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {macros.TOKENS} AS "
        f"SELECT CAST(error({duck.quote_literal(reason)}) AS VARCHAR) AS sample_id, CAST(NULL AS BIGINT) AS num_tokens"
    )


def check_published_files(destination: Store, manifest: Manifest) -> None:
    """Check, by one listing, that the files of a version are there and of the size that was published.

    Raises:
        StorageError: naming the first that is not, and what to do.
    """
    listed = list_objects(destination, prefix=str(manifest.extra.get("folder", "")))
    sizes = {info.path: info.size_bytes for info in listed}
    for file in manifest.files:
        if sizes.get(file.published_path) != file.size_bytes:
            fault = "was changed after it" if file.published_path in sizes else "is gone although it"
            place = destination.describe(file.published_path)
            raise StorageError(f"{place} {fault} was published", hint="restore it, or learn again and publish that run")


def version_rows(connector: Connector) -> list[dict[str, Any]]:
    """The versions as rows of the table `versions`, oldest first; `restores` is the one a rollback went back to.

    `gone_since` is the one that let go its files (`curator gc --keep`), so that it cannot be read any more.
    """
    log = connector.read_log()
    rows = []
    for version in log:
        manifest = connector.read_manifest(version)
        rows.append(
            {
                "version": version.number,
                "created_at": version.committed_at,
                "run_id": version.run_id,
                "snapshot_id": version.snapshot_id,
                "num_files": len(manifest.files),
                "num_rows": sum(file.num_rows for file in manifest.files),
                "location": connector.data.describe(str(manifest.extra.get("folder", ""))),
                "restores": restored_number(log, version),
                "gone_since": version.collected_by,
            }
        )
    return rows


def _renamed(corpus: Corpus) -> str:
    """A RENAME clause for columns of the lake that have a name of ours: they appear as `original_…`."""
    names = sorted({*corpus.schema.names, *(key for file in corpus.files for key in file.partition)})
    clash = [duck.quote_identifier(name) for name in names if name.casefold() in WEIGHT_COLUMNS]
    return f" RENAME ({', '.join(f'{name} AS original_{name[1:-1]}' for name in clash)})" if clash else ""


def unchanged_files(corpus: Corpus, manifest: Manifest) -> dict[str, str]:
    """Source path → published path of the files that have not changed since the version was made."""
    now = {file.path: (file.size_bytes, file.version) for file in corpus.files}
    return {
        file.source_path: file.published_path
        for file in manifest.files
        if now.get(file.source_path) == (file.source_size_bytes, file.source_version)
    }


def _run_row(record: dict[str, Any]) -> dict[str, Any]:
    summary = record["summary"] or {}  # dsir and regmix take no steps
    leaks = record.get("leaks", {})  # runs of before there was a guard have none
    duplicates = record.get("duplicates", {})  # nor those of before they were counted
    return {
        "run_id": record["run_id"],
        "created_at": record["created_at"],
        "status": record["status"],
        "method": record["learn"].get("method", "scalebio"),  # records from before there were others
        "model": record["learn"]["model"],
        "steps": record["learn"]["steps"],
        "seed": record["learn"]["seed"],
        "target": record["target"]["url"],
        "snapshot_id": record["snapshot_id"],
        "verdict": record["verdict"]["status"],
        "verdict_reason": record["verdict"]["reason"],
        "val_loss": summary.get("val_loss_last"),
        "signal_to_noise": summary.get("signal_to_noise"),
        "compute_tokens": record.get("compute_tokens"),
        **{name: summary.get(name) for name in _FIGURES},
        "seconds": record["seconds"],
        "num_leaks": leaks.get("num_leaks"),
        "leak_share": leaks.get("share"),
        "num_duplicates": duplicates.get("num_duplicates"),
        "duplicate_share": duplicates.get("share"),
        "run_dir": record["run_dir"],
    }


def _create_table(
    connection: duck.Connection, name: str, schema: pa.Schema, rows: Sequence[dict[str, Any]], *, temporary: bool = True
) -> None:
    kind = "TEMP TABLE" if temporary else "TABLE"
    connection.register("incoming", pa.Table.from_pylist(list(rows), schema=schema))
    connection.execute(f"CREATE OR REPLACE {kind} {name} AS SELECT * FROM incoming")
    connection.unregister("incoming")


def _comparison_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a mixture."""
    shared = {name: record[name] for name in _COMPARISONS.names if name in record}
    shared |= {name: record["compare"][name] for name in ("model", "seeds")}
    return [
        shared | {name: row[name] for name in _COMPARISONS.names if name not in shared} for row in record["results"]
    ]


def _parse_record(destination: Store, path: str, check: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """A JSON record in which `check` finds what it needs."""
    try:
        record: dict[str, Any] = json.loads(read_bytes(destination, path))
        check(record)
    except (ValueError, KeyError, TypeError) as error:
        kind = "comparison" if path.endswith(COMPARISON_RECORD) else "run"
        raise StorageError(
            f"{destination.describe(path)} is not a {kind} record ({type(error).__name__}: {error})",
            hint=f"restore it, or remove its folder to forget the {kind}",
        ) from error
    return record


def catalog_path(workdir: Path) -> Path:
    """The catalog file of a lake."""
    return workdir / "catalog.duckdb"
