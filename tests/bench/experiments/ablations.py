"""One ablation: learn with each of its settings, train fresh models on what each found, and show them side by side.

Run: python tests/bench/experiments/ablations.py STUDY [--seeds 3] [--work bench-work]

Weights are taken as they were learned, without a line search, so that the settings themselves are compared. What is in
the work folder already is used again. See `STUDIES` for what each study varies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import results
from checks import RELATED, TRANSFER_TO_CATALAN, weights
from lakes import Parts, instruct, is_ready, multilingual_hard, with_noise
from run import DEFAULT_TOKENS_PER_STEP, TOKENS_PER_STEP, Teller
from scipy.stats import spearmanr

import curator
from curator.comparison import MixtureResult
from curator.run import Run

DEFAULTS: Mapping[str, Any] = {}
ALIKE_TO_GSM8K = "flan_cot_aqua"


@dataclass(frozen=True)
class Study:
    """Settings of `curator learn` by name, all on one lake; `helpful` are the domains that should gain."""

    build: Callable[[], Parts]
    settings: Mapping[str, Mapping[str, Any]]
    helpful: Sequence[str]
    tokens_per_step: int = DEFAULT_TOKENS_PER_STEP


def main() -> int:
    """Print the study's table, and record it."""
    arguments = _arguments()
    if not is_ready(arguments.work):
        return 2
    studies = STUDIES[arguments.study]
    rows: list[dict[str, Any]] = []
    for lake_name, study in studies.items():
        found = _found(study, arguments.work.resolve() / "ablations" / lake_name, arguments.seeds)
        rows += [{"setting": lake_name if len(studies) > 1 else setting, **values} for setting, values in found.items()]
    place = results.write_ablation(arguments.study, rows, arguments.seeds)
    print(results.ablation_table({"rows": rows}))
    print(f"\nrecorded in {place}")
    return 0


def _found(study: Study, folder: Path, seeds: int) -> dict[str, dict[str, Any]]:
    """What each setting of a study brought, by its name."""
    if not folder.exists():
        study.build().write(folder)
    target, test = (str(folder / f"{part}.parquet") for part in ("target", "test"))
    with curator.open_lake(str(folder / "lake"), text="text", domain="domain") as lake:
        runs = {name: _learned(lake, target, over, seeds) for name, over in study.settings.items()}
        named = [f"{name}={','.join(run.run_id for run in found)}" for name, found in runs.items()]
        tell = Teller("compare")
        compared = lake.compare(
            *named, target=target, test=test, seeds=seeds, tokens_per_step=study.tokens_per_step, on_progress=tell
        )
    return {name: _row(found, compared[name], study) for name, found in runs.items()}


def _learned(lake: curator.Lake, target: str, over: Mapping[str, Any], seeds: int) -> list[Run]:
    wanted: dict[str, Any] = {"line_search": {"places": []}, **over}
    found = []
    for seed in range(seeds):
        known = [run for run in lake.runs() if run.record["learn"]["seed"] == seed and _has(run, wanted)]
        tell = Teller(f"{dict(over)} {seed}")
        run = known[0] if known else lake.learn(target, seed=seed, on_progress=tell, **wanted)
        tell.end(repr(run))
        found.append(run)
    return found


def _has(run: Run, wanted: Mapping[str, Any]) -> bool:
    """Whether the run's settings are the defaults but for these."""
    usual: dict[str, Any] = curator.LearnConfig().model_dump(mode="json")
    settings = run.record["learn"]
    for name, value in wanted.items():
        usual[name] = usual[name] | value if isinstance(value, dict) else value
    free = ("seed", "data_parallel")  # the latter is chosen by the machine, and changes rounding alone
    return all(settings[name] == value for name, value in usual.items() if name not in free)


def _row(runs: Sequence[Run], result: MixtureResult, study: Study) -> dict[str, Any]:
    found = weights(runs)
    statuses = [run.record["verdict"]["status"] for run in runs]
    values = {
        "helpful": {domain: found[domain] for domain in study.helpful},
        "test_loss": result.test_loss,
        "difference": result.difference,
        "difference_low": result.difference_low,
        "difference_high": result.difference_high,
        "statuses": {status: statuses.count(status) for status in dict.fromkeys(statuses)},
        "learn_tokens": sum(run.record["compute_tokens"] for run in runs) / len(runs),
        "learn_seconds": result.learn_seconds,
        "weights": found,
    }
    if study.build is multilingual_hard:
        transfer = list(TRANSFER_TO_CATALAN.values())
        values["spearman"] = -float(spearmanr([found[domain] for domain in TRANSFER_TO_CATALAN], transfer)[0])
    return values


_LANGUAGES = partial(
    Study, multilingual_hard, helpful=tuple(RELATED), tokens_per_step=TOKENS_PER_STEP["multilingual-hard"]
)
STUDIES: dict[str, dict[str, Study]] = {
    "blocks": {
        "languages": _LANGUAGES(
            {
                "all layers": DEFAULTS,
                "2 of 4 layers": {"blocks": {"size": 2}},
                "1 of 4 layers": {"blocks": {"size": 1}},
                "1 of 4, moments kept": {"blocks": {"size": 1, "moments": "keep"}},
                "1 of 4, edges sampled": {"blocks": {"size": 1, "edges": "sampled"}},
                "1 of 4, edges frozen": {"blocks": {"size": 1, "edges": "frozen"}},
            }
        )
    },
    "aux": {"languages": _LANGUAGES({"with u": DEFAULTS, "without u (seal)": {"method": "seal"}})},
    "penalty": {"languages": _LANGUAGES({f"α {alpha:g}": {"penalty": alpha} for alpha in (1.0, 3.0, 10.0, 30.0)})},
    "penalty-instructions": {
        "instructions": Study(
            instruct, {f"α {alpha:g}": {"penalty": alpha} for alpha in (1.0, 3.0, 10.0)}, (ALIKE_TO_GSM8K,)
        )
    },
    "optimizer": {
        "languages": _LANGUAGES(
            {
                "dual averaging": DEFAULTS,
                "exponentiated gradient": {"weights": {"optimizer": "eg", "prior_pull": 0.02, "warmup_share": 0.15}},
                "Adam": {"weights": {"optimizer": "adam", "learning_rate": 0.05, "warmup_share": 0.15}},
            }
        )
    },
    "restarts": {
        "languages": _LANGUAGES({f"every {n} steps" if n else "never": {"branch_steps": n} for n in (0, 10, 25, 50)})
    },
    "noise": {
        f"noise {percent} %": Study(partial(with_noise, percent / 100), {"defaults": DEFAULTS}, ("clean",))
        for percent in (10, 30, 50, 70, 90)
    },
    "domains": {
        f"{count} domains": Study(partial(instruct, count), {"defaults": DEFAULTS}, (ALIKE_TO_GSM8K,))
        for count in (2, 4, 8, 12)
    },
}
"""Study → lake → settings. Blocks of layers; with and without u; α; the optimizer of λ; restarts of w from u; the share
of the lake that is damaged; the number of domains, the related one always among them."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
