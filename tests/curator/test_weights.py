from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.weights import SCHEMA, WeightIdentityError, WeightTable, weight_table


@st.composite
def corpora(draw):
    """(domain, num_tokens, weights) with at least one row in each of 2-6 domains."""
    num_domains = draw(st.integers(2, 6))
    extra = draw(st.lists(st.integers(0, num_domains - 1), max_size=40))
    domain = draw(st.permutations([*range(num_domains), *extra]))
    tokens = draw(st.lists(st.integers(1, 5000), min_size=len(domain), max_size=len(domain)))
    raw = draw(st.lists(st.floats(1e-3, 1), min_size=num_domains, max_size=num_domains))
    return np.array(domain, np.int32), np.array(tokens, np.int64), np.array(raw) / sum(raw)


def make(domain, tokens, weights):
    ids = pa.array([f"{i:05}" for i in range(len(domain))])
    return weight_table(ids, domain, tokens, [f"d{i}" for i in range(len(weights))], weights)


@given(corpora())
def test_the_mean_weight_is_one_and_token_shares_are_the_domain_weights(corpus):
    domain, tokens, weights = corpus
    table = make(*corpus)
    weight = table.samples["sample_weight"].to_numpy().astype(np.float64)
    assert weight.mean() == pytest.approx(1, abs=1e-5)
    mass = np.bincount(domain, weights=weight * tokens)
    np.testing.assert_allclose(mass / mass.sum(), weights, atol=1e-5)
    np.testing.assert_allclose(table.samples["domain_weight"].to_numpy(), weights[domain], rtol=1e-6)


@given(corpora())
def test_the_domain_table_adds_up(corpus):
    domain, tokens, weights = corpus
    table = make(*corpus)
    assert [d.domain for d in table.domains] == [f"d{i}" for i in range(len(weights))]
    assert sum(d.natural_share for d in table.domains) == pytest.approx(1)
    assert sum(d.num_samples for d in table.domains) == len(domain)
    assert sum(d.num_tokens for d in table.domains) == tokens.sum()
    for row in table.domains:
        assert row.ratio * row.natural_share == pytest.approx(row.domain_weight)


@given(corpora())
def test_rows_of_a_domain_weigh_the_same(corpus):
    samples = make(*corpus).samples
    assert samples.group_by("domain").aggregate([("sample_weight", "count_distinct")])[
        "sample_weight_count_distinct"
    ].to_pylist() == [1] * len(corpus[2])


def spread(domain, tokens, weights, within):
    ids = pa.array([f"{i:05}" for i in range(len(domain))])
    return weight_table(ids, domain, tokens, [f"d{i}" for i in range(len(weights))], weights, within)


@given(corpora(), st.integers(0, 2**32))
def test_in_domain_weights_spread_a_domain_and_keep_the_identities(corpus, seed):
    """sample_weight / v is one number a domain; mean and token shares are what they were."""
    domain, tokens, weights = corpus
    within = np.exp(np.random.default_rng(seed).normal(size=len(domain)))
    weight = spread(*corpus, within).samples["sample_weight"].to_numpy().astype(np.float64)
    assert weight.mean() == pytest.approx(1, abs=1e-5)
    mass = np.bincount(domain, weights=weight * tokens)
    np.testing.assert_allclose(mass / mass.sum(), weights, atol=1e-5)
    for d in range(len(weights)):
        ratio = (weight / within)[domain == d]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_the_scale_of_in_domain_weights_says_nothing():
    corpus = np.array([0, 0, 1, 1], np.int32), np.array([10, 30, 5, 5], np.int64), np.array([0.4, 0.6])
    once, scaled = (spread(*corpus, np.array([1, 2, 3, 1]) * scale) for scale in (1.0, np.array([7, 7, 0.1, 0.1])))
    found = once.samples["sample_weight"].to_numpy()
    np.testing.assert_allclose(scaled.samples["sample_weight"].to_numpy(), found, rtol=1e-6)
    # .4/(10 + 60) a token of v, twice that, and .6/(15 + 5) thrice and once
    np.testing.assert_allclose(found / found[0], np.array([0.4, 0.8, 0.6 * 3 * 3.5, 0.6 * 3.5]) / 0.4, rtol=1e-6)
    assert once.domains == make(*corpus).domains


def test_natural_weights_leave_every_row_at_one():
    domain, tokens = np.array([0, 0, 1], np.int32), np.array([10, 20, 10], np.int64)
    table = make(domain, tokens, np.array([0.75, 0.25]))
    np.testing.assert_allclose(table.samples["sample_weight"].to_numpy(), [1, 1, 1], rtol=1e-6)
    assert [d.ratio for d in table.domains] == [1, 1]


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    domain = np.r_[0, 1, 2, rng.integers(0, 3, 50)].astype(np.int32)
    return make(domain, rng.integers(1, 99, 53), np.array([0.2, 0.3, 0.5]))


def with_weights(table, weights):
    place = SCHEMA.get_field_index("sample_weight")
    column = pa.array(np.asarray(weights, np.float32))
    return WeightTable(samples=table.samples.set_column(place, SCHEMA.field(place), column), domains=table.domains)


def test_an_untouched_table_passes(table):
    table.check()


def test_a_row_that_was_changed_is_found(table):
    weights = table.samples["sample_weight"].to_numpy().copy()
    weights[7] *= 1.5
    with pytest.raises(WeightIdentityError, match=r"the mean sample_weight is 1\.0\d+, not 1"):
        with_weights(table, weights).check()


def test_rows_exchanged_between_domains_are_found_though_the_mean_stays(table):
    weights = table.samples["sample_weight"].to_numpy()[::-1]
    with pytest.raises(WeightIdentityError, match=r"domain 'd\d' holds 0\.\d+ of the weighted tokens"):
        with_weights(table, weights).check()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_no_weight_is_found(table, bad):
    weights = table.samples["sample_weight"].to_numpy().copy()
    weights[0] = bad
    with pytest.raises(WeightIdentityError, match="negative or not a finite number"):
        with_weights(table, weights).check()


def test_a_domain_table_that_was_changed_is_found(table):
    first, *rest = table.domains
    with pytest.raises(WeightIdentityError, match=r"sum to 1\.1"):
        replace(table, domains=(replace(first, domain_weight=first.domain_weight + 0.1), *rest)).check()
    swapped = (
        replace(first, domain_weight=rest[0].domain_weight),
        replace(rest[0], domain_weight=first.domain_weight),
        rest[1],
    )
    with pytest.raises(WeightIdentityError, match="'d0' holds"):
        replace(table, domains=swapped).check()
    missing = WeightTable(samples=table.samples.filter(pa.compute.equal(table.samples["domain"], "d1")), domains=())
    with pytest.raises(WeightIdentityError, match="sum to"):
        missing.check()
