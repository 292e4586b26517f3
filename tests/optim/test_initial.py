import pytest
import torch

from optim.initial import initial_tensor


def test_a_tensor_depends_on_its_seed_and_name_alone():
    one = initial_tensor("model.layers.0.mlp.up_proj.weight", (8, 4), seed=3)
    torch.rand(5)
    assert torch.equal(one, initial_tensor("model.layers.0.mlp.up_proj.weight", (8, 4), seed=3))
    assert not torch.equal(one, initial_tensor("model.layers.1.mlp.up_proj.weight", (8, 4), seed=3))
    assert not torch.equal(one, initial_tensor("model.layers.0.mlp.up_proj.weight", (8, 4), seed=4))


def test_matrices_are_normal_with_the_given_deviation():
    tensor = initial_tensor("lm_head.weight", (400, 300), seed=0, std=0.05)
    assert float(tensor.std()) == pytest.approx(0.05, rel=0.01)
    assert abs(float(tensor.mean())) < 0.05 * 4 / 120000**0.5


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.input_layernorm.weight",
        "model.layers.3.self_attn.q_norm.weight",
        "model.norm.weight",
        "transformer.h.0.ln_1.weight",
        "transformer.ln_f.weight",
    ],
)
def test_norms_start_as_the_identity(name):
    assert torch.equal(initial_tensor(name, (4,), seed=0), torch.ones(4))
    assert torch.equal(initial_tensor(name, (4,), seed=0, norm_offset=True), torch.zeros(4))


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn.bias", "transformer.ln_f.bias"])
def test_biases_start_at_zero(name):
    assert torch.equal(initial_tensor(name, (4,), seed=0), torch.zeros(4))
