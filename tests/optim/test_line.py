"""The line along a copy's gradient, in both backends."""

from contextlib import contextmanager

import pytest
import torch
from backend_cases import CONFIGS, OPTIMIZER, make_batch

pytest.importorskip("megatron.core", reason="needs the extra [train]")

from optim.backend import Copy, ModelSource, Term
from optim.blocks import Block
from optim.layout import Layout
from optim.local import LocalBackend
from optim.mcore.backend import mcore_backend

SOURCE = ModelSource(hf_config=CONFIGS["qwen3-tied"], seed=3)
BATCH = make_batch(4, 20, torch.Generator().manual_seed(0))
TERM = Term(copy=Copy.MODEL, batch=BATCH, token_weight_B=torch.full((4,), 0.02))


@contextmanager
def opened(kind, dtype="float32"):
    if kind == "local":
        yield LocalBackend(SOURCE, optimizer=OPTIMIZER, dtype=dtype)
        return
    options = {"layout": Layout(), "optimizer": OPTIMIZER, "micro_batch_tokens": 50, "dtype": dtype}
    with mcore_backend(SOURCE, **options) as backend:
        yield backend


def weights(backend, copy=Copy.MODEL):
    return {name: tensor.clone() for name, tensor in backend.parameters(copy)}


KINDS = pytest.mark.parametrize("kind", ["local", "mcore"])
PRECONDITIONED = pytest.mark.parametrize("preconditioned", [False, True])


@KINDS
@PRECONDITIONED
def test_a_move_is_as_long_as_asked_and_undone_bit_for_bit(kind, preconditioned):
    with opened(kind) as backend:
        backend.set_block(Block(layers=frozenset({1, 2}), edges=True))
        before, aux = weights(backend), weights(backend, Copy.AUX)
        backend.forward_backward([TERM])
        with backend.line(Copy.MODEL, preconditioned=preconditioned) as line:
            for distance in (0.5, -0.25):
                line.move(distance)
                moved = weights(backend)
                length = sum(float((moved[n] - before[n]).double().norm()) ** 2 for n in before) ** 0.5
                assert length == pytest.approx(abs(distance), rel=1e-4)
                assert all(torch.equal(moved[n], before[n]) for n in before if ".layers.0." in n or ".layers.3." in n)
        after = weights(backend)
        assert all(torch.equal(after[n], before[n]) for n in before)
        assert all(torch.equal(tensor, aux[n]) for n, tensor in weights(backend, Copy.AUX).items())
        assert backend.update(Copy.MODEL, learning_rate=0.0).grad_norm == 0  # the gradients were cleared


@PRECONDITIONED
def test_the_backends_agree(preconditioned):
    found = []
    for kind in ("local", "mcore"):
        with opened(kind) as backend:
            for _ in range(2):  # moments of an update first, then of none in a block that comes anew
                backend.forward_backward([TERM])
                backend.update(Copy.MODEL, learning_rate=1e-3)
            backend.forward_backward([TERM])
            with backend.line(Copy.MODEL, preconditioned=preconditioned) as line:
                line.move(0.3)
                found.append((line.norm, backend.losses(Copy.MODEL, BATCH)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


@KINDS
def test_a_failure_on_the_line_leaves_the_copy_as_it_was(kind):
    def fail_far_out(backend):
        with backend.line(Copy.MODEL) as line:
            line.move(3.0)
            raise KeyError

    with opened(kind) as backend:
        before = weights(backend)
        backend.forward_backward([TERM])
        with pytest.raises(KeyError):
            fail_far_out(backend)
        assert all(torch.equal(tensor, before[n]) for n, tensor in weights(backend).items())


@KINDS
def test_without_a_gradient_the_copy_stays(kind):
    with opened(kind) as backend:
        before = weights(backend)
        with backend.line(Copy.MODEL) as line:
            line.move(1.0)
            assert line.norm == 0
            assert all(torch.equal(tensor, before[n]) for n, tensor in weights(backend).items())


@KINDS
def test_parameters_too_coarse_for_small_distances_are_refused(kind):
    with opened(kind, "bfloat16") as backend:
        backend.forward_backward([TERM])
        with pytest.raises(ValueError, match=r"bfloat16.*use float32"), backend.line(Copy.MODEL):
            pass
