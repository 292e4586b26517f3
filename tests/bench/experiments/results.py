"""The record of an experiment that goes into the tree: figures as they came out, with what they hold for.

`results/EXPERIMENT.json` beside this file, and `table` of it in optim/EXPERIMENTS.md: a test holds the two together, so
that no figure is typed by hand.

Run: python tests/bench/experiments/results.py EXPERIMENT, to print the table.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import megatron.core
import numpy as np
import torch
from scipy.stats import t

from curator.comparison import Comparison
from curator.run import Run

FOLDER = Path(__file__).parent / "results"


def write(
    experiment: str, comparison: Comparison, runs: Mapping[str, Sequence[Run]], shown: Sequence[tuple[bool, str]]
) -> Path:
    """Write the record of one experiment, and say where it is."""
    found = comparison.to_json()
    values = {
        "experiment": experiment,
        **provenance(),
        "finished_at": comparison.created_at,
        "seeds": comparison.compare["seeds"],
        "tokens": comparison.tokens,
        "model": comparison.compare["model"],
        "test_rows": comparison.num_test_rows,
        "results": [{k: v for k, v in row.items() if k != "run_id"} for row in found["results"]],
        "runs": {method: [_run(run) for run in own] for method, own in runs.items()},
        "shown": [{"holds": holds, "says": says} for holds, says in shown],
    }
    FOLDER.mkdir(exist_ok=True)
    place = FOLDER / f"{experiment}.json"
    place.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return place


def provenance() -> dict[str, str]:
    """The commit and the machine of a record."""
    return {
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, "
        f"megatron-core {megatron.core.__version__}",
    }


def rows_table(name: str, values: Mapping[str, Any]) -> str:
    """AUC by group and score: mean over the seeds, and half the width of its 95 % interval."""
    scores = list(dict.fromkeys(score for one in values["auc"] for score in one))
    lines = [f"| {name} | {' | '.join(scores)} |", f"|---|{'---|' * len(scores)}"]
    for group in values["wanted"]:
        cells = [_mean([one[score][group] for one in values["auc"] if score in one]) for score in scores]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(each: Sequence[float]) -> str:
    if len(each) < 2:
        return f"{each[0]:.3f}"
    margin = t.ppf(0.975, len(each) - 1) * np.std(each, ddof=1) / len(each) ** 0.5
    return f"{np.mean(each):.3f} ± {margin:.3f}"


def table(values: Mapping[str, Any]) -> str:
    """The results as a table of markdown, lowest test loss first, and the mean weights that ScaleBiO found."""
    ranked = sorted(values["results"], key=lambda result: result["test_loss"])
    lines = [
        "| | test loss | difference to uniform, 95 % interval | verdict | M tokens to learn |",
        "|---|---|---|---|---|",
    ]
    for result in ranked:
        is_reference = result["judgement"] == "reference"
        difference = "" if is_reference else f"{short(result['difference'])} {interval(result)}"
        learned = f"{result['learn_tokens'] / 1e6:.2f}" if result["mixture"] in values["runs"] else ""
        cells = [
            result["mixture"],
            f"{result['test_loss']:.3f}",
            difference,
            "" if is_reference else result["judgement"],
        ]
        if result["mixture"] == "scalebio":
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join([*cells, learned])} |")
    return "\n".join(lines)


def write_ablation(study: str, rows: Sequence[Mapping[str, Any]], seeds: int) -> Path:
    """Write the record of one ablation, and say where it is."""
    values = {"study": study, **provenance(), "seeds": seeds, "rows": list(rows)}
    place = FOLDER / "ablations" / f"{study}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return place


def ablation_table(values: Mapping[str, Any]) -> str:
    """A setting a row: what the domains that should gain weigh together, and what models are worth on the weights."""
    has_order = any("spearman" in row for row in values["rows"])
    head = ["", "helpful domains weigh", *(["Spearman with transfer"] if has_order else []), "test loss"]
    head += ["difference to uniform, 95 % interval", "runs say", "M tokens to learn"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in values["rows"]:
        cells = [row["setting"], short(sum(row["helpful"].values()))[1:]]
        cells += [short(row["spearman"]).lstrip("+")] if has_order else []
        cells += [f"{row['test_loss']:.3f}", f"{short(row['difference'])} {interval(row)}"]
        cells.append(", ".join(f"{count} {status}" for status, count in row["statuses"].items()))
        cells.append(f"{row['learn_tokens'] / 1e6:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_transfer(experiment: str, compared: Mapping[str, Comparison], runs: Mapping[str, Sequence[Run]]) -> Path:
    """Write the record of models trained on each other's weights, and say where it is."""
    trained = {}
    for name, comparison in compared.items():
        results = [{k: v for k, v in row.items() if k != "run_id"} for row in comparison.to_json()["results"]]
        trained[name] = {"tokens": comparison.tokens, "test_rows": comparison.num_test_rows, "results": results}
    values = {
        "experiment": experiment,
        **provenance(),
        "seeds": next(iter(compared.values())).compare["seeds"],
        "trained": trained,
        "runs": {model: [_run(run) for run in own] for model, own in runs.items()},
    }
    place = FOLDER / "transfer" / f"{experiment}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return place


def transfer_table(values: Mapping[str, Any]) -> str:
    """A model that was trained, on weights by each: regret is its loss less that on its own weights."""
    lines = ["| trained | weights by | test loss | difference to uniform, 95 % interval | regret |", "|---" * 5 + "|"]
    for name, found in values["trained"].items():
        ranked = sorted(found["results"], key=lambda result: result["test_loss"])
        own = next((result["test_loss"] for result in ranked if result["mixture"] == name), None)
        for result in ranked:
            is_reference = result["judgement"] == "reference"
            difference = "" if is_reference else f"{short(result['difference'])} {interval(result)}"
            regret = "" if own is None else short(result["test_loss"] - own)
            lines.append(f"| {name} | {result['mixture']} | {result['test_loss']:.3f} | {difference} | {regret} |")
    return "\n".join(lines)


def mean_weights(values: Mapping[str, Any], method: str = "scalebio") -> dict[str, float]:
    """Over the seeds, largest first."""
    runs = [run["weights"] for run in values["runs"][method]]
    mean = {domain: sum(weights[domain] for weights in runs) / len(runs) for domain in runs[0]}
    return dict(sorted(mean.items(), key=lambda item: -item[1]))


def interval(result: Mapping[str, Any]) -> str:
    """Of the difference to uniform."""
    return f"[{short(result['difference_low'])}, {short(result['difference_high'])}]"


def short(value: float) -> str:
    """As this project's tables have it: −.140."""
    return f"{value:+.3f}".replace("+0.", "+.").replace("-0.", "-.").replace("-", "−")


def _run(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "seed": record["learn"]["seed"],
        "status": record["verdict"]["status"],
        "verdict": run.verdict,
        "compute_tokens": record["compute_tokens"],
        "weights": {row["domain"]: row["domain_weight"] for row in record["domains"]},
    }


def _commit() -> str:
    """The last change of the code, not of the experiments or the documentation."""
    root = Path(__file__).parents[3]
    asked = ["git", "log", "-1", "--format=%h", "--", "optim", "curator", "connectors"]
    return subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    found = json.loads((FOLDER / f"{sys.argv[1]}.json").read_text(encoding="utf-8"))
    print(table(found))
    print("\nMean weights:", " ".join(f"{name} {short(weight)[1:]}" for name, weight in mean_weights(found).items()))
