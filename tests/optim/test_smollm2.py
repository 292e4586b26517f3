"""A real language model of 135 million parameters, in every backend and in the layouts that it splits into."""

import json
from pathlib import Path

import pytest
import torch
from backend_cases import OPTIMIZER, losses_and_norm_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optim.backend import Copy, ModelSource
from optim.batch import Batch
from optim.launch import launch
from optim.layout import Layout
from optim.local import LocalBackend
from optim.mcore.backend import mcore_backend

pytestmark = pytest.mark.slow
ONE = Layout()
LAYOUTS = [Layout(pipeline_parallel=2), Layout(tensor_parallel=3), Layout(tensor_parallel=3, sequence_parallel=True)]
TEXTS = [text for text in (Path(__file__).parents[2] / "README.md").read_text().split("\n\n") if len(text) > 300][:6]


@pytest.fixture(scope="module")
def source(smollm2):
    return ModelSource(hf_config=json.loads((smollm2 / "config.json").read_text()), folder=smollm2)


@pytest.fixture(scope="module")
def batch(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rows = [torch.tensor(ids[:97]) for ids in tokenizer(TEXTS)["input_ids"]]
    lengths = torch.tensor([len(row) - 1 for row in rows])
    tokens_BS = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Batch(
        tokens_BS=tokens_BS,
        mask_BS=(torch.arange(tokens_BS.shape[1] - 1) < lengths[:, None]).float(),
        domain_B=torch.zeros(len(rows), dtype=torch.int64),
        row_weight_B=torch.ones(len(rows)),
    )


@pytest.fixture(scope="module")
def expected(source, batch):
    """By transformers' modules in plain torch."""
    return losses_and_norm_of(LocalBackend(source, optimizer=OPTIMIZER), batch)


def test_it_is_a_language_model_and_losses_equal_transformers(smollm2, source, batch, expected):
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(smollm2)(input_ids=batch.tokens_BS[:, :-1]).logits
    loss_BSV = -torch.log_softmax(logits.double(), dim=2)
    loss_BS = loss_BSV.gather(2, batch.tokens_BS[:, 1:, None])[..., 0]
    by_transformers = (loss_BS * batch.mask_BS).sum(1)
    assert float(by_transformers.sum() / batch.mask_BS.sum()) < 6  # ln 49152 is 10.8
    torch.testing.assert_close(expected[0], by_transformers, rtol=5e-6, atol=0)
    with mcore_backend(source, layout=ONE, optimizer=OPTIMIZER, micro_batch_tokens=256) as backend:
        losses, norm = losses_and_norm_of(backend, batch)
    torch.testing.assert_close(losses, expected[0], rtol=5e-6, atol=0)
    assert norm == pytest.approx(expected[1], rel=5e-5)


def test_it_comes_back_bit_for_bit(smollm2, source):
    stored = load_file(smollm2 / "model.safetensors")
    with mcore_backend(source, layout=ONE, optimizer=OPTIMIZER, micro_batch_tokens=256) as backend:
        exported = dict(backend.parameters(Copy.AUX))
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_equal_transformers(source, batch, expected, layout):
    found = launch(
        "backend_cases:losses_and_norm",
        (source, layout, batch),
        world_size=layout.world_size,
        threads=1,
        preload=("optim.mcore.backend",),
    )
    for losses, norm in found:
        torch.testing.assert_close(losses, expected[0], rtol=5e-6, atol=0)
        assert norm == pytest.approx(expected[1], rel=5e-5)
