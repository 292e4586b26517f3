"""Rows with weights for tests of selections: tables for the macros, and a lake with a run that was recorded by hand."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors import duck
from curator import trajectory
from curator.lake import Lake
from curator.learn import RECORD
from curator.macros import TOKENS, create_macros
from curator.weights import SCHEMA, WEIGHTS

DOMAINS = ["web", 'it\'s "odd" / 100%', "código\n'; DROP TABLE x; --"]


@dataclass(frozen=True)
class Row:
    sample_id: str
    domain: str
    sample_weight: float | None
    num_tokens: int


def some_rows(num: int, seed: int = 0, *, ties: bool = False) -> list[Row]:
    """Rows of all domains; some without a weight, some of weight 0, all weights alike in a domain with `ties`."""
    rng = random.Random(seed)
    rows = []
    for i in range(num):
        domain = rng.choice(DOMAINS)
        weight = DOMAINS.index(domain) / 2 if ties else rng.choice([0.0, rng.gammavariate(1, 1), 1e-6, 3.0])
        given = None if rng.random() < 0.05 else float(np.float32(weight))
        rows.append(Row(f"id {i} '\"ü", domain, given, rng.randint(1, 40)))
    return rows


def session(rows: list[Row], **more: object) -> duck.Connection:
    """A connection with `samples`, `sample_tokens` and the macros; `more` are further columns."""
    connection = duck.connect()
    table = pa.table(
        {
            "sample_id": [row.sample_id for row in rows],
            "domain": [row.domain for row in rows],
            "sample_weight": pa.array([row.sample_weight for row in rows], pa.float32()),
            **more,
        }
    )
    tokens = pa.table({"sample_id": table["sample_id"], "num_tokens": [row.num_tokens for row in rows]})
    for name, each in {"samples": table, TOKENS: tokens}.items():
        connection.register(f"{name}_table", each)
        connection.execute(f"CREATE TEMP TABLE {name} AS FROM {name}_table")
        connection.unregister(f"{name}_table")
    create_macros(connection)
    return connection


# the witness: the definitions of curator.macros in plain Python ---------------------------------------------------


def draw(sample_id: str, seed: int) -> float:
    digest = hashlib.md5(f"{seed}:{sample_id}".encode()).digest()
    return ((int.from_bytes(digest[8:], "little") >> 12) + 0.5) / 2**52


def top_k(rows: list[Row], fraction: float) -> dict[str, int]:
    taken = {}
    for domain in {row.domain for row in rows}:
        own = [row for row in rows if row.domain == domain and row.sample_weight is not None]
        own.sort(key=lambda row: (-row.sample_weight, draw(row.sample_id, 0), row.sample_id))
        taken |= {row.sample_id: 1 for row in own[: math.ceil(fraction * len(own) - 1e-9)]}
    return taken


def weighted_sample(rows: list[Row], n: int, seed: int) -> dict[str, int]:
    keyed = [(-math.log(draw(r.sample_id, seed)) / r.sample_weight, r.sample_id) for r in rows if r.sample_weight]
    return {sample_id: 1 for _, sample_id in sorted(keyed)[:n]}


def repeats(rows: list[Row], factor: float, max_repeats: int, seed: int) -> dict[str, int]:
    expected = {r.sample_id: min(max_repeats, factor * r.sample_weight) for r in rows if r.sample_weight}
    rounded = {i: math.floor(r) + (draw(i, seed) < r - math.floor(r)) for i, r in expected.items()}
    return {i: count for i, count in rounded.items() if count}


def token_budget(rows: list[Row], tokens: float, max_repeats: int, seed: int) -> dict[str, int]:
    copies = [
        ((c + draw(row.sample_id, seed)) / row.sample_weight, row.sample_id, row.num_tokens)
        for row in rows
        if row.sample_weight
        for c in range(max_repeats)
    ]
    taken: dict[str, int] = defaultdict(int)
    for _, sample_id, num_tokens in sorted(copies):
        if num_tokens > tokens:
            break
        tokens -= num_tokens
        taken[sample_id] += 1
    return dict(taken)


def mixture(rows: list[Row], shares: dict[str, float], tokens: int, max_repeats: int, seed: int) -> dict[str, int]:
    taken = {}
    for domain, share in shares.items():
        own = [row for row in rows if row.domain == domain]
        taken |= token_budget(own, tokens * share / sum(shares.values()), max_repeats, seed)
    return taken


def buckets(rows: list[Row], num: int) -> dict[str, str]:
    found = {}
    for domain in {row.domain for row in rows}:
        own = [row for row in rows if row.domain == domain and row.sample_weight is not None]
        own.sort(key=lambda row: (row.sample_weight, draw(row.sample_id, 0), row.sample_id))
        found |= {row.sample_id: f"{domain}/q{1 + place * num // len(own)}" for place, row in enumerate(own)}
    return found


# a published lake -------------------------------------------------------------------------------------------------


def record_run(lake: Lake, folder: Path, seed: int = 0, run_id: str = "by-hand", favour: float = 1.0) -> str:
    """Record a finished run whose weights differ by row and hold the identities; returns its id.

    Rows of the first domain weigh `favour` times what they would.
    """
    lake.ingest()
    index = lake.connection.sql("SELECT sample_id, domain FROM sample_index WHERE usable ORDER BY 1").to_arrow_table()
    rng = np.random.default_rng(seed)
    num = index.num_rows
    tokens = rng.integers(5, 60, num)
    weight = rng.gamma(0.7, 1, num)
    domain = np.array(index["domain"].to_pylist())
    weight[domain == DOMAINS[0]] *= favour
    weight /= weight.mean()
    share = {name: float((weight * tokens)[domain == name].sum() / (weight * tokens).sum()) for name in set(domain)}
    columns = [index["sample_id"], index["domain"], tokens, np.array([share[d] for d in domain], "f4"), weight]
    arrays = [pa.array(each) if isinstance(each, np.ndarray) else each for each in columns]
    samples = pa.Table.from_arrays(arrays, names=SCHEMA.names).cast(SCHEMA)
    domains = [
        {
            "domain": name,
            "domain_weight": share[name],
            "natural_share": float(tokens[domain == name].sum() / tokens.sum()),
            "ratio": 1.0,
            "num_samples": int((domain == name).sum()),
            "num_tokens": int(tokens[domain == name].sum()),
        }
        for name in sorted(set(domain))
    ]
    record = {
        "run_id": run_id,
        "created_at": "2026-11-25T00:00:00+00:00",
        "status": "finished",
        "learn": {"method": "by hand", "model": "none", "steps": 0, "seed": seed},
        "target": {"url": "none"},
        "snapshot_id": lake.snapshot_id,
        "verdict": {"status": "converged", "reason": "written by hand"},
        "summary": None,
        "seconds": 0.0,
        "run_dir": str(folder),
        "lake": {name: getattr(lake.config, name) for name in ("text", "domain", "key", "skip_bad_rows")},
        "domains": domains,
    }
    folder.mkdir()
    pq.write_table(samples, folder / WEIGHTS)
    pq.write_table(trajectory.SCHEMA.empty_table(), folder / trajectory.TABLE)
    (folder / RECORD).write_text(json.dumps(record))
    lake.record_run(folder, record)
    return run_id
