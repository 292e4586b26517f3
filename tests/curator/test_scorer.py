"""The scorer on rows of known worth: what it finds, what it refuses, and what of it lies on the disk."""

import dataclasses
import random

import numpy as np
import pyarrow as pa
import pytest
from lake_cases import sentences

from connectors.store import open_store
from curator.drift import gap_drift
from curator.errors import InputError, StorageError
from curator.features import Counter, describe, halves
from curator.scorer import SCHEMA_VERSION, Scorer, fit, held_out
from optim.ridge import rank_agreement
from optim.row_gaps import MAX_RATIO, RowGaps

DOMAINS = ("north", "south")
NUM_ROWS = 800


def damaged(text, rng, share):
    """A share of the letters replaced by random ones."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < share else char for char in text)


@pytest.fixture(scope="module")
def lake():
    """(texts, domains, target tokens, worth) of rows damaged by up to a half; damage is worth a gap of its share.

    A row's domain shifts its gap, too, which is no news of the row.
    """
    rng = random.Random(0)
    texts, worth, domain = [], [], []
    for d, name in enumerate(DOMAINS):
        for text in sentences(name, NUM_ROWS // 2):
            share = rng.choice([0.0, 0.0, 0.25, 0.5])
            texts.append(damaged(text, rng, share))
            worth.append(share + d)
            domain.append(d)
    return pa.array(texts), np.array(domain, np.int32), np.arange(NUM_ROWS) % 30 + 20, np.array(worth)


@pytest.fixture(scope="module")
def frequencies(lake):
    counter = Counter()
    counter.add_lake(lake[0], halves(lake[0]))
    counter.add_target(pa.array(sentences("north", 60)))
    return counter.frequencies()


def gaps_of(worth, domain, tokens, *, noise, seed=0):
    rng, gaps = np.random.default_rng(seed), RowGaps.none(len(worth))
    for _ in range(4):
        gaps = gaps.added(worth + noise * rng.standard_normal(len(worth)), np.zeros(len(worth)), domain, tokens)
    return gaps


def fitted(lake, frequencies, gaps, order=None, **changed):
    texts, domain, tokens, _ = lake
    order = np.arange(len(texts)) if order is None else order
    texts = texts.take(pa.array(order))
    settings = {
        "is_held_R": held_out(texts),
        "domain_R": domain[order],
        "tokens_R": tokens[order],
        "domains": DOMAINS,
        "frequencies": frequencies,
        "sharpness": 1.0,
    }
    return fit(describe(texts, halves(texts), frequencies), gaps.only(order), **settings | changed)


def test_a_signal_is_found_on_rows_kept_out_and_on_new_ones(lake, frequencies):
    texts, domain, tokens, worth = lake
    gaps = gaps_of(worth, domain, tokens, noise=0.3)
    scorer, judged = fitted(lake, frequencies, gaps)
    assert judged.refusal is None
    assert judged.num_rows == held_out(texts).sum()
    assert judged.num_rows / NUM_ROWS == pytest.approx(0.25, abs=0.05)
    assert judged.spearman_low > 0.3
    assert judged.spearman_low < judged.spearman < judged.spearman_high
    assert judged.explained > 0.6
    assert judged.slope == pytest.approx(1, abs=0.35)
    assert scorer.shrink == min(1, judged.slope)
    held = held_out(texts)
    expected = scorer.expected(texts, domain)
    assert rank_agreement(expected[held], gaps.mean_relative_R[held]).value == pytest.approx(judged.spearman)
    for d in (0, 1):  # against the truth, which the noisy gaps hide
        own = held & (domain == d)
        assert rank_agreement(expected[own], worth[own]).value > 0.75
        assert abs(expected[domain == d].mean()) < 0.05  # the shift of the domain is not in it
    rng = random.Random(7)
    sound = sentences("south", 3040)[3000:]
    new = pa.array([*sound, *(damaged(text, rng, 0.5) for text in sound)])
    weight = scorer.row_weights(new, np.ones(80, np.int32))
    assert weight[:40].min() > weight[40:].max()


def test_new_rows_whose_gaps_lie_elsewhere_have_drifted(lake, frequencies):
    """Damaged rows alone, of which the domain had some, and as many rows as it ever had."""
    texts, domain, tokens, worth = lake
    scorer, _ = fitted(lake, frequencies, gaps_of(worth, domain, tokens, noise=0.3))
    assert gap_drift(scorer, texts.filter(pa.array(domain == 1)), DOMAINS[1]) == pytest.approx(0, abs=0.1)
    rng = random.Random(7)
    sound = sentences("south", 3060)[3000:]
    spoilt = pa.array([damaged(text, rng, 0.5) for text in sound])
    far = gap_drift(scorer, spoilt, DOMAINS[1])
    expected = scorer.expected(spoilt, np.ones(60, np.int32))
    assert abs(far) > 0.5  # what is a reason to learn
    assert np.sign(far) == np.sign(expected.mean())
    assert abs(far) < abs(expected.mean()) / scorer.width * 1.1
    assert gap_drift(scorer, spoilt.slice(0, 1), DOMAINS[1]) is None
    assert gap_drift(scorer, spoilt, "unknown") is None


def test_noise_is_refused(lake, frequencies):
    """Of forty draws, about one passes an interval of 95 % from below; of these five, none does."""
    _, domain, tokens, worth = lake
    for seed in range(5):
        _, judged = fitted(lake, frequencies, gaps_of(0 * worth, domain, tokens, noise=0.3, seed=seed))
        assert judged.refusal is not None, seed
        assert judged.spearman_low <= 0 or judged.slope <= 0
        assert "do not agree with the measured gaps beyond chance (Spearman" in judged.refusal


def test_what_is_hardly_there_is_hardly_believed(lake, frequencies):
    _, domain, tokens, worth = lake
    clear, _ = fitted(lake, frequencies, gaps_of(worth, domain, tokens, noise=0.05))
    faint, judged = fitted(lake, frequencies, gaps_of(0.03 * worth, domain, tokens, noise=0.3))
    texts, domain, *_ = lake
    spreads = [np.log(scorer.row_weights(texts, domain)).std() for scorer in (clear, faint)]
    assert spreads[1] < 0.4 * spreads[0]
    assert 0 <= faint.shrink <= 1
    assert faint.shrink == max(0, min(1, judged.slope))


def test_the_order_of_rows_changes_nothing(lake, frequencies):
    texts, domain, tokens, worth = lake
    gaps = gaps_of(worth, domain, tokens, noise=0.3)
    straight, judged = fitted(lake, frequencies, gaps)
    mixed, again = fitted(lake, frequencies, gaps, np.random.default_rng(0).permutation(NUM_ROWS))
    np.testing.assert_allclose(mixed.expected(texts, domain), straight.expected(texts, domain), rtol=1e-5, atol=1e-7)
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(judged), rel=1e-5)


def test_rows_kept_out_do_not_train(lake, frequencies):
    texts, domain, tokens, worth = lake
    gaps = gaps_of(worth, domain, tokens, noise=0.3)
    held = np.flatnonzero(held_out(texts))
    other = gaps_of(worth[::-1].copy(), domain, tokens, noise=3.0, seed=5)
    changed = dataclasses.replace(gaps, relative_R=gaps.relative_R.copy(), square_R=gaps.square_R.copy())
    changed.relative_R[held], changed.square_R[held] = other.relative_R[held], other.square_R[held]
    first, _ = fitted(lake, frequencies, gaps)
    second, _ = fitted(lake, frequencies, changed)
    assert (first.coefficient_Q == second.coefficient_Q).all()
    assert (first.coefficient_H == second.coefficient_H).all()
    assert (first.offset_D == second.offset_D).all()


def test_a_domain_without_measured_rows_and_an_odd_row_get_weights_within_bounds(lake, frequencies):
    _, domain, tokens, worth = lake
    scorer, _ = fitted(
        lake, frequencies, gaps_of(worth, domain, tokens, noise=0.1), domains=(*DOMAINS, "east"), sharpness=50.0
    )
    odd = pa.array(["", "\0", "9" * 100_000, "\U0001f600" * 50, " ", "a sound text"])
    found = scorer.row_weights(odd, np.full(6, 2, np.int32))
    assert np.isfinite(found).all()
    assert found.min() >= 1 / MAX_RATIO - 1e-9
    assert found.max() <= MAX_RATIO + 1e-9


@pytest.fixture(scope="module")
def scorer(lake, frequencies):
    _, domain, tokens, worth = lake
    found, _ = fitted(lake, frequencies, gaps_of(worth, domain, tokens, noise=0.3))
    return dataclasses.replace(found, mean_ratio_D=np.array([1.5, 0.5]))


def test_what_is_read_weighs_as_what_was_written(scorer, lake, tmp_path):
    texts, domain, *_ = lake
    scorer.write(tmp_path / "scorer.npz")
    again = Scorer.read(open_store(str(tmp_path)), "scorer.npz")
    assert (again.row_weights(texts, domain) == scorer.row_weights(texts, domain)).all()
    assert (again.domains, again.shrink, again.sharpness) == (DOMAINS, scorer.shrink, 1.0)
    plain = dataclasses.replace(scorer, mean_ratio_D=np.ones(2))
    np.testing.assert_allclose(
        again.row_weights(texts, domain) * scorer.mean_ratio_D[domain], plain.row_weights(texts, domain)
    )


def test_what_cannot_be_read_is_told(scorer, tmp_path):
    store = open_store(str(tmp_path))
    with pytest.raises(InputError, match=r"scorer\.npz"):
        Scorer.read(store, "scorer.npz")
    scorer.write(tmp_path / "whole.npz")
    data = (tmp_path / "whole.npz").read_bytes()
    for name, content in (("cut", data[:-400]), ("empty", b""), ("text", b"no numbers")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StorageError, match=rf"{name} is damaged .* learn again, or restore it"):
            Scorer.read(store, name)
    with np.load(tmp_path / "whole.npz") as found:
        values = dict(found)
    np.savez(tmp_path / "new.npz", **values | {"schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(StorageError, match=f"schema_version {SCHEMA_VERSION + 1}, this one reads {SCHEMA_VERSION}"):
        Scorer.read(store, "new.npz")
    del values["offset_D"]
    np.savez(tmp_path / "lacks.npz", **values)
    with pytest.raises(StorageError, match=r"lacks\.npz is damaged"):
        Scorer.read(store, "lacks.npz")
    np.savez(tmp_path / "pickled.npz", **values | {"offset_D": np.array([{}, {}])})
    with pytest.raises(StorageError, match=r"pickled\.npz is damaged"):
        Scorer.read(store, "pickled.npz")
