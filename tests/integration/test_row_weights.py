"""Half of the rows of one domain are damaged: a run and a refresh, which know nothing of it, weigh them down."""

import importlib.util
import random
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from lake_cases import sentences, write_rows, write_target

import curator as sdk
from connectors.store import open_store
from curator import row_gaps
from curator.carry import weights_now
from curator.errors import InputError, MissingExtraError, StorageError, UsageError
from curator.progress import silent
from curator.row_gaps import MeasuredRows
from curator.rules import changed_settings
from curator.tokens import TokenCache
from optim.row_gaps import RowGaps

pytest.importorskip("megatron.core", reason="needs the extra [train]")

import torch
from safetensors.torch import save_file


def damaged(text, rng):
    """Half of the letters replaced by random ones."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < 0.5 else char for char in text)


FAST = {  # in so few steps the worst tokens of a row are those that no copy has seen
    "granularity": "sample",
    "steps": 30,
    "branch_steps": 6,
    "rows": {"steps": 20, "worst_share": 1},
    "sequence_length": 48,
    "rows_per_domain": 4,
    "target_rows": 8,
    "vocab_size": 300,
    "data_parallel": 1,
    "line_search": {"places": []},
}


def auc(score, is_sound):
    """The chance that a sound row has a higher score than one that is not."""
    return np.mean(score[is_sound][:, None] > score[~is_sound])


def test_damaged_rows_weigh_less_than_the_sound_ones_of_their_domain(tmp_path):
    rng = random.Random(0)
    north = sentences("north", 80)
    texts = [text if i % 2 else damaged(text, rng) for i, text in enumerate(north)]
    write_rows(tmp_path / "lake" / "north.parquet", text=texts, domain=["north"] * 80, is_sound=[False, True] * 40)
    write_rows(
        tmp_path / "lake" / "south.parquet", text=sentences("south", 40), domain=["south"] * 40, is_sound=[True] * 40
    )
    with sdk.open_lake(str(tmp_path / "lake")) as lake:
        run = lake.learn(
            str(write_target(tmp_path / "target.parquet")),
            **FAST | {"rows": {"steps": 20, "worst_share": 1, "scorer": False, "keep_copies": False}},
        )
        lake.publish(run)
        rows = lake.sql("SELECT is_sound, sample_weight FROM samples WHERE domain = 'north'").pl()
        later = sentences("later", 20) + texts[:10]
        write_rows(tmp_path / "lake" / "new.parquet", text=later, domain=["north"] * 30, is_sound=[True] * 30)
        lake.ingest()
        everything = pl.from_arrow(weights_now(lake, run, [], silent).samples).filter(pl.col("domain") == "north")
        duplicates = lake.sql("SELECT domain, num_rows, num_files FROM duplicates").fetchall()
        kept = lake.sql("SELECT count(*) FILTER (is_sound), count(*) FROM top_k(0.5) WHERE domain = 'north'").fetchall()
    repeats = everything.filter(pl.col("sample_id").str.contains("-"))
    carried = everything.filter(~pl.col("sample_id").str.contains("-"))
    first = carried.select(pl.col("sample_id") + "-2", first="sample_weight")
    assert duplicates == [("north", 2, 2)] * len(repeats) == [("north", 2, 2)] * 10
    assert repeats.join(first, on="sample_id")["first"].to_numpy() == pytest.approx(repeats["sample_weight"].to_numpy())
    own = pl.from_arrow(run.samples()).select("sample_id", before="sample_weight")
    both = carried.join(own, on="sample_id", how="left")
    seen, new = both.filter(pl.col("before").is_not_null()), both.filter(pl.col("before").is_null())
    assert (len(seen), len(new)) == (80, 20)
    factor = seen["sample_weight"] / seen["before"]  # the worth of a row within its domain is kept
    assert factor.to_numpy() == pytest.approx(factor.mean(), rel=1e-5)
    assert factor.std() < 1e-5 < seen["sample_weight"].std()
    mean = (seen["sample_weight"] * seen["num_tokens"]).sum() / seen["num_tokens"].sum()  # of the run's own rows
    assert new["sample_weight"].to_numpy() == pytest.approx(mean, rel=1e-5)
    is_sound = rows["is_sound"].to_numpy()
    assert auc(rows["sample_weight"].to_numpy(), is_sound) > 0.95
    assert run.record["rows"]["reliability"] > 0.5
    [(num_sound, num_kept)] = kept
    assert num_kept == 40
    assert num_sound > 36


def test_damage_to_all_of_a_row_or_a_part_of_it_is_found_by_the_usual_share_of_its_tokens(tmp_path):
    rng = random.Random(0)
    texts = sentences("north", 120)
    for i in range(0, 120, 3):
        texts[i] = damaged(texts[i], rng)
    for i in range(1, 120, 3):
        texts[i] = texts[i][: len(texts[i]) // 2] + damaged(texts[i][len(texts[i]) // 2 :], rng)
    write_rows(
        tmp_path / "lake" / "north.parquet", text=texts, domain=["north"] * 120, kind=["all", "part", "none"] * 40
    )
    with sdk.open_lake(str(tmp_path / "lake")) as lake:
        lake.publish(lake.learn(str(write_target(tmp_path / "target.parquet")), **FAST | {"rows": {"steps": 100}}))
        rows = lake.sql("SELECT kind, sample_weight FROM samples").pl()
    weight, kind = rows["sample_weight"].to_numpy(), rows["kind"].to_numpy()
    found = {
        each: auc(weight[(kind == "none") | (kind == each)], kind[(kind == "none") | (kind == each)] == "none")
        for each in ("all", "part")
    }
    assert found["all"] > 0.95, found
    assert found["part"] > 0.9, found


def test_a_lake_of_one_domain_has_its_rows_weighed(tmp_path):
    rng = random.Random(0)
    texts = [text if i % 2 else damaged(text, rng) for i, text in enumerate(sentences("north", 80))]
    write_rows(tmp_path / "lake" / "north.parquet", text=texts, domain=["north"] * 80, is_sound=[False, True] * 40)
    with sdk.open_lake(str(tmp_path / "lake")) as lake:
        run = lake.learn(str(write_target(tmp_path / "target.parquet")), **FAST | {"line_search": {"seeds": 2}})
        assert run.verdict.startswith("converged: the lake has one domain, and its rows weigh ")
        [domain] = run.record["domains"]
        assert (domain["domain_weight"], domain["ci_low"], domain["ci_high"]) == (1, None, None)
        assert run.record["line_search"] is None
        settings = sdk.LearnConfig.model_validate(FAST | {"line_search": {"seeds": 2}})
        assert changed_settings(run.record, lake.config, settings, None) == []  # so that a refresh has nothing to do
        lake.publish(run)
        rows = lake.sql("SELECT is_sound, sample_weight FROM samples").pl()
    assert auc(rows["sample_weight"].to_numpy(), rows["is_sound"].to_numpy()) > 0.9


def half_damaged(num, seed, language="north"):
    """(texts, whether they are sound)."""
    rng = random.Random(seed)
    texts = sentences(language, num + 500 * seed)[500 * seed :]
    return [text if i % 2 else damaged(text, rng) for i, text in enumerate(texts)], [bool(i % 2) for i in range(num)]


def test_rows_that_were_not_measured_are_weighed_by_what_their_text_says(tmp_path):
    texts, is_sound = half_damaged(400, 0)
    south = sentences("south", 60)
    write_rows(tmp_path / "lake" / "north.parquet", text=texts, domain=["north"] * 400, is_sound=is_sound)
    write_rows(tmp_path / "lake" / "south.parquet", text=south, domain=["south"] * 60, is_sound=[True] * 60)
    with sdk.open_lake(str(tmp_path / "lake")) as lake:
        target = str(write_target(tmp_path / "target.parquet"))
        run = lake.learn(target, **FAST | {"rows": {"steps": 20, "worst_share": 1, "max_rows": 230}})
        lake.publish(run)
        assert lake.verify(deep=True).is_sound
        rows = lake.sql(
            "SELECT s.*, t.num_tokens, g.sample_id IS NOT NULL AS is_measured FROM samples s "
            "JOIN sample_tokens t USING (sample_id) LEFT JOIN row_gaps g USING (sample_id)"
        ).pl()
        new, new_is_sound = half_damaged(60, 1)
        write_rows(tmp_path / "lake" / "new.parquet", text=new, domain=["north"] * 60, is_sound=new_is_sound)
        lake.ingest()
        carried = pl.from_arrow(weights_now(lake, run, [], silent).samples)
        came = lake.sql("SELECT sample_id, is_sound FROM samples WHERE sample_weight IS NULL").pl()
    figures = run.record["rows"]
    assert (figures["num_rows"], figures["num_scored"], rows["is_measured"].sum()) == (230, 230, 230)
    assert figures["scorer"]["is_usable"]
    assert figures["scorer"]["spearman_low"] > 0
    assert "; a scorer weighs the other 230 by their text (Spearman 0." in run.verdict
    for is_measured in (True, False):
        own = rows.filter((pl.col("domain") == "north") & (pl.col("is_measured") == is_measured))
        assert auc(own["sample_weight"].to_numpy(), own["is_sound"].to_numpy()) > 0.9, is_measured
    shares = rows.group_by("domain").agg((pl.col("sample_weight").cast(float) * pl.col("num_tokens")).sum())
    total = shares["sample_weight"].sum()
    learned = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
    assert {name: weight / total for name, weight in shares.iter_rows()} == pytest.approx(learned, rel=1e-5)
    both = came.join(carried, on="sample_id")
    assert len(both) == 60
    assert auc(both["sample_weight"].to_numpy(), both["is_sound"].to_numpy()) > 0.9


@pytest.fixture(scope="module")
def measured_whole(tmp_path_factory):
    """A lake whose rows were all measured, and one file of rows that came later; the run's id."""
    folder = tmp_path_factory.mktemp("measured")
    texts, is_sound = half_damaged(160, 0)
    south = sentences("south", 60)
    write_rows(folder / "lake" / "north.parquet", text=texts, domain=["north"] * 160, is_sound=is_sound)
    write_rows(folder / "lake" / "south.parquet", text=south, domain=["south"] * 60, is_sound=[True] * 60)
    with sdk.open_lake(str(folder / "lake")) as lake:
        rows = {"steps": 20, "worst_share": 0.9, "near_duplicates": 0}
        run = lake.learn(str(write_target(folder / "target.parquet")), **FAST | {"rows": rows})
        lake.publish(run)
    later, later_is_sound = half_damaged(60, 1)
    write_rows(folder / "lake" / "later.parquet", text=later, domain=["north"] * 60, is_sound=later_is_sound)
    return folder, run.run_id


@pytest.fixture
def whole(measured_whole, tmp_path):
    """A copy of it to change, modification times kept."""
    shutil.copytree(measured_whole[0] / "lake", tmp_path / "lake", copy_function=shutil.copy2)
    with sdk.open_lake(str(tmp_path / "lake")) as lake:
        lake.ingest()
        yield lake, lake.run(measured_whole[1])


def test_kept_copies_find_the_gaps_and_weights_that_the_run_found(whole):
    """By plain torch, one row at a time or many, where the run took its losses by Megatron."""
    lake, run = whole
    rows = lake.sql(
        "SELECT s.text, g.domain, g.gap, g.row_weight FROM row_gaps g JOIN samples s USING (sample_id)"
    ).pl()
    assert len(rows) == 220
    copies = run.scorer("copies")
    texts = rows["text"].to_arrow()
    gaps = copies.gaps(texts)
    assert gaps == pytest.approx(rows["gap"].to_numpy(), abs=2e-5)
    assert rows["gap"].std() > 0.01
    alone = np.concatenate([copies.gaps(texts[place : place + 1]) for place in range(5)])
    assert alone == pytest.approx(gaps[:5], abs=2e-6)
    weights = copies.row_weights(texts, copies.index(rows["domain"].to_arrow()))
    assert weights == pytest.approx(rows["row_weight"].to_numpy(), rel=2e-3)
    assert copies.index(pa.array(["nowhere"])).tolist() == [-1]
    assert len(copies.gaps(pa.array([], pa.string()))) == 0


def test_rows_that_came_later_are_compared_under_the_kept_copies(whole, tmp_path):
    """As good as those that were measured, where text was read for both; the same by processes of their own."""
    lake, run = whole
    assert run.ways_to_score == ("copies", "text")
    assert not (run.run_dir / "pairs").exists()
    done = lake.score(run, tmp_path / "out")
    assert (done.way, done.num_written) == ("copies", 3)
    scored = pl.read_parquet(tmp_path / "out" / "later.parquet")
    assert set(scored["origin"]) == {"predicted"}
    both = (
        lake.sql("SELECT sample_id, is_sound FROM samples WHERE sample_weight IS NULL").pl().join(scored, "sample_id")
    )
    assert len(both) == 60
    assert auc(both["row_weight"].to_numpy(), both["is_sound"].to_numpy()) > 0.95
    again = lake.score(run, tmp_path / "processes", workers=2)
    other = pl.read_parquet(tmp_path / "processes" / "later.parquet")
    assert (again.num_written, other["sample_id"].equals(scored["sample_id"])) == (3, True)
    assert other["row_weight"].to_numpy() == pytest.approx(scored["row_weight"].to_numpy(), rel=1e-3)
    by_text = lake.score(run, tmp_path / "out", way="text")  # other weights, so other shards
    assert (by_text.way, by_text.num_written, by_text.num_there) == ("text", 3, 0)
    assert not pl.read_parquet(tmp_path / "out" / "later.parquet").equals(scored)
    carried = pl.from_arrow(weights_now(lake, run, [], silent).samples).join(both, "sample_id")
    ratio = carried["sample_weight"] / carried["row_weight"]
    assert len(ratio) == 60
    assert ratio.to_numpy() == pytest.approx(ratio.mean(), rel=1e-3)


def test_carried_rows_of_a_domain_are_on_one_scale(whole, tmp_path):
    """Whatever repeats came and whatever left: measured and predicted rows stand to each other as scored ones do."""
    lake, run = whole
    heaviest = lake.sql(
        "SELECT text FROM samples WHERE domain = 'north' ORDER BY sample_weight DESC LIMIT 1"
    ).fetchall()
    write_rows(tmp_path / "lake" / "repeats.parquet", text=[heaviest[0][0]] * 200, domain=["north"] * 200)
    (tmp_path / "lake" / "south.parquet").unlink()
    half = pl.read_parquet(tmp_path / "lake" / "north.parquet").filter(pl.col("is_sound"))
    half.write_parquet(tmp_path / "lake" / "north.parquet")
    lake.ingest()
    lake.score(run, tmp_path / "out", way="text")
    scored = pl.read_parquet(tmp_path / "out" / "**" / "*.parquet").filter(pl.col("domain") == "north")
    assert sorted(scored["origin"].unique()) == ["measured", "predicted"]
    by_text = lake.run(run.run_id)
    del by_text.record["rows"]["copies"]
    carried = pl.from_arrow(weights_now(lake, by_text, [], silent).samples).join(scored, on="sample_id")
    ratio = carried["sample_weight"] / carried["row_weight"]
    assert len(ratio) == 80 + 60 + 200
    assert ratio.to_numpy() == pytest.approx(ratio.mean(), rel=1e-5)


def test_copies_that_are_damaged_are_told(whole):
    lake, run = whole
    place = lake.workdir / "runs" / run.run_id / row_gaps.COPIES
    whole_file = place.read_bytes()
    size = int.from_bytes(whole_file[:8], "little")
    flipped = bytearray(whole_file)
    flipped[-100] ^= 1
    newer = whole_file.replace(b'\\"schema_version\\": 2', b'\\"schema_version\\": 3')
    other = whole_file.replace(run.run_id.encode(), run.run_id[:-1].encode() + b"_")
    swapped = whole_file.replace(b'\\"north\\", \\"south\\"', b'\\"south\\", \\"north\\"')
    assert whole_file not in (newer, other, swapped)
    for content, told in (
        (whole_file[:100], "copies.safetensors is damaged"),
        (whole_file[: 8 + size], "copies.safetensors is damaged"),
        (bytes(flipped), f"copies.safetensors is damaged (ValueError: it is not what run {run.run_id} wrote)"),
        (other, f"it is not what run {run.run_id} wrote"),
        (swapped, f"it is not what run {run.run_id} wrote"),
        (newer, "written by another Lake Curator (schema_version 3, this one reads 2)"),
    ):
        place.write_bytes(content)
        with pytest.raises(StorageError, match=re.escape(told)):
            run.scorer()
    place.unlink()
    with pytest.raises(InputError, match=r"copies\.safetensors"):
        run.scorer()


@pytest.mark.parametrize("missing", ["torch", "safetensors", "tokenizers", "transformers"])
def test_a_machine_without_what_copies_take_reads_the_text(whole, missing, monkeypatch):
    _, run = whole
    there = importlib.util.find_spec
    monkeypatch.setattr("curator.run.find_spec", lambda name: None if name == missing else there(name))
    assert run.ways_to_score == ("text", "copies")
    with pytest.raises(MissingExtraError, match=f"needs the package '{missing}'"):
        run.scorer("copies")


def test_a_run_stands_without_copies_that_were_damaged(whole, tmp_path):
    from curator import copies

    _, run = whole
    folder = tmp_path / "run" / "pairs"
    folder.mkdir(parents=True)
    corpus = TokenCache.open(next((run.lake.workdir / "tokens").glob("*/corpus")))
    gaps, places = RowGaps.none(2), np.flatnonzero(corpus.domain == 0)[:2]
    for _ in range(2):
        gaps = gaps.added(np.ones(2), np.ones(2), corpus.domain[places], corpus.num_targets[places])
    measured = MeasuredRows(places=places, gaps=gaps)

    def kept():
        place = tmp_path / "kept"
        return copies.keep(
            "r",
            folder.parent,
            place,
            measured,
            corpus,
            {},
            sequence_length=8,
            worst_share=1,
            reliability=1,
            sharpness=1,
        )

    assert kept() is None
    for pair in range(2):
        save_file({"model.a": torch.ones(3)}, folder / f"pair-{pair}.safetensors")
    assert kept()["pairs"] == 2
    read = copies.KeptCopies.read(open_store(str(tmp_path)), "kept", "r")
    assert read.offset_D.tolist() == [1, 1]  # of the second domain no row was measured
    (folder / "pair-1.safetensors").write_bytes(b"cut off")
    assert kept() is None


def test_what_a_run_cannot_score_by_is_told(whole):
    lake, run = whole
    with pytest.raises(UsageError, match="cannot score rows by clusters") as told:
        lake.score(run, lake.workdir / "out", way="clusters")
    assert told.value.hint == "it can by copies or text"


def test_large_copies_are_not_kept():
    from curator import copies

    assert copies.are_small(8_388_608, 4)  # 256 MiB in float32
    assert not copies.are_small(8_388_609, 4)


def refresh(folder, **settings):
    learn = sdk.LearnConfig.model_validate(FAST | {"rows": {"steps": 20, "worst_share": 1, "max_rows": 230}})
    usual = {"verdicts": ["converged", "not converged"], "max_share_change": 1.0}
    with sdk.open_lake(str(folder / "lake")) as lake:
        return lake.refresh(str(folder / "target.parquet"), learn=learn, **usual | settings)


@pytest.fixture(scope="module")
def refreshed_once(tmp_path_factory):
    """A lake of half-damaged rows that a refresh has learned on and published."""
    folder = tmp_path_factory.mktemp("refreshed")
    texts, is_sound = half_damaged(400, 0)
    write_rows(folder / "lake" / "north.parquet", text=texts, domain=["north"] * 400, is_sound=is_sound)
    south = {"text": sentences("south", 60), "domain": ["south"] * 60, "is_sound": [True] * 60}
    write_rows(folder / "lake" / "south.parquet", **south)
    write_target(folder / "target.parquet")
    first = refresh(folder)
    assert (first.outcome, first.action, first.version, first.way) == ("published", "learn", 1, None)
    return folder


@pytest.fixture
def refreshed(refreshed_once, tmp_path):
    shutil.copytree(refreshed_once, tmp_path / "refreshed", copy_function=shutil.copy2)
    return tmp_path / "refreshed"


def test_a_refresh_publishes_weights_of_new_rows_by_their_text(refreshed):
    new, is_sound = half_damaged(60, 1)
    write_rows(refreshed / "lake" / "new.parquet", text=new, domain=["north"] * 60, is_sound=is_sound)
    second = refresh(refreshed)
    assert (second.outcome, second.action, second.version, second.num_new_rows) == ("published", "publish", 2, 60)
    assert second.way == "text"
    rows = pl.read_parquet(Path(second.location) / "**" / "new*.parquet")
    assert auc(rows["sample_weight"].to_numpy(), rows["is_sound"].to_numpy()) > 0.9
    with sdk.open_lake(str(refreshed / "lake")) as lake:
        scorer = lake.run(second.run_id).scorer()
        expected = scorer.row_weights(rows["text"].to_arrow(), scorer.index(rows["domain"].to_arrow()))
        counts = lake.sql("SELECT count(*), count(sample_weight) FROM samples").fetchall()
        assert lake.verify(deep=True).is_sound
    factor = rows["sample_weight"].to_numpy() / expected
    assert factor == pytest.approx(np.full(60, factor.mean()), rel=1e-5)
    assert counts == [(520, 520)]
    assert refresh(refreshed).outcome == "nothing"


@pytest.mark.parametrize("sound", [False, True])
def test_new_rows_whose_expected_gaps_drifted_are_a_reason_to_learn(refreshed, sound):
    """Half of the domain's rows were damaged; of the new ones all are, or none is: they help less, or more."""
    texts, is_sound = half_damaged(80, 1)
    new = [text for text, is_one in zip(texts, is_sound, strict=True) if is_one == sound]
    write_rows(refreshed / "lake" / "new.parquet", text=new, domain=["north"] * 40, is_sound=[sound] * 40)
    found = refresh(refreshed, dry_run=True, max_feature_drift=1.0)
    with sdk.open_lake(str(refreshed / "lake")) as lake:
        drift = {state.domain: state.drift for state in lake.status().changes.domains}
    assert (found.outcome, found.action) == ("planned", "learn")
    [reason] = found.reasons
    assert reason.code == "gaps"
    assert (drift["north"].gaps < -0.5 if sound else drift["north"].gaps > 0.5, drift["south"]) == (True, None)
    assert reason.said == (
        f"expected gaps of new rows drifted (north by {drift['north'].gaps:+.2f}), more than "
        "refresh.max_gap_drift=0.5; they are 8.0% of the rows, more than refresh.new_domain_share=0.01"
    )
    for bound in ({"max_gap_drift": abs(drift["north"].gaps) + 0.01}, {"new_domain_share": 0.09}):
        assert refresh(refreshed, dry_run=True, max_feature_drift=1.0, **bound).action == "publish", bound


def test_where_text_tells_nothing_the_others_weigh_their_domains_mean(tmp_path):
    """All rows are as sound as each other: what was measured is noise, and the verdict says what became of the rest."""
    for name in ("north", "south"):
        write_rows(tmp_path / "lake" / f"{name}.parquet", text=sentences(name, 120), domain=[name] * 120)
    with sdk.open_lake(str(tmp_path / "lake")) as lake:
        target = str(write_target(tmp_path / "target.parquet", "east"))
        few = FAST | {"steps": 6, "branch_steps": 3, "rows": {"pairs": 2, "max_rows": 60}}
        run = lake.learn(target, **few)
        refusal = run.record["rows"]["scorer"]["refusal"]
        assert refusal == "60 measured rows are fewer than the 100 that a scorer needs"
        assert f"; the other 180 weigh their domain's mean, since {refusal}" in run.verdict
        assert run.record["rows"]["num_scored"] == 0
        own = pl.from_arrow(run.samples())
        measured = lake.sql("SELECT sample_id FROM row_gaps").pl()["sample_id"]
        others = own.filter(~pl.col("sample_id").is_in(measured.implode()))
        assert others.group_by("domain").agg(pl.col("sample_weight").n_unique())["sample_weight"].to_list() == [1, 1]
    assert not list((tmp_path / "lake" / "_curator").rglob("scorer.npz"))
