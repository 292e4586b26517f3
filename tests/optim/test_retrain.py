"""Training a fresh model: against a loop in plain torch, and in layouts of two workers."""

from __future__ import annotations

import math

import pytest
import torch
from backend_cases import CONFIGS, OPTIMIZER, fresh_batches, make_batch, retrain
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from optim.backend import Copy, ModelSource
from optim.blocks import BlockSchedule
from optim.errors import DivergedError
from optim.launch import launch
from optim.layout import Layout
from optim.local import LocalBackend
from optim.retrain import TrainRecord, summed_losses, train
from optim.schedules import LearningRate

STEPS, PEAK, WARMUP = 8, 3e-3, 2


def whole(backend):
    """All layers train."""
    return BlockSchedule(num_layers=backend.info.num_layers)


def learning_rates():
    """Linear warm-up, then a half cosine to a tenth."""
    for step in range(STEPS):
        if step < WARMUP:
            yield PEAK * (step + 1) / WARMUP
        else:
            yield PEAK * (0.55 + 0.45 * math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def row_losses(model, batch):
    logits_BSV = model(input_ids=batch.tokens_BS[:, :-1]).logits
    loss_BS = functional.cross_entropy(logits_BSV.transpose(1, 2), batch.tokens_BS[:, 1:], reduction="none")
    return (loss_BS * batch.mask_BS).sum(1)


def plain_loop(config, start):
    """The losses of the steps and of the held-out rows, with torch's own AdamW and clipping, in float64."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).double().eval()
    model.load_state_dict(start, strict=False)  # the head is tied to the embedding
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=OPTIMIZER.betas, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay
    )
    losses = []
    for batch, rate in zip(fresh_batches(STEPS), learning_rates(), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        loss = row_losses(model, batch).sum() / batch.mask_BS.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    held_out = [make_batch(n, 17, torch.Generator().manual_seed(n)) for n in (3, 1, 5)]
    with torch.no_grad():
        return losses, torch.cat([row_losses(model, batch) for batch in held_out])


def test_a_fresh_model_is_trained_like_by_a_loop_in_plain_torch():
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["gpt2"], seed=3), optimizer=OPTIMIZER, dtype="float64")
    start = dict(backend.parameters(Copy.MODEL))
    untouched = dict(backend.parameters(Copy.AUX))
    losses, held_out = retrain(backend, STEPS)
    expected, expected_held_out = plain_loop(CONFIGS["gpt2"], start)
    assert losses == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(held_out, expected_held_out, rtol=1e-9, atol=1e-9)
    assert not any(torch.equal(tensor, start[name]) for name, tensor in backend.parameters(Copy.MODEL) if tensor.any())
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in backend.parameters(Copy.AUX))


def test_of_blocks_only_those_that_were_drawn_train():
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["llama"], seed=3), optimizer=OPTIMIZER)
    start = {name: tensor.clone() for name, tensor in backend.parameters(Copy.MODEL)}
    blocks = BlockSchedule(num_layers=backend.info.num_layers, size=1, period=STEPS, edges="frozen")
    train(backend, fresh_batches(STEPS), blocks, LearningRate(peak=1e-3, num_steps=STEPS))
    (layer,) = blocks.at(0).layers
    moved = {name for name, tensor in backend.parameters(Copy.MODEL) if not torch.equal(tensor, start[name])}
    assert moved
    assert all(f".layers.{layer}." in name for name in moved)


def test_layouts_of_two_workers_train_like_one_process_in_plain_torch():
    source = ModelSource(hf_config=CONFIGS["llama"], seed=3)
    losses, held_out = retrain(LocalBackend(source, optimizer=OPTIMIZER), STEPS)
    layouts = [Layout(tensor_parallel=2), Layout(pipeline_parallel=2)]
    ranks = launch(
        "backend_cases:retrain_in_layouts", layouts, world_size=2, threads=1, preload=("optim.mcore.backend",)
    )
    for results in ranks:
        for found, found_held_out in results:
            assert found == pytest.approx(losses, rel=1e-5)
            torch.testing.assert_close(found_held_out, held_out, rtol=1e-5, atol=1e-4)


def test_every_step_is_told_with_its_tokens():
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["llama"]), optimizer=OPTIMIZER)
    told: list[TrainRecord] = []
    batches = fresh_batches(3)
    last = train(backend, batches, whole(backend), LearningRate(peak=1e-3, num_steps=3), told.append)
    assert [record.step for record in told] == [0, 1, 2]
    sizes = [int(batch.mask_BS.sum()) for batch in batches]
    assert [record.tokens for record in told] == [sizes[0], sizes[0] + sizes[1], sum(sizes)]
    assert last == told[-1]
    assert 0 <= told[0].seconds <= told[1].seconds <= told[2].seconds


def test_held_out_rows_are_measured_in_their_order_and_without_training():
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["llama"]), optimizer=OPTIMIZER)
    batches = fresh_batches(3)
    found = summed_losses(backend, batches)
    assert found.shape == (12,)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[4:8], backend.losses(Copy.MODEL, batches[1]))
    assert torch.equal(found, summed_losses(backend, batches))


def test_no_batch_and_a_divergence_are_errors():
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["llama"]), optimizer=OPTIMIZER)
    with pytest.raises(ValueError, match="there is no batch to train on"):
        train(backend, [], whole(backend), LearningRate(peak=1e-3, num_steps=1))
    with pytest.raises(DivergedError):
        train(backend, fresh_batches(4), whole(backend), LearningRate(peak=1e30, num_steps=4, shape="constant"))
