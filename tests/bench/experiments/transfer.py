"""Do weights learned with one model serve another? Weights by each model, and models of each kind trained on them.

Run: python tests/bench/experiments/transfer.py [--models tiny,gpt2,small] [--trained …] [--experiment domains]

Weights are learned with every model by the default procedure. Then every model of `--trained`, which are the same
unless named, is trained on the weights of each, and the regret is what it loses by not using its own: test loss on the
other's weights less that on its own, nats per token. Runs and trainings of `run.py` in the same work folder are used
again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lakes import BUILDERS, is_ready
from results import transfer_table, write_transfer
from run import DEFAULT_TOKENS_PER_STEP, TOKENS_PER_STEP, Teller, budget_tokens, learned

import curator
from curator.comparison import Comparison
from curator.run import Run
from curator.tokens import read_tokenizer
from optim.launch import device_count

LEARNING_RATE = 4e-3
"""Of the gpt2, which starts from scratch as the presets do."""


def main() -> int:
    """Print a row for every model that is trained, and every model that its weights were learned with."""
    arguments = _arguments()
    if not is_ready(arguments.work):
        return 2
    folder = arguments.work.resolve() / arguments.experiment
    if not folder.exists():
        BUILDERS[arguments.experiment]().write(folder)
    settings: dict[str, dict[str, Any]] = {}
    runs: dict[str, list[Run]] = {}
    with curator.open_lake(str(folder / "lake"), text="text", domain="domain") as lake:
        told = {"weights": {"budget_tokens": budget_tokens(arguments.experiment)}}
        for name in dict.fromkeys((*arguments.models, *arguments.trained)):
            settings[name] = _settings(name, folder)
            if name in arguments.models:
                runs[name] = learned(lake, folder, "scalebio", arguments.seeds, **settings[name], **told)
        compared = {name: _compare(lake, folder, runs, arguments, settings[name]) for name in arguments.trained}
    place = write_transfer(arguments.experiment, compared, runs)
    print(transfer_table(json.loads(place.read_text(encoding="utf-8"))))
    print(f"recorded in {place}")
    return 0


def _settings(name: str, folder: Path) -> dict[str, Any]:
    if name != "gpt2":
        return {"model": name}
    return {"model": str(_gpt2(folder)), "learning_rate": LEARNING_RATE, "data_parallel": min(2, device_count("cpu"))}


def _gpt2(folder: Path) -> Path:
    """A gpt2 of `tiny`'s size with initial weights and the lake's tokenizer, as a Hugging Face folder."""
    place = folder / "gpt2"
    if place.exists():
        return place
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    cache = next((folder / "lake" / "_curator" / "tokens").glob("*/corpus"), None)
    if cache is None:
        raise SystemExit("gpt2 takes the tokenizer that tiny trains; name tiny before it in --models")
    tokenizer = read_tokenizer(cache)
    end = tokenizer.backend.id_to_token(tokenizer.boundary_id)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=end).save_pretrained(place)
    set_seed(0)
    sizes = {"n_positions": 256, "n_embd": 128, "n_layer": 4, "n_head": 4}
    ends = {"bos_token_id": tokenizer.boundary_id, "eos_token_id": tokenizer.boundary_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.vocab_size, **sizes, **ends)).save_pretrained(place)
    return place


def _compare(
    lake: curator.Lake,
    folder: Path,
    runs: dict[str, list[Run]],
    arguments: argparse.Namespace,
    over: dict[str, Any],
) -> Comparison:
    tell = Teller(f"compare {over['model']}")
    trained = {key: value for key, value in over.items() if key != "data_parallel"}
    comparison = lake.compare(
        *(f"{name}={','.join(run.run_id for run in found)}" for name, found in runs.items()),
        target=str(folder / "target.parquet"),
        test=str(folder / "test.parquet"),
        seeds=arguments.seeds,
        tokens_per_step=TOKENS_PER_STEP.get(arguments.experiment, DEFAULT_TOKENS_PER_STEP),
        at_once=min(2, device_count("cpu")),
        on_progress=tell,
        **trained,
    )
    tell.end("done")
    return comparison


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["tiny", "gpt2", "small"])
    parser.add_argument("--trained", type=lambda text: text.split(","), help="models to train (default: --models)")
    parser.add_argument("--experiment", choices=BUILDERS, default="domains")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    arguments = parser.parse_args()
    arguments.trained = arguments.trained or arguments.models
    return arguments


if __name__ == "__main__":
    sys.exit(main())
