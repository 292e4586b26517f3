"""Rows drawn by weight and weighed in the loss, in plain torch and in transformers' own Trainer."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from export_replays import make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import ConfigError
from curator.export import export
from curator.torch import WeightedCollator, WeightedSampler, row_weights, weighted_loss

some_weights = st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any)


def counts_of(sampler, num_rows):
    return np.bincount(list(sampler), minlength=num_rows)


@given(some_weights, st.integers(1, 300), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_a_row_is_drawn_in_proportion_to_its_weight_but_for_rounding(weights, num_draws, seed):
    expected = num_draws * np.array(weights) / sum(weights)
    for counts in (counts_of(WeightedSampler(weights, num_draws=num_draws, seed=seed), len(weights)) for _ in range(2)):
        assert counts.sum() == num_draws
        assert (np.floor(expected - 1e-9) <= counts).all()
        assert (counts <= np.ceil(expected + 1e-9)).all()


def test_the_rounding_is_right_on_average():
    weights = np.array([0.1, 0.0, 0.35, 0.55])
    mean = np.mean([counts_of(WeightedSampler(weights, num_draws=7, seed=seed), 4) for seed in range(500)], axis=0)
    assert mean == pytest.approx(7 * weights, abs=0.12)


@given(st.integers(1, 2000))
@settings(deadline=None, max_examples=25)
def test_equal_weights_give_every_row_once_in_another_order_every_epoch(num_rows):
    sampler = WeightedSampler(np.full(num_rows, 0.5))
    epochs = [list(sampler) for _ in range(3)]
    assert all(sorted(epoch) == list(range(num_rows)) for epoch in epochs)
    assert num_rows < 20 or (epochs[0] != epochs[1] != epochs[2])
    again = WeightedSampler(np.full(num_rows, 0.5))
    again.set_epoch(2)
    assert list(again) == epochs[2]


def test_every_part_of_an_epoch_has_the_shares():
    weights = np.repeat([1.0, 3.0, 0.5], 2000)
    rows = np.array(list(WeightedSampler(weights, num_draws=60_000)))
    for part in rows.reshape(20, 3000):
        shares = np.bincount(part // 2000, minlength=3) / 3000
        assert shares == pytest.approx(np.array([1, 3, 0.5]) / 4.5, abs=5 * 0.5 / 3000**0.5)
    shuffled = np.random.default_rng(0).permutation(rows)  # neighbours are as far apart
    assert np.abs(np.diff(rows)).mean() == pytest.approx(np.abs(np.diff(shuffled)).mean(), rel=0.03)


@given(st.integers(1, 5), st.integers(5, 200), st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_ranks_share_an_epoch(world_size, num_rows, seed):
    weights = np.arange(num_rows) + 1
    whole = list(WeightedSampler(weights, seed=seed))
    parts = [WeightedSampler(weights, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    drawn = [list(part) for part in parts]
    assert {len(rows) for rows in drawn} == {num_rows // world_size} == {len(part) for part in parts}
    assert [row for rows in zip(*drawn, strict=True) for row in rows] == whole[: num_rows // world_size * world_size]


@given(st.integers(0, 2), st.integers(0, 60), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_a_sampler_goes_on_where_it_was_with_any_number_of_ranks(epoch, steps, later):
    weights = np.arange(150) + 1
    whole = list(WeightedSampler(weights, num_draws=240, seed=3)) if epoch == 0 else None
    before = [WeightedSampler(weights, num_draws=240, seed=3, rank=rank, world_size=4) for rank in range(4)]
    for sampler in before:
        sampler.set_epoch(epoch)
    had = [list(islice(sampler, steps)) for sampler in before]
    states = [sampler.state_dict() for sampler in before]
    assert all(state == states[0] for state in states)
    assert json.loads(json.dumps(states[0])) == states[0]
    after = [WeightedSampler(weights, num_draws=240, seed=3, rank=rank, world_size=later) for rank in range(later)]
    for sampler in after:
        sampler.load_state_dict(states[0])
        sampler.set_epoch(epoch)
    rest = [list(sampler) for sampler in after]
    rows = [row for group in (*zip(*had, strict=True), *zip(*rest, strict=True)) for row in group]
    if whole is None:
        fresh = WeightedSampler(weights, num_draws=240, seed=3)
        fresh.set_epoch(epoch)
        whole = list(fresh)
    assert rows == whole[: len(rows)]
    assert len(rows) > 240 - later


def test_more_rows_than_torch_takes():
    num_rows = 2**24 + 1000
    weights = np.zeros(num_rows, dtype=np.float32)
    weights[-500:] = 2.0
    with pytest.raises(RuntimeError, match="2\\^24"):
        list(torch.utils.data.WeightedRandomSampler(torch.from_numpy(weights), 10))
    rows = list(WeightedSampler(weights, num_draws=1000))
    assert sorted(rows) == sorted([*range(num_rows - 500, num_rows)] * 2)


def test_a_loader_draws_by_it():
    loader = torch.utils.data.DataLoader(
        torch.arange(100), batch_size=10, sampler=WeightedSampler(np.arange(100) % 2, num_draws=50)
    )
    seen = torch.cat(list(loader))
    assert sorted(seen.tolist()) == list(range(1, 100, 2))


@pytest.mark.parametrize(
    ("weights", "settings", "sentence"),
    [
        ([], {}, "row weights must be one finite number of at least 0 for each row, not all 0"),
        ([0.0, 0.0], {}, "row weights must be one finite number"),
        ([1.0, -1.0], {}, "row weights must be one finite number"),
        ([1.0, float("nan")], {}, "row weights must be one finite number"),
        ([[1.0]], {}, "row weights must be one finite number"),
        ([1.0], {"rank": 1}, "rank 1 of 1 with 1 draws an epoch: ranks go from 0 to world_size − 1"),
        ([1.0], {"world_size": 2}, "rank 0 of 2 with 1 draws an epoch"),
        ([1.0], {"num_draws": 0}, "rank 0 of 1 with 0 draws an epoch"),
    ],
)
def test_weights_that_are_none_are_refused(weights, settings, sentence):
    with pytest.raises(ConfigError) as caught:
        WeightedSampler(weights, **settings)
    assert str(caught.value).startswith(sentence)


def test_a_state_of_another_sampler_is_refused():
    state = WeightedSampler([1, 2], seed=1).state_dict()
    with pytest.raises(ConfigError, match="the state is of a sampler with seed=1, this one has 0; make it with"):
        WeightedSampler([1, 2]).load_state_dict(state)
    with pytest.raises(ConfigError, match="num_draws=2, this one has 3"):
        WeightedSampler([1, 2, 3], seed=1).load_state_dict(state)


def test_exported_weights_are_those_of_the_rows_domains(tmp_path):
    run, lake = make_run()
    export(run, "torch", tmp_path / "weights.json")
    domains = [name for name, lengths in lake.items() for _ in lengths]
    weights = row_weights(tmp_path / "weights.json", domains)
    assert weights.mean() == pytest.approx(1)
    tokens = weights * np.concatenate(list(lake.values()))
    names = np.array(domains)
    shares = {name: tokens[names == name].sum() / tokens.sum() for name in lake}
    assert shares == pytest.approx({row["domain"]: row["domain_weight"] for row in run.record["domains"]}, rel=1e-6)
    with pytest.raises(ConfigError, match=r"does not know domain 'mail'; it has web, "):
        row_weights(tmp_path / "weights.json", ["web", "mail"])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no row_weights; write it with curator export --format torch"):
        row_weights(tmp_path / "other.json", ["web"])


def test_the_loss_is_that_of_torch_with_each_row_weighed():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 11), torch.randint(0, 11, (4, 6))
    labels[0, 3:] = -100
    labels[2, :2] = -100
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(weighted_loss(logits, labels, torch.ones(4)), plain)
    weights = torch.tensor([0.5, 2.0, 0.0, 1.5])
    num = (labels[:, 1:] != -100).sum()
    by_row = [weighted_loss(logits[[b]], labels[[b]], weights[[b]], num) for b in range(4)]
    torch.testing.assert_close(weighted_loss(logits, labels, weights), torch.stack(by_row).sum())
    alone = torch.nn.functional.cross_entropy(logits[1, :-1], labels[1, 1:], reduction="sum")
    torch.testing.assert_close(by_row[1], 2.0 * alone / num)
    assert by_row[2] == 0


def tiny_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def padded(rows):
    length = max(len(row["input_ids"]) for row in rows)
    labels = [row["input_ids"] + [-100] * (length - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(labels).clamp(min=0), "labels": torch.tensor(labels)}


@pytest.mark.filterwarnings("ignore")
def test_a_step_of_the_trainer_is_that_of_the_weighted_loss(tmp_path):
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    from transformers import Trainer, TrainingArguments

    counted: list[int] = []

    class WeightedTrainer(Trainer):
        def compute_loss(self, model, inputs, **settings):
            weights = inputs.pop("sample_weight")
            counted.append(int(settings["num_items_in_batch"]))
            self.compute_loss_func = lambda outputs, labels, num_items_in_batch: weighted_loss(
                outputs.logits, labels, weights, num_items_in_batch
            )
            return super().compute_loss(model, inputs, **settings)

        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    rng = np.random.default_rng(0)
    rows = [
        {"input_ids": rng.integers(1, 32, int(length)).tolist(), "sample_weight": weight}
        for length, weight in zip([9, 5, 12, 7], [0.0, 2.5, 1.0, 0.5], strict=True)
    ]
    model, reference = tiny_model(), tiny_model()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    WeightedTrainer(model, arguments, train_dataset=rows, data_collator=WeightedCollator(padded)).train()
    total = sum(
        row["sample_weight"]
        * torch.nn.functional.cross_entropy(
            reference(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1],
            torch.tensor(row["input_ids"][1:]),
            reduction="sum",
        )
        for row in rows
    )
    shifted = sum(len(row["input_ids"]) - 1 for row in rows)
    assert set(counted) in ({shifted}, {shifted + len(rows)})  # releases count labels after or before they are shifted
    (total / counted[0]).backward()
    for name, parameter in reference.named_parameters():
        moved = dict(model.named_parameters())[name]
        torch.testing.assert_close(moved, parameter - 0.1 * parameter.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_draws_by_the_sampler(tmp_path):
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    from transformers import Trainer, TrainingArguments

    drawn = []

    class DrawingTrainer(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return WeightedSampler([row["weight"] for row in self.train_dataset], num_draws=12)

    def noted(rows):
        drawn.extend(row["place"] for row in rows)
        return padded(rows)

    rows = [{"input_ids": [1, 2, 3], "weight": weight, "place": i} for i, weight in enumerate([1, 0, 2, 0, 3])]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        num_train_epochs=2,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    DrawingTrainer(tiny_model(), arguments, train_dataset=rows, data_collator=noted).train()
    epochs = [drawn[:12], drawn[12:]]
    assert [np.bincount(epoch, minlength=5).tolist() for epoch in epochs] == [[2, 0, 4, 0, 6]] * 2
    assert epochs[0] != epochs[1]


def test_a_row_without_a_weight_is_named():
    with pytest.raises(ConfigError, match="a row has no 'sample_weight'; with transformers' Trainer set remove_"):
        WeightedCollator(padded)([{"input_ids": [1]}])
    with pytest.raises(ConfigError, match="a row has no 'mine'"):
        WeightedCollator(padded, column="mine")([{"input_ids": [1], "mine": None}])
