"""Features of texts against a slow computation in plain Python, and what they must not depend on."""

import inspect
import json
import math
import textwrap
from collections import Counter as Tally
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from curator import features
from curator.features import (
    BUCKET_BITS,
    BYTE_LENGTHS,
    LONGEST,
    NAMES,
    NUM_BUCKETS,
    NUM_HASHED,
    Counter,
    Frequencies,
    describe,
    halves,
    text_hashes,
    unit_hashes,
)

GOLDEN, BASE, PAIR = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9
MASK = (1 << 64) - 1
ODD = [
    "",
    "a",
    "é",
    " ",
    "12 34",
    "ab",
    "A-b_C 9",
    "  two  words ",
    "ends\n",
    "日本語の文 mixed",
    "x" * 300,
    "\0nul\0",
    "ab",
]


def real_texts():
    """Paragraphs of the standard library's documentation, with odd ones between."""
    modules = (json, textwrap, inspect, math)
    found = [part for module in modules for part in (module.__doc__ or "").split("\n\n")]
    found += [value.__doc__ for module in modules for value in vars(module).values() if inspect.isfunction(value)]
    return [*ODD, *(text for text in found if text)]


TEXTS = real_texts()
IDS = [f"row {i}" for i in range(len(TEXTS))]


def bucket(code):
    return (code * GOLDEN & MASK) >> (64 - BUCKET_BITS)


def words_of(data):
    """Hashes of the words."""
    found, word = [], b""
    for byte in [*data, 32]:
        if byte >= 128 or chr(byte).isalnum():
            word += bytes([byte]).lower() if byte < 128 else bytes([byte])
        elif word:
            found.append((len(word), sum((b + 1) * pow(BASE, i, 1 << 64) for i, b in enumerate(word)) & MASK))
            word = b""
    return found


def grams_of(text):
    """The buckets of the sequences: a list for each length of bytes, then for each of words."""
    data = text.encode()[:LONGEST]
    by_bytes = [
        [
            bucket((int.from_bytes(data[i : i + length], "little") + (length << 40)) & MASK)
            for i in range(len(data) - length + 1)
        ]
        for length in BYTE_LENGTHS
    ]
    words = [code for _, code in words_of(data)]
    return by_bytes, [[bucket(w) for w in words], [bucket((a * PAIR + b) & MASK) for a, b in pairwise(words)]]


def counted(text):
    by_bytes, by_words = grams_of(text)
    return [by_bytes[2], by_bytes[4], *by_words]


def slow_frequencies(texts):
    """A table for each kind, as a function of the bucket."""
    tallies = [Tally(b for text in texts for b in counted(text)[kind]) for kind in range(4)]
    totals = [sum(tally.values()) + 0.5 * NUM_BUCKETS for tally in tallies]
    return [
        lambda b, tally=tally, total=total: round(512 * math.log((tally[b] + 0.5) / total)) / 512
        for tally, total in zip(tallies, totals, strict=True)
    ]


def mean(values):
    return sum(values) / len(values) if values else 0.0


def slow_dense(text, tables):
    data = text.encode()[:LONGEST]
    size, words = max(len(data), 1), words_of(data)
    kinds = [
        lambda b: 48 <= b < 58,
        lambda b: b in b"\t\n\v\f\r ",
        lambda b: b < 128 and not chr(b).isalnum() and b not in b"\t\n\v\f\r ",
        lambda b: 65 <= b < 91,
        lambda b: b >= 128,
    ]
    shape = [math.log1p(len(data)), *(sum(map(kind, data)) / size for kind in kinds), mean([n for n, _ in words])]
    return shape + [mean([table(b) for b in found]) for table, found in zip(tables, counted(text) * 2, strict=True)]


def slow_hashed(text):
    row = []
    for kind in grams_of(text):
        shares = np.zeros((len(kind), NUM_HASHED))
        for length, found in enumerate(kind):
            for b in found:
                shares[length, b * NUM_HASHED // NUM_BUCKETS] += 1 / len(found)
        row.append(shares.mean(axis=0))
    return np.concatenate(row)


@pytest.fixture(scope="module")
def lake_frequencies():
    counter = Counter()
    counter.add_lake(pa.array(TEXTS), halves(pa.array(TEXTS)))
    counter.add_target(pa.array(TEXTS[::3]))
    return counter.frequencies()


def test_features_are_those_of_a_slow_computation(lake_frequencies):
    half = halves(pa.array(TEXTS))
    assert 0 < half.mean() < 1
    found = describe(pa.array(TEXTS), half, lake_frequencies)
    tables = [slow_frequencies([t for t, h in zip(TEXTS, half, strict=True) if h == side]) for side in (0, 1)]
    target = slow_frequencies(TEXTS[::3])
    expected = [slow_dense(t, tables[1 - h] + target) for t, h in zip(TEXTS, half, strict=True)]
    assert found.dense_NF.shape == (len(TEXTS), len(NAMES))
    np.testing.assert_allclose(found.dense_NF, expected, rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(found.hashed, [slow_hashed(text) for text in TEXTS], atol=1e-12)


def test_a_product_with_coefficients_is_that_of_the_matrix(lake_frequencies):
    half, coefficient = halves(pa.array(TEXTS)), np.random.default_rng(0).normal(size=2 * NUM_HASHED)
    whole = describe(pa.array(TEXTS), half, lake_frequencies)
    product = describe(pa.array(TEXTS), half, lake_frequencies, coefficient)
    assert (product.dense_NF == whole.dense_NF).all()
    np.testing.assert_allclose(product.hashed, whole.hashed @ coefficient, atol=1e-12)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_row_is_the_same_in_any_company_and_any_kind_of_array(lake_frequencies, monkeypatch, kind):
    half, coefficient = halves(pa.array(TEXTS)), np.random.default_rng(0).normal(size=2 * NUM_HASHED)
    whole = describe(pa.array(TEXTS), half, lake_frequencies, coefficient)
    order = np.random.default_rng(1).permutation(len(TEXTS))
    monkeypatch.setattr(features, "_CHUNK_BYTES", 700)
    texts = pa.array(["before", *(TEXTS[i] for i in order), None], kind)
    for part in np.array_split(np.arange(len(order)), 3):
        again = describe(texts.slice(1 + part[0], len(part)), half[order[part]], lake_frequencies, coefficient)
        assert (again.dense_NF == whole.dense_NF[order[part]]).all()
        assert (again.hashed == whole.hashed[order[part]]).all()


def test_of_a_long_row_the_beginning_counts_and_no_text_is_no_feature(lake_frequencies):
    long = "word " * LONGEST
    half = np.zeros(4, np.int64)
    found = describe(pa.array([long, long[:LONGEST], "", None]), half, lake_frequencies)
    assert (found.dense_NF[0] == found.dense_NF[1]).all()
    assert (found.hashed[0] == found.hashed[1]).all()
    assert (found.dense_NF[2:] == 0).all()
    assert (found.hashed[2:] == 0).all()
    nothing = describe(pa.array([], pa.string()), half[:0], lake_frequencies)
    assert (nothing.dense_NF.shape, nothing.hashed.shape) == ((0, len(NAMES)), (0, 2 * NUM_HASHED))


def test_a_row_is_not_compared_with_itself():
    """Counted or not, a row has the features that it would have in a lake without it."""
    half = halves(pa.array(TEXTS))
    with_it, without = Counter(), Counter()
    with_it.add_lake(pa.array(TEXTS), half)
    rest = np.flatnonzero(np.arange(len(TEXTS)) != 20)
    without.add_lake(pa.array(TEXTS).take(pa.array(rest)), half[rest])
    row = pa.array(TEXTS[20:21])
    here, there = (describe(row, half[20:21], counter.frequencies()).dense_NF for counter in (with_it, without))
    assert (here == there).all()
    own = Frequencies(lake_2KM=with_it.frequencies().lake_2KM[::-1], target_KM=with_it.frequencies().target_KM)
    assert (describe(row, half[20:21], own).dense_NF != here).any()


@pytest.mark.parametrize("hashes", [unit_hashes, text_hashes])
def test_hashes_are_even_and_differ_by_purpose(hashes):
    ids = pa.array([f"{i:032x}" for i in range(20_000)])
    first, second = hashes(ids, "half"), hashes(ids, "held out")
    for found in (first, second):
        assert np.histogram(found, 20, (0, 1))[0] == pytest.approx(1000, abs=160)  # 5 standard deviations
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert (hashes(ids.slice(7, 100), "half") == first[7:107]).all()


def test_halves_stay():
    assert halves(pa.array(["a", "b", "c", "d"])).tolist() == [0, 1, 1, 0]  # must not change: scorers are kept
