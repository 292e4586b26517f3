"""The evaluator's data: shares of a mixture met token by token, and every test row measured whole."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.sampler import MixtureSampler, RowSet
from curator.tokens import TokenCache

MOST_STEPS = 24


def cache_of(row_lengths, folder=None):
    """A token cache of domains with rows of these numbers of target tokens; every token is another one."""
    length = np.array([n for rows in row_lengths for n in rows], dtype=np.int64)
    domain = np.array([d for d, rows in enumerate(row_lengths) for _ in rows], dtype=np.int32)
    return TokenCache(
        folder=folder,
        tokens=np.arange(int((length + 1).sum())),
        start=np.cumsum(length + 1) - (length + 1),
        num_targets=length,
        domain=domain,
        domains=tuple(f"d{d}" for d in range(len(row_lengths))),
        vocab_size=2**31,
    )


def windows_of(cache, length):
    """First token → (domain, tokens) of every window, from the definition."""
    found = {}
    for start, targets, domain in zip(cache.start, cache.num_targets, cache.domain, strict=True):
        for at in range(0, int(targets), length):
            found[int(start) + at] = (int(domain), min(length, int(targets) - at))
    return found


def drawn(batch):
    """(first token, domain, target tokens) of the windows of a batch."""
    first, domain, tokens = batch.tokens_BS[:, 0], batch.domain_B, batch.mask_BS.sum(1).int()
    return list(zip(first.tolist(), domain.tolist(), tokens.tolist(), strict=True))


@st.composite
def cases(draw, wide=False):
    """(cache, weights, sequence length, tokens a step, seed); `wide`: steps that never run dry."""
    rows = st.lists(st.integers(1, 30), min_size=1, max_size=6)
    shape = draw(st.lists(rows, min_size=1, max_size=6))
    raw = draw(st.lists(st.integers(0, 100), min_size=len(shape), max_size=len(shape)).filter(any))
    weights = np.array(raw) / sum(raw)
    length = draw(st.integers(2, 16))
    least = np.count_nonzero(weights) * length if wide else length
    return cache_of(shape), weights, length, draw(st.integers(least, least + 60)), draw(st.integers(0, 5))


def sampler(case):
    cache, weights, length, tokens, seed = case
    return MixtureSampler(cache, weights, sequence_length=length, tokens_per_step=tokens, seed=seed)


def tokens_after_each_step(case):
    """(steps, D) target tokens that each domain has had."""
    batches = sampler(case).batches(MOST_STEPS)
    of_steps = [np.bincount(b.domain_B, weights=b.mask_BS.sum(1), minlength=len(case[1])) for b in batches]
    return np.cumsum(of_steps, axis=0)


@settings(max_examples=25, deadline=None)
@given(cases(wide=True))
def test_every_domain_has_its_share_within_one_window_after_every_step(case):
    _, weights, length, tokens, _ = case
    budget = tokens * np.arange(1, MOST_STEPS + 1)
    assert (abs(tokens_after_each_step(case) - budget[:, None] * weights) <= length + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(cases())
def test_steps_of_one_window_put_a_domain_ahead_by_no_more_than_is_said(case):
    _, weights, length, tokens, _ = case
    ahead = tokens_after_each_step(case) - (tokens * np.arange(1, MOST_STEPS + 1))[:, None] * weights
    assert (ahead >= -length - 1e-6).all()
    assert (ahead <= length * (1 + weights * np.count_nonzero(weights)) + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(cases())
def test_windows_are_whole_none_is_seen_again_before_all_were_and_weight_0_draws_none(case):
    cache, weights, length, _, _ = case
    known = windows_of(cache, length)
    seen = Counter()
    for batch in sampler(case).batches(MOST_STEPS):
        assert batch.num_rows >= 1
        assert torch.equal(batch.row_weight_B, torch.ones(batch.num_rows))
        for i, (first, domain, tokens) in enumerate(drawn(batch)):
            assert known[first] == (domain, tokens)
            assert batch.tokens_BS[i, : tokens + 1].tolist() == list(range(first, first + tokens + 1))
            assert weights[domain] > 0
            seen[first] += 1
            times = [seen[other] for other, (of, _) in known.items() if of == domain]
            assert max(times) - min(times) <= 1


@settings(max_examples=25, deadline=None)
@given(cases(), st.data())
def test_equal_seeds_visit_the_windows_of_a_domain_in_the_same_order_whatever_the_weights(case, data):
    cache, weights, length, tokens, seed = case
    raw = data.draw(st.lists(st.integers(0, 9), min_size=len(weights), max_size=len(weights)).filter(any))
    other = (cache, np.array(raw) / sum(raw), length, tokens, seed)
    orders = []
    for each in (case, other):
        found = [item for batch in sampler(each).batches(MOST_STEPS) for item in drawn(batch)]
        orders.append([[first for first, domain, _ in found if domain == d] for d in range(len(weights))])
    for one, two in zip(*orders, strict=True):
        shared = min(len(one), len(two))
        assert one[:shared] == two[:shared]


def test_another_seed_visits_in_another_order_and_the_same_one_in_the_same():
    cache, weights = cache_of([[5] * 30, [7] * 30]), np.array([0.5, 0.5])
    firsts = [
        [item for batch in sampler((cache, weights, 8, 40, seed)).batches(10) for item in drawn(batch)]
        for seed in (0, 0, 1)
    ]
    assert firsts[0] == firsts[1] != firsts[2]


def test_a_small_domain_is_repeated_as_often_as_its_weight_makes_it():
    cache = cache_of([[10] * 4, [10] * 400])
    seen = Counter(
        first
        for batch in sampler((cache, np.array([0.5, 0.5]), 16, 100, 0)).batches(40)
        for first, domain, _ in drawn(batch)
        if domain == 0
    )
    assert len(seen) == 4
    assert set(seen.values()) == {50}


def test_a_batch_has_about_the_tokens_that_were_asked_for():
    cache = cache_of([[9, 30, 4] * 9, [50] * 9, [3] * 20])
    sizes = [int(b.mask_BS.sum()) for b in sampler((cache, np.array([0.2, 0.5, 0.3]), 16, 400, 0)).batches(30)]
    assert abs(sum(sizes) - 30 * 400) <= 3 * 16
    assert all(abs(size - 400) <= 2 * 3 * 16 for size in sizes)


@settings(max_examples=25, deadline=None)
@given(cases(), st.floats(0.01, 0.99))
def test_a_share_of_the_data_is_that_share_of_each_domains_rows(case, share):
    cache, weights, length, tokens, seed = case
    settings_ = {"sequence_length": length, "tokens_per_step": tokens, "seed": seed}
    seen = Counter()
    for batch in MixtureSampler(cache, weights, data_share=share, **settings_).batches(200):
        seen.update((domain, first) for first, domain, _ in drawn(batch))
    row_of = np.searchsorted(cache.start, [first for _, first in seen], side="right") - 1
    rows = {domain: set() for domain in range(len(weights))}
    for (domain, _), row in zip(seen, row_of, strict=True):
        rows[domain].add(int(row))
    for domain, found in rows.items():
        there = int((cache.domain == domain).sum())
        assert len(found) <= max(1, np.ceil(share * there))


def test_a_share_of_the_data_is_repeated_as_often_as_a_budget_repeats_all_of_it():
    """A tenth of the tokens on a tenth of the rows: every window that is there comes as often."""
    cache = cache_of([[8] * 100, [8] * 40])
    weights = np.array([0.3, 0.7])

    def times(share, num_steps):
        sampler = MixtureSampler(cache, weights, sequence_length=8, tokens_per_step=80, seed=3, data_share=share)
        seen = Counter((d, first) for batch in sampler.batches(num_steps) for first, d, _ in drawn(batch))
        return [sorted(n for (d, _), n in seen.items() if d == domain) for domain in (0, 1)]

    part, whole = times(0.1, 20), times(1.0, 200)
    assert [len(each) for each in part] == [10, 4]
    assert [len(each) for each in whole] == [100, 40]
    for few, many in zip(part, whole, strict=True):
        assert abs(np.mean(few) - np.mean(many)) <= 0.25
        assert max(few) - min(few) <= 1


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(2, 16),
    st.integers(1, 5),
)
def test_the_losses_of_the_windows_of_every_row_are_added_up(shape, length, at_a_time):
    """With a token's number as its loss, a row's loss is the sum of the numbers of its targets."""
    cache = cache_of(shape)
    rows = RowSet(cache, length)
    batches = list(rows.batches(windows_per_batch=at_a_time))
    assert all(batch.num_rows <= at_a_time for batch in batches)
    losses = [(b.tokens_BS[:, 1:].double() * b.mask_BS).sum(1) for b in batches]
    expected = [
        sum(range(int(start) + 1, int(start) + 1 + int(targets)))
        for start, targets in zip(cache.start, cache.num_targets, strict=True)
    ]
    assert rows.by_row(torch.cat(losses).numpy()).tolist() == expected


def test_the_rows_of_a_real_cache_are_measured_in_the_order_of_their_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [train]")
    from curator.tokens import BOUNDARY, RowBatch, Tokenizer, write_cache

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({BOUNDARY: 0, "a": 1}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    texts = [" ".join("a" * n) for n in (20, 3, 11)]
    batch = RowBatch(sample_id=pa.array(["c", "a", "b"]), text=texts, domain=np.zeros(3, np.int32))
    cache = write_cache(tmp_path, Tokenizer(backend=words, boundary_id=0), [batch], ["test"])
    rows = RowSet(cache, 8)
    (only,) = islice(rows.batches(), 2)
    assert rows.by_row(only.mask_BS.sum(1).double().numpy()).tolist() == [4, 12, 21] == cache.num_targets.tolist()
