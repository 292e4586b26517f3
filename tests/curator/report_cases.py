"""Lakes with runs that were not learned but written down, and pages as a parser sees them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lake_cases import write_lake, write_rows

import curator
from curator import row_gaps, trajectory
from curator.comparison import Comparison, MixtureResult
from curator.leaks import LeakReport

RUN_ID = "20261125T120831-ebb534"
_VOID = {"br", "link", "meta"}


def a_record(names: Sequence[str] = ("news", "code", "mail"), **changes: Any) -> dict[str, Any]:
    """The record of a run whose domains get 1 : 2 : 3 … and have equal parts by nature."""
    num = len(names)
    weights = [2 * (d + 1) / (num * (num + 1)) for d in range(num)]
    domains = [
        {
            "domain": name,
            "domain_weight": weight,
            "natural_share": 1 / num,
            "ratio": weight * num,
            "num_samples": 1000 + d,
            "num_tokens": 100_000 + d,
            "ci_low": weight * 0.9,
            "ci_high": weight * 1.1,
            "tokens_seen": 50_000 + d,
        }
        for d, (name, weight) in enumerate(zip(names, weights, strict=True))
    ]
    record = {
        "schema_version": 1,
        "run_id": RUN_ID,
        "status": "finished",
        "created_at": "2026-11-25T12:13:05+00:00",
        "seconds": 276.2,
        "run_dir": "/runs/here",
        "snapshot_id": "448baf21d3c3",
        "lake": {"url": "lake", "text": "text", "domain": "domain", "key": None, "skip_bad_rows": False},
        "target": {"url": "/targets/some.parquet", "text": "text", "num_samples": 450, "num_tokens": 213_404},
        "leaks": LeakReport(
            num_rows=9009, num_exact=3, num_near=2, num_overlapping=7, by_domain={names[0]: 5}, examples=["s1", "s2"]
        ).to_json(),
        "learn": {
            "method": "scalebio",
            "model": "tiny",
            "steps": 300,
            "seed": 17,
            "branch_steps": 25,
            "weights": {"learning_rate": 0.1, "budget_tokens": None},
        },
        "backend": {
            "name": "megatron-core",
            "num_layers": 4,
            "num_parameters": 853_120,
            "layout": "TP=1 PP=1 DP=2",
            "device": "cpu",
            "versions": {"torch": "2.13.0", "megatron-core": "0.16.1"},
        },
        "domains": domains,
        "summary": {
            "val_loss_first": 6.9239,
            "val_loss_last": 4.7808,
            "aux_val_loss_last": 5.0423,
            "signal_to_noise": 8.53,
            "chance_signal": 3.14,
        },
        "compute_tokens": 6_201_018.0,
        "verdict": {"status": "converged", "reason": "the weights moved by 3.2% between the last two quarters"},
        "line_search": {
            "places": [0.0, 0.5, 1.0],
            "val_losses": [6.1881, 6.0832, 6.1597],
            "differences": [0.0, -0.1688, -0.0412],
            "num_seeds": [5, 5, 3],
            "place": 0.5,
            "difference": -0.1688,
            "difference_low": -0.2687,
            "difference_high": -0.0689,
            "num_rows": 112,
            "compute_tokens": 2_949_550.0,
            "weights": weights,
        },
    }
    return record | changes


def some_steps(num: int, num_domains: int) -> list[dict[str, Any]]:
    """Step records with everything the report draws; u is measured at every twentieth, gaps from the second on."""
    rng = np.random.default_rng(0)
    records = []
    for step in range(num):
        weights = rng.dirichlet(np.ones(num_domains)).tolist()
        names = [column for column in trajectory.SCHEMA.names if column != "run_id"]
        record = dict.fromkeys(names, 0.0) | {"step": step, "clipped": False, "tokens": step, "weights": weights}
        record |= {"average_weights": weights, "weight_grads": weights, "val_loss": 7 - step / num}
        record["aux_val_loss"] = 8.0 if step % 20 == 0 else None
        record["gaps"] = [0.0] * num_domains if step == 0 else (rng.normal(size=num_domains) - 0.5).tolist()
        records.append(record)
    return records


def a_comparison(name: str = "learned", run_id: str = RUN_ID, **changes: Any) -> Comparison:
    """uniform against one mixture, which a run found."""
    reference = MixtureResult(
        mixture="uniform",
        run_id=None,
        judgement="reference",
        test_loss=5.5284,
        test_loss_low=5.42,
        test_loss_high=5.63,
        difference=0.0,
        difference_low=0.0,
        difference_high=0.0,
        train_loss=5.0,
        train_tokens=614_363.0,
        max_epochs=0.17,
        most_repeated="code",
        learn_seconds=0.0,
        learn_tokens=0.0,
        train_seconds=288.0,
        weights={},
    )
    own = dataclasses.replace(
        reference,
        mixture=name,
        run_id=run_id,
        judgement="better",
        test_loss=5.2829,
        difference=-0.2455,
        difference_low=-0.2996,
        difference_high=-0.1914,
    )
    own = dataclasses.replace(own, **{key: value for key, value in changes.items() if hasattr(own, key)})
    return Comparison(
        comparison_id=changes.get("comparison_id", "20261125T130532-728e25"),
        created_at=changes.get("created_at", "2026-11-25T13:05:32+00:00"),
        snapshot_id="448baf21d3c3",
        target="/targets/some.parquet",
        test="/targets/test.parquet",
        num_test_rows=300,
        num_test_tokens=144_025,
        num_left_out=4,
        tokens=614_400,
        compare={"model": "tiny", "seeds": 3},
        results=(reference, own),
        location="",
    )


def lake_with(
    folder: Path,
    record: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]] = (),
    comparisons: Sequence[Comparison] = (),
) -> Path:
    """A lake whose destination has this run, its steps and these comparisons."""
    lake = write_lake(folder / "lake") if not (folder / "lake").exists() else folder / "lake"
    home = lake / "_curator" / "runs" / record["run_id"]
    home.mkdir(parents=True)
    (home / "run.json").write_text(json.dumps(record))
    (home / trajectory.LINES).write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    if steps:
        trajectory.write(home, record["run_id"], [row["domain"] for row in record["domains"]])
    for found in comparisons:
        place = lake / "_curator" / "comparisons" / found.comparison_id
        place.mkdir(parents=True)
        (place / "comparison.json").write_text(json.dumps(found.to_json()))
    return lake


def lake_with_rows(
    folder: Path, texts: Mapping[str, Sequence[str]], *, more_figures: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    """A lake of these texts by domain, and a run that measured all of them: weights 1/8 … 8 along each domain."""
    lake = folder / "lake"
    names = [name for name, each in texts.items() for _ in each]
    write_rows(lake / "a.parquet", text=[text for each in texts.values() for text in each], domain=names)
    with curator.open_lake(str(lake), min_domain_rows=1) as opened:
        opened.ingest()
        ids = dict(opened.sql("SELECT text, sample_id FROM samples").fetchall())
    rows = [
        {
            "run_id": RUN_ID,
            "sample_id": ids[text],
            "domain": name,
            "loss": 3.0,
            "gap": -0.01 * place,
            "relative_gap": 0.1 - 0.01 * place,
            "standard_error": 0.02,
            "snapshots": 6,
            "row_weight": 2.0 ** (6 * place / max(1, len(each) - 1) - 3),
        }
        for name, each in texts.items()
        for place, text in enumerate(each)
    ]
    weights = [row["row_weight"] for row in rows]
    figures = {
        "reliability": 0.4321,
        "share": 0.5,
        "num_rows": len(rows),
        "snapshots": 6,
        "quantiles": {str(q): float(np.quantile(weights, q)) for q in row_gaps.QUANTILES},
    }
    lake_with(
        folder, a_record(list(texts), rows=figures | (more_figures or {}), **changes), some_steps(300, len(texts))
    )
    place = lake / "_curator" / "runs" / RUN_ID / row_gaps.TABLE
    pq.write_table(pa.Table.from_pylist(rows, schema=row_gaps.SCHEMA), place)
    return lake


@dataclass
class Node:
    """An element, or with the name "" a text."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)
    data: str = ""

    @property
    def text(self) -> str:
        return self.data + "".join(child.text for child in self.children)

    def all(self, *names: str) -> list[Node]:
        """The elements below it, in their order; of these names, if some are given."""
        found = []
        for child in self.children:
            if child.name and (not names or child.name in names):
                found.append(child)
            found += child.all(*names)
        return found


class _Tree(HTMLParser):
    """Fails where elements are not closed in the order in which they were opened."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("root")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(Node("", data=data))


def parsed(page: str) -> Node:
    tree = _Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == [tree.root]
    return tree.root


def table(page: Node, caption: str) -> list[list[str]]:
    """The rows of the one table whose caption starts so, its heads first."""
    (found,) = [each for each in page.all("table") if each.all("caption")[0].text.startswith(caption)]
    return [[cell.text for cell in row.all("th", "td")] for row in found.all("tr")]


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else math.pow((part + 0.055) / 1.055, 2.4) for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
