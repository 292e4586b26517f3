import pytest
import torch
from torch.nn import functional

from optim.mcore import kernels

SCALE = 0.3


def queries_keys_values(length, heads, groups, width, *, batch=2):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(length, batch, n, width, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (heads, groups, groups)
    ]


def table_of(length, width):
    frequencies = tuple(10000.0 ** -(torch.arange(0, width, 2) / width).double())
    return kernels.rotary_table(length, tuple(float(f) for f in frequencies), 1.0, torch.float64, torch.device("cpu"))


def reference(q, k, v, *, table, visible, softcap=None):
    """Attention by its formula, with the key-value heads repeated and the rotation as complex numbers."""
    length, batch, heads, width = q.shape
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    if table is not None:
        turn = torch.complex(*table)
        q, k = (as_halves(as_complex(x) * turn) for x in (q, k))
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * SCALE
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    out = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
    return out.permute(2, 0, 1, 3).reshape(length, batch, heads * width)


def as_complex(x):
    return torch.complex(*(half.contiguous() for half in x.chunk(2, dim=-1)))


def as_halves(z):
    return torch.cat((z.real, z.imag), dim=-1)


def assert_same_function(ours, expected, inputs):
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("length", "width"), [(1, 8), (63, 8), (64, 8), (65, 16), (131, 8), (129, 64), (270, 64)])
def test_block_kernel_equals_attention_by_its_formula(length, width, heads, groups, rotary):
    inputs = queries_keys_values(length, heads, groups, width)
    table = table_of(length, width) if rotary else None
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    ours = kernels.causal_attention(*inputs, table=table, scale=SCALE)
    assert_same_function(ours, reference(*inputs, table=table, visible=visible), inputs)


def test_block_kernel_equals_torch_sdpa():
    inputs = queries_keys_values(131, 4, 2, 16)
    q, k, v = (x.permute(1, 2, 0, 3) for x in inputs)
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)
    ours = kernels.causal_attention(*inputs, table=None, scale=SCALE)
    assert_same_function(ours, expected.permute(2, 0, 1, 3).reshape(ours.shape), inputs)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_windows_and_soft_caps_follow_their_formula(window, softcap):
    length, width = 33, 8
    inputs = queries_keys_values(length, 4, 2, width)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    visible = (distance >= 0) & (distance < (window or length))
    table = table_of(length, width)
    ours = kernels.causal_attention(*inputs, table=table, scale=SCALE, window=window, softcap=softcap)
    expected = reference(*inputs, table=table, visible=visible, softcap=softcap)
    assert_same_function(ours, expected, inputs)


def test_a_sequence_beyond_the_block_kernel_gives_the_same_as_within(monkeypatch):
    inputs = queries_keys_values(70, 4, 2, 16)
    table = table_of(70, 16)
    by_blocks = kernels.causal_attention(*inputs, table=table, scale=SCALE)
    monkeypatch.setattr(kernels, "MAX_BLOCK_KERNEL_LENGTH", 8)
    by_torch = kernels.causal_attention(*inputs, table=table, scale=SCALE)
    assert by_torch.grad_fn.name() != by_blocks.grad_fn.name()
    assert_same_function(by_torch, by_blocks, inputs)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_a_gated_activation_follows_its_formula_and_keeps_its_input_only(kind):
    gate_up = torch.randn(5, 1, 14, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=-1)
    act = functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = kernels.gated_activation(gate_up, kind)
    assert [t.data_ptr() for t in kept] == [gate_up.data_ptr()]
    assert_same_function(ours, act * up, [gate_up])
