"""Half of the rows of one domain are damaged: a run that knows nothing of it weighs them down."""

import random

import numpy as np
import polars as pl
import pytest
from lake_cases import sentences, write_rows, write_target

import curator as sdk
from curator.carry import weights_now
from curator.progress import silent
from curator.rules import changed_settings

pytest.importorskip("megatron.core", reason="needs the extra [train]")


def damaged(text, rng):
    """Half of the letters replaced by random ones."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < 0.5 else char for char in text)


FAST = {
    "granularity": "sample",
    "steps": 30,
    "branch_steps": 6,
    "rows": {"steps": 20},
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
            str(write_target(tmp_path / "target.parquet")), **FAST | {"rows": {"steps": 20, "scorer": False}}
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
    known = everything.join(new, on="sample_id", how="anti")  # repeats of rows that were seen are as good as seen
    mean = (known["sample_weight"] * known["num_tokens"]).sum() / known["num_tokens"].sum()
    assert new["sample_weight"].to_numpy() == pytest.approx(mean, rel=1e-5)
    is_sound = rows["is_sound"].to_numpy()
    assert auc(rows["sample_weight"].to_numpy(), is_sound) > 0.95
    assert run.record["rows"]["reliability"] > 0.5
    [(num_sound, num_kept)] = kept
    assert num_kept == 40
    assert num_sound > 36


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
        run = lake.learn(target, **FAST | {"rows": {"steps": 20, "max_rows": 230}})
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
