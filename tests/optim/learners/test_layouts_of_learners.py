"""Learners that probe along a gradient, or restart a copy, find in every layout what one process does; real workers."""

import pytest
import torch

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from backend_cases import CONFIGS, OPTIMIZER, PRIOR, RandomSource, learn_in_layouts, learner_settings

from optim.backend import ModelSource
from optim.launch import launch
from optim.layout import Layout
from optim.local import LocalBackend
from optim.solver import solve

ONE = Layout()
TWO = [
    ("doge", Layout(tensor_parallel=2, sequence_parallel=True)),
    ("sama", Layout(tensor_parallel=2)),
    ("doge", Layout(pipeline_parallel=2)),
    ("sama", Layout(pipeline_parallel=2)),
    ("doge", Layout(data_parallel=2)),
    ("scalebio", Layout(tensor_parallel=2)),
    ("scalebio", Layout(pipeline_parallel=2)),
    ("sama", Layout(data_parallel=2)),
]


@pytest.fixture(scope="module")
def one_process():
    return learn_in_layouts([(name, ONE) for name in ("doge", "sama", "scalebio")])


@pytest.fixture(scope="module")
def two_processes():
    target, preload = "backend_cases:learn_in_layouts", ("optim.mcore.backend",)
    return launch(target, TWO, world_size=2, threads=1, preload=preload)


def assert_found_alike(ours, expected):
    torch.testing.assert_close(ours.weights_D, expected.weights_D, rtol=0, atol=2e-4)
    for found, wanted in zip(ours.records, expected.records, strict=True):
        gradient, right = torch.tensor(found.weight_grads), torch.tensor(wanted.weight_grads)
        torch.testing.assert_close(gradient, right, rtol=0, atol=1e-3 * max(1.0, float(right.abs().max())))
        assert found.train_loss == pytest.approx(wanted.train_loss, rel=1e-4)  # its weights agree to 2e-4
        assert found.compute_tokens == wanted.compute_tokens


@pytest.mark.parametrize(("name", "layout"), TWO, ids=str)
def test_a_layout_finds_what_one_process_finds(one_process, two_processes, name, layout):
    first, second = (rank[name, layout] for rank in two_processes)
    assert torch.equal(first.weights_D, second.weights_D)
    assert_found_alike(first, one_process[name, ONE])


@pytest.mark.parametrize("name", ["doge", "sama", "scalebio"])
def test_megatron_finds_what_plain_torch_finds(one_process, name):
    local = LocalBackend(ModelSource(hf_config=CONFIGS["qwen3-tied"], seed=3), optimizer=OPTIMIZER)
    assert_found_alike(one_process[name, ONE], solve(local, RandomSource(), PRIOR, learner_settings(name, num_steps=4)))
