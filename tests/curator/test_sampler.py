from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from curator.sampler import Sampler, SamplerSettings
from curator.tokens import BOUNDARY, RowBatch, Tokenizer, write_cache

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [train]")

# Words of every row, by domain. Every word of the corpus is another token, so a target position is known by its token.
SHAPES = {"few": [3, 9, 2], "long": [40, 7], "many": [4] * 11, "one": [5]}
LENGTH = 8


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    count, texts, labels = 1, [], []
    for d, shape in enumerate(SHAPES.values()):
        for words in shape:
            texts.append(" ".join(f"w{i}" for i in range(count, count + words)))
            labels.append(d)
            count += words
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({BOUNDARY: 0} | {f"w{i}": i for i in range(1, count)}, unk_token=BOUNDARY)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words = Tokenizer(backend=backend, boundary_id=0)
    found = []
    for name, rows, domains in (("corpus", texts, list(SHAPES)), ("target", texts[:4], ["target"])):
        folder = tmp_path_factory.mktemp(name)
        ids = pa.array([f"{i:04}" for i in range(len(rows))])
        domain = np.array(labels if name == "corpus" else [0] * len(rows), np.int32)
        found.append(write_cache(folder, words, [RowBatch(sample_id=ids, text=rows, domain=domain)], domains))
    return found


def sampler(caches, **changed):
    settings = {"sequence_length": LENGTH, "rows_per_domain": 2, "domains_per_step": 4, "target_rows": 3, "seed": 5}
    return Sampler(*caches, SamplerSettings(**(settings | changed)))


def tensors(data):
    parts = [data.inclusion_D]
    for batch in (data.train, data.target):
        parts += [batch.tokens_BS, batch.mask_BS, batch.domain_B, batch.row_weight_B]
    return parts


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def windows(batch, domain):
    """(input and target tokens) of the rows of a domain, padding cut off."""
    lengths = batch.mask_BS.sum(1).int().tolist()
    return [
        tuple(batch.tokens_BS[i, : lengths[i] + 1].tolist())
        for i in range(len(lengths))
        if int(batch.domain_B[i]) == domain
    ]


def drawn(source, domain, num_draws):
    found = []
    step = 0
    while len(found) < num_draws:
        found += windows(source.at(step).train, domain)
        step += 1
    return found[:num_draws]


def expected_windows(words, first_word):
    """The windows of a row of `words` words, of which the first is token `first_word`."""
    ids = [0, *range(first_word, first_word + words), 0]
    return [tuple(ids[start : start + LENGTH + 1]) for start in range(0, len(ids) - 1, LENGTH)]


def all_windows():
    found, first = [], 1
    for shape in SHAPES.values():
        found.append([])
        for words in shape:
            found[-1] += expected_windows(words, first)
            first += words
    return found


def test_a_step_is_a_function_of_seed_and_step_alone(caches):
    forwards, backwards = sampler(caches), sampler(caches)
    steps = {step: forwards.at(step) for step in range(40)}
    assert all(same(backwards.at(step), steps[step]) for step in reversed(range(40)))
    assert not same(steps[0], steps[1])
    assert not same(sampler(caches, seed=6).at(0), steps[0])


def test_every_window_is_drawn_once_an_epoch_in_a_new_order(caches):
    source = sampler(caches)
    for d, expected in enumerate(all_windows()):
        orders = []
        draws = drawn(source, d, 3 * len(expected))
        for epoch in range(3):
            part = draws[epoch * len(expected) : (epoch + 1) * len(expected)]
            assert sorted(part) == sorted(expected)
            orders.append(tuple(part))
        if len(expected) > 4:
            assert len(set(orders)) == 3


def test_windows_of_a_long_row_cover_every_target_once(caches):
    for d, (shape, expected) in enumerate(zip(SHAPES.values(), all_windows(), strict=True)):
        targets = [token for window in drawn(sampler(caches), d, len(expected)) for token in window[1:]]
        counts = Counter(targets)
        assert counts.pop(0) == len(shape)  # the closing boundary of each row
        assert set(counts.values()) == {1}
        assert len(counts) == sum(shape)


def test_each_domain_has_the_same_number_of_rows_in_a_step(caches):
    for step in range(10):
        data = sampler(caches, rows_per_domain=3).at(step)
        assert Counter(data.train.domain_B.tolist()) == {0: 3, 1: 3, 2: 3, 3: 3}
        assert data.target.domain_B.tolist() == [-1, -1, -1]
        assert data.inclusion_D.tolist() == [1, 1, 1, 1]


def test_padding_carries_no_loss_and_a_batch_is_no_wider_than_its_longest_row(caches):
    for step in range(10):
        batch = sampler(caches).at(step).train
        assert batch.tokens_BS.shape[1] == batch.mask_BS.shape[1] + 1 <= LENGTH + 1
        assert int(batch.mask_BS.sum(1).max()) == batch.mask_BS.shape[1]
        padding = batch.tokens_BS[:, 1:][batch.mask_BS == 0]
        assert padding.eq(0).all()
        assert (batch.mask_BS[:, 1:] <= batch.mask_BS[:, :-1]).all()  # ones, then zeros


def test_a_subset_of_the_domains_is_unbiased(caches):
    source = sampler(caches, domains_per_step=2)
    inclusion, times = torch.zeros(4, dtype=torch.float64), Counter()
    for step in range(2000):
        data = source.at(step)
        present = sorted(set(data.train.domain_B.tolist()))
        assert len(present) == 2
        assert data.inclusion_D.nonzero().flatten().tolist() == present
        assert data.inclusion_D[present].tolist() == [2.0, 2.0]
        inclusion += data.inclusion_D
        times.update(present)
    # the indicator of each domain is Bernoulli(1/2): the mean of 2·indicator has standard deviation 1/√2000 = 0.022
    torch.testing.assert_close(inclusion / 2000, torch.ones(4, dtype=torch.float64), atol=0.09, rtol=0)
    assert all(abs(count - 1000) < 90 for count in times.values())


def test_the_target_goes_through_its_windows_too(caches):
    source = sampler(caches, target_rows=1)
    expected = all_windows()[0] + expected_windows(40, 15)
    found = [windows(source.at(step).target, -1)[0] for step in range(len(expected))]
    assert sorted(found) == sorted(expected)
