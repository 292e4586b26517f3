import pytest

from optim.errors import LayoutError
from optim.layout import Layout, check_layout_fits_machine, check_layout_fits_model

MODEL = {
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "hidden_size": 96,
    "intermediate_size": 256,
}
GPT2 = {"n_head": 4, "n_layer": 2, "n_embd": 64, "n_inner": None}


def test_world_is_the_product_of_the_axes():
    layout = Layout(tensor_parallel=2, pipeline_parallel=3, data_parallel=4)
    assert layout.world_size == 24
    assert str(layout) == "TP=2 PP=3 DP=4"


@pytest.mark.parametrize("axis", ["tensor_parallel", "pipeline_parallel", "data_parallel"])
def test_an_axis_without_workers_is_refused(axis):
    with pytest.raises(LayoutError, match=f"{axis}=0"):
        Layout(**{axis: 0})


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("pipeline", [1, 2, 3, 6])
def test_sizes_that_divide_the_model_are_allowed(tensor, pipeline):
    check_layout_fits_model(Layout(tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=5), MODEL)


def test_gpt2_names_are_understood():
    check_layout_fits_model(Layout(tensor_parallel=4, pipeline_parallel=2), GPT2)
    with pytest.raises(LayoutError, match="4 attention heads"):
        check_layout_fits_model(Layout(tensor_parallel=3), GPT2)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tensor_parallel=3), r"tensor_parallel=3 .*12 attention heads.* allows 1, 2, 4$"),
        (Layout(pipeline_parallel=4), r"pipeline_parallel=4 .*6 layers.* allows 1, 2, 3, 6$"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(layout, message):
    with pytest.raises(LayoutError, match=message):
        check_layout_fits_model(layout, MODEL)


def test_a_gpu_runs_one_worker_and_a_core_at_most_four():
    check_layout_fits_machine(Layout(data_parallel=8), num_devices=2, device="cpu")
    check_layout_fits_machine(Layout(data_parallel=2), num_devices=2, device="cuda")
    with pytest.raises(LayoutError, match="at most 8"):
        check_layout_fits_machine(Layout(data_parallel=9), num_devices=2, device="cpu")
    with pytest.raises(LayoutError, match="2 GPUs"):
        check_layout_fits_machine(Layout(data_parallel=3), num_devices=2, device="cuda")


def test_sequence_parallelism_needs_a_tensor_axis():
    with pytest.raises(LayoutError, match="set tensor_parallel above 1"):
        Layout(sequence_parallel=True)
    assert str(Layout(tensor_parallel=2, sequence_parallel=True)) == "TP=2 PP=1 DP=1 SP"
