"""`curator learn` from the weights of a real language model, on two pipeline stages."""

import json
import math

import pytest
from lake_cases import curator, values_of

pytest.importorskip("megatron.core", reason="needs the extra [train]")


@pytest.mark.slow
def test_a_run_starts_from_the_weights_and_with_the_tokenizer_of_the_model(smollm2, here):
    settings = here / "smollm2.toml"
    fast = (here / "fast.toml").read_text().splitlines()
    lines = [line for line in fast if not line.startswith(("model", "vocab_size"))]
    settings.write_text("\n".join([*lines, f'model = "{smollm2}"', "learning_rate = 1e-5", ""]))
    arguments = ("learn", "lake", "--target", "target.parquet", "--config", settings.name, "--steps", 6)
    layout = ("--pipeline-parallel", 2, "--block-size", 2, "--run-dir", "run", "--json")
    values = values_of(curator(here, *arguments, *layout))
    assert math.isclose(sum(values["domain_weights"].values()), 1.0, rel_tol=1e-6)
    first = json.loads((here / "run" / "trajectory.jsonl").read_text().splitlines()[0])
    assert first["val_loss"] < 9  # of made-up words; a model without its weights or its tokenizer is at 10.8 or above
