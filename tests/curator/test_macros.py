"""Selections against their definitions in plain Python, whatever the weights, names and order of rows are."""

from __future__ import annotations

import math
import random
from dataclasses import fields

import pytest
import selection_cases as witness
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import DOMAINS, Row, session, some_rows

from connectors import duck
from curator.errors import ConfigError
from curator.selection import (
    Curated,
    MixtureBudget,
    Quantiles,
    Repeats,
    Selection,
    TokenBudget,
    TopK,
    WeightedSample,
)

SHARES = {DOMAINS[0]: 3.0, DOMAINS[2]: 1.0, "not there": 0.5}


def taken(connection, selection, value="1"):
    """sample_id → what a selection says of the row."""
    rows = connection.execute(f"SELECT sample_id, {value} FROM {selection.call}").fetchall()
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def every_selection(seed):
    """(selection, the column that matters, the same in plain Python)."""
    return [
        (Curated(threshold=0.5), "1", lambda rows: {r.sample_id: 1 for r in rows if (r.sample_weight or 0) >= 0.5}),
        (TopK(fraction=0.3), "1", lambda rows: witness.top_k(rows, 0.3)),
        (TopK(fraction=1), "1", lambda rows: witness.top_k(rows, 1)),
        (WeightedSample(n=23, seed=seed), "1", lambda rows: witness.weighted_sample(rows, 23, seed)),
        (WeightedSample(n=9999, seed=seed), "1", lambda rows: witness.weighted_sample(rows, 9999, seed)),
        (Repeats(factor=1.7, max_repeats=3, seed=seed), "repeats", lambda rows: witness.repeats(rows, 1.7, 3, seed)),
        (TokenBudget(tokens=900, seed=seed), "repeats", lambda rows: witness.token_budget(rows, 900, 4, seed)),
        (TokenBudget(tokens=3, seed=seed), "repeats", lambda rows: witness.token_budget(rows, 3, 4, seed)),
        (
            TokenBudget(tokens=10**9, max_repeats=2, seed=seed),
            "repeats",
            lambda rows: witness.token_budget(rows, 10**9, 2, seed),
        ),
        (
            MixtureBudget(shares=SHARES, tokens=700, max_repeats=3, seed=seed),
            "repeats",
            lambda rows: witness.mixture(rows, SHARES, 700, 3, seed),
        ),
        (Quantiles(buckets=3), "bucket", lambda rows: witness.buckets(rows, 3)),
        (Quantiles(buckets=100), "bucket", lambda rows: witness.buckets(rows, 100)),
    ]


@pytest.mark.parametrize("seed", [0, 1, -5, 2**62])
@pytest.mark.parametrize("ties", [False, True])
def test_every_selection_is_what_its_definition_says(seed, ties):
    rows = some_rows(200, seed, ties=ties)
    shuffled = random.Random(seed).sample(rows, len(rows))
    ordered, permuted = session(rows), session(shuffled)
    for selection, value, expected in every_selection(seed):
        found = taken(ordered, selection, value)
        assert found == expected(rows), selection
        assert taken(permuted, selection, value) == found, selection


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(0, 2.0**100, width=32)), st.integers(1, 10**6), st.sampled_from(DOMAINS)
        ),
        max_size=40,
    ),
    tokens=st.integers(1, 10**7),
    max_repeats=st.integers(1, 5),
    seed=st.integers(-(2**62), 2**62),
)
def test_budgets_and_caps_hold_for_any_weights(weights, tokens, max_repeats, seed):
    rows = [Row(f"{i}", domain, weight, size) for i, (weight, size, domain) in enumerate(weights)]
    size_of = {row.sample_id: row.num_tokens for row in rows}
    connection = session(rows)
    shares = {DOMAINS[0]: 1.0, DOMAINS[1]: 2.0}
    for selection, budgets in (
        (TokenBudget(tokens=tokens, max_repeats=max_repeats, seed=seed), {None: tokens}),
        (
            MixtureBudget(shares=shares, tokens=tokens, max_repeats=max_repeats, seed=seed),
            {domain: tokens * share / 3 for domain, share in shares.items()},
        ),
    ):
        found = taken(connection, selection, "repeats")
        assert all(1 <= count <= max_repeats for count in found.values())
        for domain, budget in budgets.items():
            own = [row for row in rows if row.sample_weight and domain in (None, row.domain)]
            used = sum(found.get(row.sample_id, 0) * row.num_tokens for row in own)
            assert used <= budget
            left = [size_of[row.sample_id] for row in own if found.get(row.sample_id, 0) < max_repeats]
            if left:
                assert budget - used < max(left)


def test_repeats_have_exactly_the_expected_value_over_the_draws():
    """⌊r⌋ + [u < r − ⌊r⌋] over the midpoints of 64 intervals of u: exact where 64·r is an integer."""
    ids = {}
    for number in range(10_000):  # one id for each interval of u
        ids.setdefault(int(witness.draw(str(number), 0) * 64), str(number))
    assert len(ids) == 64
    for r in (0.25, 1.0, 1.171875, 2.5, 2.984375, 3.0):
        rows = [Row(sample_id, "web", r, 1) for sample_id in ids.values()]
        found = taken(session(rows), Repeats(max_repeats=100), "repeats")
        assert sum(found.values()) == 64 * r
        assert set(found.values()) <= {math.floor(r), math.ceil(r)}
        capped = taken(session(rows), Repeats(max_repeats=2), "repeats")
        assert sum(capped.values()) == 64 * min(2, r)


def test_repeats_average_to_the_weight_over_seeds():
    rows = [Row(str(i), "web", weight, 1) for i, weight in enumerate([0.1, 0.5, 1.0, 1.9, 3.25])]
    connection, num = session(rows), 200
    sums = dict.fromkeys((row.sample_id for row in rows), 0)
    for seed in range(num):
        for sample_id, count in taken(connection, Repeats(seed=seed), "repeats").items():
            sums[sample_id] += count
    for row in rows:
        part = row.sample_weight % 1
        assert abs(sums[row.sample_id] / num - row.sample_weight) <= 5 * math.sqrt(part * (1 - part) / num) + 1e-9


def test_a_sample_of_one_follows_the_weights():
    """P(row i first) = w_i / Σw; and of two, by the formula of successive draws."""
    weights, num = [1.0, 2.0, 5.0, 0.0], 400
    rows = [Row(f"row {i}", "web", weight, 1) for i, weight in enumerate(weights)]
    connection = session(rows)
    first, among_two = [0] * 4, [0] * 4
    for seed in range(num):
        for count, n in ((first, 1), (among_two, 2)):
            for sample_id in taken(connection, WeightedSample(n=n, seed=seed)):
                count[int(sample_id.removeprefix("row "))] += 1
    total = sum(weights)
    for i, weight in enumerate(weights):
        p = weight / total
        two = p + sum(other / total * weight / (total - other) for j, other in enumerate(weights) if j != i)
        for share, expected in ((first[i] / num, p), (among_two[i] / num, two)):
            assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / num)


def test_equal_weights_of_a_domain_are_taken_alike():
    """With weights by domain alone, tokens are shared as the domain weights say, up to the rounding of rows."""
    rows = [Row(f"{d}{i}", d, {"a": 0.5, "b": 1.5}[d], 10) for d in "ab" for i in range(2000)]
    found = taken(session(rows), TokenBudget(tokens=12_000, max_repeats=4), "repeats")
    in_a = sum(count for sample_id, count in found.items() if sample_id[0] == "a")
    assert sum(found.values()) == 1200
    assert abs(in_a - 300) < 60  # binomial of 1200 rows, 4 standard deviations
    assert set(found.values()) == {1}  # less than one pass: nothing twice while an equal is left out


def test_columns_of_the_lake_keep_out_of_the_way():
    """Names of our columns, of the macros' parameters and of what they compute with."""
    rows = some_rows(30)
    names = ["num_tokens", "Repeats", "bucket", "original_bucket", "seed", "n", "tokens", "key", "u", "id", "part", "c"]
    connection = session(rows, **{name: list(range(30)) for name in names}, **{'"; x': ["'"] * 30})
    plain = session(rows)
    for selection, value, _ in every_selection(0):
        assert taken(connection, selection, value) == taken(plain, selection, value)
    columns = connection.sql(f"FROM {TokenBudget(tokens=100).call}").columns
    assert columns[3:7] == ["original_num_tokens", "original_Repeats", "original_original_bucket", "original_bucket"]
    assert columns[-3:] == ['"; x', "num_tokens", "repeats"]


def test_no_rows_and_no_weights_select_nothing():
    for rows in ([], [Row("a", "web", None, 1), Row("b", "web", 0.0, 3)]):
        for selection, _, expected in every_selection(0):
            assert taken(session(rows), selection) == dict.fromkeys(expected(rows), 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Curated(threshold=math.nan), "threshold=nan"),
        (lambda: Curated(threshold=10**400), "must be a number"),
        (lambda: TopK(fraction=0), "above 0 and at most 1"),
        (lambda: TopK(fraction=1.5), "above 0 and at most 1"),
        (lambda: WeightedSample(n=0), "n=0"),
        (lambda: WeightedSample(n=2.5), "must be an integer"),
        (lambda: WeightedSample(n=1, seed=2**70), "seed="),
        (lambda: Repeats(factor=0), "above 0"),
        (lambda: Repeats(factor="1; DROP TABLE x"), "factor="),
        (lambda: TokenBudget(tokens=True), "tokens=True"),
        (lambda: TokenBudget(tokens=1, max_repeats=0), "max_repeats=0"),
        (lambda: MixtureBudget(shares={}, tokens=1), "no domain more than 0"),
        (lambda: MixtureBudget(shares={"a": -1}, tokens=1), "'a' -1"),
        (lambda: MixtureBudget(shares={"a": math.inf}, tokens=1), "'a' inf"),
        (lambda: Quantiles(buckets=0), "buckets=0"),
    ],
)
def test_values_that_mean_nothing_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


INTEGER = "must be an integer from"
REFUSED_CALLS = [
    ("curated('nan'::DOUBLE)", "curated: threshold=nan is not allowed; it must be a number"),
    ("curated('inf'::DOUBLE)", "curated: threshold=inf"),
    ("curated(NULL)", "curated: threshold=NULL"),
    ("curated('high')", "curated: threshold=high"),
    ("top_k(0)", "top_k: fraction=0 is not allowed; it must be above 0 and at most 1"),
    ("top_k(1.5)", "top_k: fraction=1.5"),
    ("top_k(-0.1)", "top_k: fraction=-0.1"),
    ("top_k('nan'::DOUBLE)", "top_k: fraction=nan"),
    ("top_k(NULL)", "top_k: fraction=NULL"),
    ("weighted_sample(-3)", f"weighted_sample: n=-3 is not allowed; it {INTEGER} 1 to 9223372036854775807"),
    ("weighted_sample(0, 1)", "weighted_sample: n=0"),
    ("weighted_sample(2.5)", "weighted_sample: n=2.5"),
    ("weighted_sample(9223372036854775808)", "weighted_sample: n=9223372036854775808"),
    ("weighted_sample(NULL)", "weighted_sample: n=NULL"),
    ("weighted_sample(1, seed := 0.5)", f"weighted_sample: seed=0.5 is not allowed; it {INTEGER} -92233720368547758"),
    ("weighted_sample(1, NULL)", "weighted_sample: seed=NULL"),
    ("repeats(0, 4)", "repeats: factor=0 is not allowed; it must be above 0"),
    ("repeats('inf'::DOUBLE, 4)", "repeats: factor=inf"),
    ("repeats(NULL, 4)", "repeats: factor=NULL"),
    ("repeats(1, 0)", f"repeats: max_repeats=0 is not allowed; it {INTEGER} 1 to 1000"),
    ("repeats(1, 1001)", "repeats: max_repeats=1001"),
    ("repeats(1, NULL)", "repeats: max_repeats=NULL"),
    ("repeats(1, 4, 1e30)", "repeats: seed=1e"),
    ("token_budget(0, 4)", "token_budget: tokens=0"),
    ("token_budget(1.5, 4)", "token_budget: tokens=1.5"),
    ("token_budget(NULL, 4)", "token_budget: tokens=NULL"),
    ("token_budget(100, -1)", "token_budget: max_repeats=-1"),
    ("token_budget(100, 2.5)", "token_budget: max_repeats=2.5"),
    ("token_budget(100, NULL)", "token_budget: max_repeats=NULL"),
    ("token_budget(100, 4, NULL)", "token_budget: seed=NULL"),
    ("mixture(MAP {}, 100, 4)", "mixture: shares={} is not allowed; it must be a map of domains to numbers of at leas"),
    ("mixture(MAP {'web': 0}, 100, 4)", "mixture: shares={web=0}"),
    ("mixture(MAP {'web': -1, 'code': 2}, 100, 4)", "mixture: shares={web=-1, code=2}"),
    ("mixture(MAP {'web': 'nan'::DOUBLE}, 100, 4)", "mixture: shares={web=nan}"),
    ("mixture(NULL, 100, 4)", "mixture: shares=NULL"),
    ("mixture(MAP {'web': 1}, 0, 4)", "mixture: tokens=0"),
    ("mixture(MAP {'web': 1}, 100, 0)", "mixture: max_repeats=0"),
    ("quantiles(0)", f"quantiles: buckets=0 is not allowed; it {INTEGER} 1 to 1000"),
    ("quantiles(1.5)", "quantiles: buckets=1.5"),
    ("quantiles(1001)", "quantiles: buckets=1001"),
    ("quantiles(NULL)", "quantiles: buckets=NULL"),
]


@pytest.fixture(scope="module")
def weighed():
    return session(some_rows(60))


@pytest.mark.parametrize(("call", "said"), REFUSED_CALLS)
def test_arguments_that_mean_nothing_fail_with_a_sentence(weighed, call, said):
    for query in (f"FROM {call}", f"SELECT count(*) FROM {call}"):
        with pytest.raises(duck.Error) as failed:
            weighed.execute(query).fetchall()
        assert said in str(failed.value), query


def test_every_limit_of_a_macro_is_tried():
    """Each argument of each macro has a call above that it alone makes fail."""
    tried = {said.partition("=")[0] for _, said in REFUSED_CALLS}
    for kind in Selection.__subclasses__():
        for argument in fields(kind):
            assert argument.name == "seed" or f"{kind.macro}: {argument.name}" in tried


@pytest.mark.parametrize("call", ["top_k(1)", f"weighted_sample({2**63 - 1}, {1 - 2**63})", "curated(-5)"])
def test_the_ends_of_what_is_allowed_are_allowed(weighed, call):
    assert weighed.execute(f"SELECT count(*) FROM {call}").fetchone()[0] > 30


def test_every_macro_has_a_selection():
    query = "SELECT function_name FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal"
    assert {name for (name,) in session([]).execute(query).fetchall()} == {
        kind.macro for kind in Selection.__subclasses__()
    }
