"""Attention over packs: strips of padded rows, and whole packs, as GPUs take them.

No GPU is here: a formula written from the documentation of torch's kernel stands in for it, and the kernel itself is
asked about names, shapes and types, by fake tensors.
"""

import pytest
import torch
from backend_cases import CONFIGS, OPTIMIZER, make_batch, train
from torch._subclasses.fake_tensor import FakeTensorMode

from optim.backend import Copy, ModelSource, Term
from optim.layout import Layout
from optim.mcore import kernels
from optim.mcore import rows as rows_module
from optim.mcore.backend import mcore_backend
from optim.mcore.rows import CALL_TOKENS, PackedRows, Strip

LENGTHS = (7, 5, 5, 3, 1, 2)  # the last one fills a pack up, so it is out of order
HEADS, GROUPS, WIDTH, SCALE = 4, 2, 8, 0.3


def documented_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """`torch.nn.attention.varlen.varlen_attn` by its documentation; FlashAttention's for the window."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q[-1] == len(query) == len(key) == len(value)
    assert max_q == max_k >= cu_seq_q.diff().max()
    assert enable_gqa or query.shape[1] == key.shape[1]
    left, right = window_size
    outs = []
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
        back = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        visible = ((back <= left) | (left < 0)) & ((-back <= right) | (right < 0))
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~visible, float("-inf"))
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs)


@pytest.fixture
def by_formula(monkeypatch):
    monkeypatch.setattr(kernels, "variable_length_kernel", lambda: documented_kernel)


@pytest.fixture
def needs_kernel():
    if kernels.variable_length_kernel() is None:
        pytest.skip("this torch has no varlen_attn with windows and grouped heads")


def rows_of(lengths):
    return PackedRows.of(lengths, torch.cat([torch.arange(length) for length in lengths]))


def queries_keys_values(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(sum(LENGTHS), n, WIDTH, dtype=dtype, generator=generator).requires_grad_()
        for n in (HEADS, GROUPS, GROUPS)
    ]


def table_of(length):
    frequencies = tuple(10000.0 ** (-i / WIDTH) for i in range(0, WIDTH, 2))
    return kernels.rotary_table(length, frequencies, 1.0, torch.float64, torch.device("cpu"))


def test_where_the_rows_of_a_pack_are():
    rows = rows_of(LENGTHS)
    assert rows.strips == (Strip(num_rows=6, length=7),)
    assert rows_of([2, 7]).strips == (Strip(num_rows=1, length=2), Strip(num_rows=1, length=7))
    assert rows.starts_B.tolist() == [0, 7, 12, 17, 20, 21, 23]
    assert rows.starts_B.dtype == torch.int32
    assert rows.longest == 7


def test_a_strip_holds_little_padding():
    lengths = [90, *range(60, 0, -1), 3]
    rows = rows_of(lengths)
    starts = [0]
    for strip in rows.strips:
        held = lengths[starts[-1] : starts[-1] + strip.num_rows]
        assert strip.length == held[0] == max(held)
        assert strip.num_tokens - sum(held) <= CALL_TOKENS
        starts.append(starts[-1] + strip.num_rows)
    assert starts[-1] == len(lengths)
    assert len(rows.strips) < len(lengths) / 3
    assert rows_of([5, 5, 5]).padding is None


def test_rows_come_back_from_their_strips_and_padding_has_no_gradient():
    rows = rows_of(LENGTHS)
    x = torch.arange(23.0).requires_grad_()
    spread = rows.padding.spread(x)
    assert spread[:14].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 11]
    torch.testing.assert_close(rows.padding.collect(spread), x)
    weight = torch.arange(1.0, 24)
    (grad,) = torch.autograd.grad((rows.padding.collect(spread) * weight).sum(), x)
    torch.testing.assert_close(grad, weight)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_a_model_learns_the_same_with_a_call_for_each_length(monkeypatch, name):
    def trajectory(call_tokens):
        monkeypatch.setattr(rows_module, "CALL_TOKENS", call_tokens)
        source = ModelSource(hf_config=CONFIGS[name], seed=3)
        with mcore_backend(source, layout=Layout(), optimizer=OPTIMIZER, micro_batch_tokens=70) as backend:
            return train(backend, num_steps=3)

    padded, each = trajectory(64), trajectory(0)
    torch.testing.assert_close(padded.losses, each.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded.grad_norms, each.grad_norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
def test_all_rows_at_once_equal_each_by_itself(by_formula, window, rotary):
    inputs = queries_keys_values()
    rows = rows_of(LENGTHS)
    table = tuple(x[rows.positions_T] for x in table_of(rows.longest)) if rotary else None
    options = {"scale": SCALE, "window": window}
    at_once = kernels.packed_attention(*inputs, starts_B=rows.starts_B, longest=rows.longest, table=table, **options)
    each = torch.cat(
        [
            kernels.causal_attention(
                *(part[:, None] for part in parts), table=table_of(length) if rotary else None, **options
            )[:, 0]
            for length, *parts in zip(LENGTHS, *(x.split(LENGTHS) for x in inputs), strict=True)
        ]
    )
    torch.testing.assert_close(at_once, each, rtol=1e-12, atol=1e-12)
    grad = torch.randn(at_once.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(
        torch.autograd.grad(at_once, inputs, grad), torch.autograd.grad(each, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gpt2"])
def test_a_model_learns_the_same_either_way(monkeypatch, by_formula, name):
    def trajectory(at_once):
        monkeypatch.setattr(kernels, "takes_whole_packs", lambda *_: at_once)
        source = ModelSource(hf_config=CONFIGS[name], seed=3)
        with mcore_backend(source, layout=Layout(), optimizer=OPTIMIZER, micro_batch_tokens=70) as backend:
            return train(backend, num_steps=3)

    at_once, each = trajectory(True), trajectory(False)
    torch.testing.assert_close(at_once.losses, each.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at_once.grad_norms, each.grad_norms, rtol=1e-5, atol=0)


def test_a_model_really_takes_whole_packs_when_its_configuration_says_so(monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["window_size"])
        return documented_kernel(*args, **kwargs)

    monkeypatch.setattr(kernels, "variable_length_kernel", lambda: counted)
    monkeypatch.setattr(kernels, "gpu_capability", lambda: (9, 0))
    source = ModelSource(hf_config=CONFIGS["mistral"], seed=3)
    batch = make_batch(5, 33, torch.Generator().manual_seed(0))
    term = Term(copy=Copy.MODEL, batch=batch, token_weight_B=torch.full((5,), 0.02))
    options = {"layout": Layout(), "optimizer": OPTIMIZER, "micro_batch_tokens": 1000}
    with mcore_backend(source, dtype="bfloat16", **options) as backend:
        backend.forward_backward([term])
    assert calls == [(7, 0)] * 4  # one a layer, of a window of 8
    with mcore_backend(source, dtype="float32", **options) as backend:
        backend.forward_backward([term])
    assert len(calls) == 4


CAPABLE = ((8, 0), torch.bfloat16, 64, None)


@pytest.mark.usefixtures("needs_kernel")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (CAPABLE, True),
        (((9, 0), torch.float16, 256, None), True),
        ((None, *CAPABLE[1:]), False),
        (((7, 5), *CAPABLE[1:]), False),
        (((8, 0), torch.float32, 64, None), False),
        (((8, 0), torch.bfloat16, 60, None), False),
        (((8, 0), torch.bfloat16, 264, None), False),
        (((8, 0), torch.bfloat16, 64, 50.0), False),
    ],
)
def test_which_devices_and_models_take_whole_packs(given, expected):
    assert kernels.takes_whole_packs(*given) is expected


def test_a_torch_without_the_kernel_takes_rows_of_equal_length(monkeypatch):
    monkeypatch.setattr(kernels, "variable_length_kernel", lambda: None)
    assert not kernels.takes_whole_packs(*CAPABLE)


@pytest.mark.usefixtures("needs_kernel")
@pytest.mark.parametrize("window", [None, 3])
def test_torchs_own_kernel_takes_what_it_is_given(window):
    """Names, shapes and types only: the arithmetic needs a GPU."""
    with FakeTensorMode():
        inputs = queries_keys_values(torch.bfloat16)
        rows = rows_of(LENGTHS)
        out = kernels.packed_attention(
            *inputs, starts_B=rows.starts_B, longest=rows.longest, table=None, scale=SCALE, window=window
        )
        assert out.shape == (sum(LENGTHS), HEADS * WIDTH)
        assert out.dtype == torch.bfloat16
        assert out.grad_fn is not None
        for gradient, given in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
            assert gradient.shape == given.shape
