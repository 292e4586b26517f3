"""Every layout computes what one process computes: real worker processes, 20 steps of switching blocks."""

import pytest
import torch

from optim.launch import launch
from optim.layout import Layout

ONE = Layout()
TP2 = Layout(tensor_parallel=2)
PP2 = Layout(pipeline_parallel=2)
DP2 = Layout(data_parallel=2)
TP2_SP = Layout(tensor_parallel=2, sequence_parallel=True)
TP2_PP2 = Layout(tensor_parallel=2, pipeline_parallel=2)
PP2_DP2 = Layout(pipeline_parallel=2, data_parallel=2)
TP2_PP2_SP = Layout(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True)
TP2_DP2 = Layout(tensor_parallel=2, data_parallel=2)
ALL = Layout(tensor_parallel=2, pipeline_parallel=2, data_parallel=2)
ALL_SP = Layout(tensor_parallel=2, pipeline_parallel=2, data_parallel=2, sequence_parallel=True)

# llama: grouped query heads; qwen3-tied: norms within heads, one embedding on two stages; gpt2: biases and positions;
# gemma2: norms after the row-parallel projections
LAYOUTS = {
    "llama": [TP2, TP2_SP, PP2, DP2, PP2_DP2],
    "qwen3-tied": [TP2, PP2, TP2_PP2, TP2_PP2_SP],
    "gpt2": [TP2, TP2_SP, TP2_DP2],
    "gemma2": [TP2_SP],
}
CASES = [(model, layout) for model, layouts in LAYOUTS.items() for layout in layouts]


def run(world_size, target, payload):
    return launch(
        f"backend_cases:{target}", payload, world_size=world_size, threads=1, preload=("optim.mcore.backend",)
    )


def trajectories_of(cases):
    """Trajectories by model and layout, the same on all ranks."""
    results = run(cases[0][1].world_size, "train_in_layouts", cases)
    for other in results[1:]:
        for case, trajectory in other.items():
            assert torch.equal(trajectory.losses, results[0][case].losses)
            assert torch.equal(trajectory.grad_norms, results[0][case].grad_norms)
            assert all(torch.equal(t, results[0][case].weights[n]) for n, t in trajectory.weights.items())
    return results[0]


@pytest.fixture(scope="module")
def trajectories():
    found = trajectories_of([(model, ONE) for model in LAYOUTS])
    for world_size in (2, 4):
        found |= trajectories_of([case for case in CASES if case[1].world_size == world_size])
    return found


@pytest.mark.parametrize(("model", "layout"), CASES, ids=str)
def test_a_layout_trains_like_one_process(trajectories, model, layout):
    assert_trained_alike(trajectories[model, layout], trajectories[model, ONE])


@pytest.mark.slow
def test_all_axes_at_once_train_like_one_process():
    cases = [("qwen3-tied", ALL), ("qwen3-tied", ALL_SP)]
    found = trajectories_of(cases)
    one = trajectories_of([("qwen3-tied", ONE)])["qwen3-tied", ONE]
    for case in cases:
        assert_trained_alike(found[case], one)


def assert_trained_alike(ours, one):
    assert ours.initial_digest == one.initial_digest
    assert ours.info.num_parameters == one.info.num_parameters
    assert torch.equal(ours.clipped, one.clipped)
    assert one.clipped.any()
    torch.testing.assert_close(ours.losses, one.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad_norms, one.grad_norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.one_row_loss, one.one_row_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.token_losses, one.token_losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.token_losses.sum(1), ours.row_losses, rtol=1e-9, atol=1e-9)
    assert ours.distance == pytest.approx(one.distance, rel=1e-4)
    assert list(ours.weights) == list(one.weights)
    for name, expected in one.weights.items():
        torch.testing.assert_close(ours.weights[name], expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_pipeline_stages_change_no_bit_of_the_losses(trajectories):
    # A tied embedding is the exception: its two stages' gradients are added in another order.
    assert torch.equal(trajectories["llama", PP2].losses, trajectories["llama", ONE].losses)


def test_divergence_is_raised_by_all_ranks_together():
    for messages in run(2, "diverge", PP2):
        assert len(messages) == 2
        assert "gradient norm of model is" in messages[0]
        assert "loss of row 1 under model is nan" in messages[1]
