import pytest
import torch

from optim.initial import initial_tensor


def test_a_tensor_depends_on_its_seed_and_name_alone():
    one = initial_tensor("model.layers.0.mlp.up_proj.weight", (8, 4), seed=3, num_layers=2)
    torch.rand(5)
    assert torch.equal(one, initial_tensor("model.layers.0.mlp.up_proj.weight", (8, 4), seed=3, num_layers=2))
    assert not torch.equal(one, initial_tensor("model.layers.1.mlp.up_proj.weight", (8, 4), seed=3, num_layers=2))
    assert not torch.equal(one, initial_tensor("model.layers.0.mlp.up_proj.weight", (8, 4), seed=4, num_layers=2))


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("lm_head.weight", 300**-0.5),
        ("model.embed_tokens.weight", 300**-0.5),
        ("model.layers.0.mlp.up_proj.weight", 300**-0.5),
        ("model.layers.0.mlp.down_proj.weight", 300**-0.5 / 4),
        ("transformer.h.0.attn.c_attn.weight", 400**-0.5),
        ("transformer.h.0.mlp.c_proj.weight", 400**-0.5 / 4),
    ],
)
def test_matrices_keep_the_size_of_what_goes_through_them(name, std):
    tensor = initial_tensor(name, (400, 300), seed=0, num_layers=8)
    assert float(tensor.std()) == pytest.approx(std, rel=0.01)
    assert abs(float(tensor.mean())) < std * 4 / 120000**0.5


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
    assert torch.equal(initial_tensor(name, (4,), seed=0, num_layers=2), torch.ones(4))
    assert torch.equal(initial_tensor(name, (4,), seed=0, num_layers=2, norm_offset=True), torch.zeros(4))


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn.bias", "transformer.ln_f.bias"])
def test_biases_start_at_zero(name):
    assert torch.equal(initial_tensor(name, (4,), seed=0, num_layers=2), torch.zeros(4))
