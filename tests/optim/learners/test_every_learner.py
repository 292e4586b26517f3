"""What holds for every step-wise learner."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
import torch
from backend_cases import CONFIGS, OPTIMIZER, PRIOR, RandomSource, learner_settings

from optim.backend import ModelSource
from optim.learners.registry import STEPWISE, make_learner
from optim.local import LocalBackend
from optim.solver import solve
from optim.state import SolverState

# passes over the train and the target batch, a forward-backward pass counting 3 and a forward pass 1
PASSES = {
    "scalebio": (6, 3),
    "seal": (3, 3),
    "sama": (5, 3),
    "doge": (5, 3),
    "doremi": (4, 0),
    "rho": (4, 3),
    "validation_lm": (1, 3),
}


class StoppedError(Exception):
    pass


def new_backend():
    return LocalBackend(ModelSource(hf_config=CONFIGS["llama"], seed=3), optimizer=OPTIMIZER)


def run(name, backend, **options):
    return solve(backend, RandomSource(), PRIOR, learner_settings(name), **options)


@pytest.mark.parametrize("name", sorted(STEPWISE))
def test_weights_stay_a_mixture_and_a_run_goes_on_bit_for_bit(name, tmp_path):
    whole = run(name, new_backend())
    for record in whole.records:
        assert sum(record.weights) == pytest.approx(1)
        assert min(record.weights) >= 0.01
        json.loads(json.dumps(dataclasses.asdict(record), allow_nan=False))
    assert whole.records[-1].weights != pytest.approx(PRIOR.tolist(), abs=1e-6)

    halfway, states, records = new_backend(), [], []

    def stop_at_four(state):
        states.append(state)
        if state.step == 4:
            halfway.save(tmp_path)
            raise StoppedError

    with pytest.raises(StoppedError):
        run(name, halfway, on_step=records.append, after_step=stop_at_four)
    resumed = new_backend()
    resumed.load(tmp_path)
    state = SolverState.from_json(json.loads(json.dumps(states[-1].to_json())))
    rest = run(name, resumed, start=state, records=records)
    assert torch.equal(rest.weights_D, whole.weights_D)
    assert [without_time(r) for r in rest.records] == [without_time(r) for r in whole.records]


def without_time(record):
    return dataclasses.replace(record, seconds=0.0)


@pytest.mark.parametrize("name", sorted(STEPWISE))
def test_the_compute_of_a_step_is_the_passes_it_makes(name):
    backend = new_backend()
    counted = {"train": 0, "target": 0}
    data = RandomSource().at(4)

    def count(batch, thirds):
        counted["target" if batch is data.target else "train"] += thirds

    passes, losses = backend.forward_backward, backend.losses
    backend.forward_backward = lambda terms: [count(t.batch, 3) for t in terms] and passes(terms)
    backend.losses = lambda copy, batch: count(batch, 1) or losses(copy, batch)
    args = {"prior_D": PRIOR, "step": 4, "learning_rate": 1e-3}
    result = learner_settings(name).learner.step(backend, data, PRIOR, **args)
    assert (counted["train"], counted["target"]) == PASSES[name]
    train, target = (float(batch.num_targets_B.sum()) for batch in (data.train, data.target))
    assert result.compute_tokens == pytest.approx((PASSES[name][0] * train + PASSES[name][1] * target) / 3)


def test_the_summary_has_the_compute_of_all_steps():
    solution = run("doremi", new_backend())
    batches = [RandomSource().at(step) for step in range(6)]
    train = [float(data.train.num_targets_B.sum()) for data in batches]
    assert solution.summary.compute_tokens == pytest.approx(sum(train[:3]) + sum(train[3:]) * 4 / 3)


@pytest.mark.parametrize("name", ["scalebio", "seal"])
def test_a_penalty_that_makes_no_sense_is_refused(name):
    with pytest.raises(ValueError, match=r"penalty=0\.0 must be above 0"):
        make_learner(name, penalty=0.0, branch_steps=0, num_steps=10)


def test_the_command_line_offers_every_learner():
    from curator.config import LearnConfig

    offered = set(typing.get_args(LearnConfig.model_fields["method"].annotation))
    assert offered == STEPWISE | {"dsir", "regmix"}
