"""Drift of new rows: how far text lies from that which a run was learned on, against what chance alone does."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from lake_cases import FAST, sentences, write_lake, write_rows, write_target
from scipy.spatial.distance import jensenshannon

import curator
from connectors.store import open_store
from curator.cli.refreshing import _print_status
from curator.config import LearnConfig
from curator.drift import Content, ContentCounter, divergence
from curator.features import NUM_HASHED, content
from curator.tokens import RowBatch


def shuffled(*kinds, seed=0):
    """Sentences end in their numbers, so that the last ones of a language do differ from the first."""
    rows = [text for language, num in kinds for text in sentences(language, num)]
    return [rows[int(i)] for i in np.random.default_rng(seed).permutation(len(rows))]


def content_of(*texts, domains=("a", "b")):
    counter = ContentCounter([(name, len(rows)) for name, rows in zip(domains, texts, strict=False)])
    batches = [
        RowBatch(
            sample_id=pa.array([f"{d}-{i}" for i in range(len(rows))]),
            text=rows,
            domain=np.full(len(rows), d, np.int32),
        )
        for d, rows in enumerate(texts)
    ]
    assert list(counter.watched(batches)) == batches
    return counter.found()


def drift(found, texts, domain="a"):
    return found.drift_of(pa.array(texts), domain)


def test_the_divergence_is_that_of_the_shares_in_bits():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 2 * NUM_HASHED)) * (rng.random((2, 2 * NUM_HASHED)) < 0.3)
    halves = zip(np.split(one, 2), np.split(other, 2), strict=True)
    expected = np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in halves])
    assert divergence(one, other) == pytest.approx(expected)
    assert divergence(one, 3 * one) == pytest.approx(0, abs=1e-12)
    assert divergence(one * (np.arange(len(one)) % 2), one * (np.arange(len(one)) % 2 == 0)) == pytest.approx(1)


def test_equal_rows_do_not_drift_and_another_language_does():
    rows, other = shuffled(("north", 500)), shuffled(("east", 200))
    found = content_of(rows[:400], other[:100])
    for num_rows in (2, 5, 20, 100):
        assert drift(found, rows[400 : 400 + num_rows]).features < 0.03
    for num_rows in (20, 100):
        assert drift(found, other[-num_rows:]).features > 0.5
        assert drift(found, other[-num_rows:], "b").features < 0.03
    assert drift(found, sentences("east", 1)).features < 0.5  # a row may be anything


def test_rows_that_change_in_part_drift_less():
    rows, other = shuffled(("north", 500)), sentences("east", 100)
    found = content_of(rows[:400])
    far = [drift(found, [*rows[400 : 500 - num], *other[:num]]).features for num in (0, 20, 50, 100)]
    assert far == sorted(far)
    assert far[0] < 0.03
    assert 0.1 < far[2] < 0.6 < far[3]


def test_chance_is_as_large_as_the_divergence_of_groups_of_so_many_rows():
    """Of rows of two kinds, which differ more than words do: c·(1/n + 1/N) against groups that are drawn anew."""
    rows = shuffled(("north", 600), ("south", 600))
    found = content_of(rows[:600])
    mean, spread = found._chance(0)
    shares, rng = content(pa.array(rows)) ** 2, np.random.default_rng(1)
    for num_rows in (25, 100, 400):
        groups = [600 + rng.permutation(600)[:num_rows] for _ in range(40)]
        measured = [divergence(shares[group].sum(axis=0), shares[:600].sum(axis=0)) for group in groups]
        expected = mean * (1 / num_rows + 1 / 600)
        # The share of a kind is one number, which eight groups know badly, so that little is asked of it.
        assert np.mean(measured) == pytest.approx(expected, rel=0.5)
        bound = drift(found, [rows[int(i)] for i in groups[0]]).by_chance
        assert bound == pytest.approx(expected * (1 + 3 * spread))
        assert np.quantile(measured, 0.9) < bound + 0.01


def test_equal_texts_do_not_make_chance_look_small():
    few = sentences("north", 10)
    assert content_of(few * 40)._chance(0)[0] > 10 * content_of(sentences("north", 400))._chance(0)[0]


def test_what_is_written_is_read(tmp_path):
    found = content_of(sentences("north", 100), sentences("east", 100))
    found.write(tmp_path / "content.npz")
    again = Content.read(open_store(str(tmp_path)), "content.npz")
    assert again.domains == ("a", "b")
    texts = sentences("east", 9)
    assert drift(again, texts).features == pytest.approx(drift(found, texts).features, rel=1e-5)


def test_a_domain_of_one_group_says_nothing_of_chance():
    assert drift(content_of(["one text"] * 200), ["another"]) is None


@pytest.fixture(scope="module")
def grown_once(tmp_path_factory):
    """A lake of 120 rows a domain with a run, published."""
    pytest.importorskip("megatron.core", reason="needs the extra [train]")
    folder = tmp_path_factory.mktemp("grown")
    write_target(folder / "target.parquet")
    write_lake(folder / "lake", num_rows=120)
    assert refresh(folder).version == 1
    return folder


@pytest.fixture
def grown(grown_once, tmp_path):
    shutil.copytree(grown_once, tmp_path / "grown", copy_function=shutil.copy2)
    return tmp_path / "grown"


def refresh(folder, **settings):
    with curator.open_lake(str(folder / "lake")) as lake:
        usual = {"verdicts": ["converged", "not converged", "no gain", "unstable"], "max_share_change": 1.0}
        return lake.refresh(str(folder / "target.parquet"), learn=LearnConfig(**FAST), **usual | settings)


def test_text_of_another_language_in_a_known_domain_is_a_reason_and_more_of_the_same_is_none(grown, capsys):
    write_rows(grown / "lake" / "more.parquet", text=sentences("east", 140)[100:], domain=["east"] * 40)
    same = refresh(grown)
    assert (same.outcome, same.action, same.reasons) == ("published", "publish", ())
    write_rows(grown / "lake" / "other.parquet", text=sentences("pqrst", 40), domain=["north"] * 40)
    drifted = refresh(grown, dry_run=True)
    [reason] = drifted.reasons
    assert (drifted.action, reason.code) == ("learn", "features")
    with curator.open_lake(str(grown / "lake")) as lake:
        found = lake.status(str(grown / "target.parquet"), learn=LearnConfig(**FAST))
        states = {state.domain: state.drift for state in found.changes.domains}
    assert states["north"].features > 0.5
    assert states["east"].features < 0.05
    assert states["south"] is None
    _print_status(found, "lake")
    shown = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[:4]}
    assert (shown["domain"], shown["north"]) == ("drift", f"{states['north'].features:.2f}")
    assert reason.said == (
        f"text of new rows drifted (north by {states['north'].features:.2f}), more than refresh.max_feature_drift=0.1; "
        "they are 9.1% of the rows, more than refresh.new_domain_share=0.01"
    )
    assert refresh(grown, dry_run=True, new_domain_share=0.1).action == "publish"  # too few to learn anew for
    assert refresh(grown, dry_run=True, max_feature_drift=1.0).action == "publish"
    again = refresh(grown)
    assert (again.outcome, again.action, again.version, again.run_id != same.run_id) == ("published", "learn", 3, True)
    assert refresh(grown).outcome == "nothing"  # the new run knows these rows


def test_what_was_found_is_kept_for_the_next_look_at_the_same_rows(grown, monkeypatch):
    write_rows(grown / "lake" / "other.parquet", text=sentences("pqrst", 40), domain=["north"] * 40)
    first = refresh(grown, dry_run=True).reasons
    with monkeypatch.context() as patched:
        patched.setattr("curator.lake.Lake.texts_of", None)  # no text is read again
        assert refresh(grown, dry_run=True).reasons == first
    write_rows(grown / "lake" / "more.parquet", text=sentences("north", 140)[100:], domain=["north"] * 40)
    second = refresh(grown, dry_run=True).reasons
    assert second
    assert second != first


def test_rows_that_the_run_left_out_as_leaks_are_no_drift(grown):
    write_rows(grown / "lake" / "other.parquet", text=sentences("pqrst", 40), domain=["north"] * 40)
    record = next((grown / "lake" / "_curator" / "runs").glob("*/run.json"))
    for left_out, is_drift in ((40, False), (39, True)):
        values = json.loads(record.read_text())
        values["leaks"] |= {"by_domain": {"north": left_out}, "num_exact": left_out}
        record.write_text(json.dumps(values))
        with curator.open_lake(str(grown / "lake")) as lake:
            lake.ingest()
            found = lake.status(str(grown / "target.parquet"), learn=LearnConfig(**FAST))
        [north] = [state for state in found.changes.domains if state.domain == "north"]
        assert (north.num_new, north.drift is not None) == (40 - left_out, is_drift)


def test_a_run_of_before_its_rows_looks_were_kept_is_refreshed_as_ever(grown):
    record = next((grown / "lake" / "_curator" / "runs").glob("*/run.json"))
    values = json.loads(record.read_text())
    assert values.pop("content")
    record.write_text(json.dumps(values))
    write_rows(grown / "lake" / "other.parquet", text=sentences("pqrst", 40), domain=["north"] * 40)
    assert refresh(grown, dry_run=True).reasons == ()
