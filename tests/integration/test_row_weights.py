"""Half of the rows of one domain are damaged: a run that knows nothing of it weighs them down."""

import random

import numpy as np
import polars as pl
import pytest
from lake_cases import sentences, write_rows, write_target

import curator as sdk
from curator.carry import weights_now
from curator.progress import silent

pytest.importorskip("megatron.core", reason="needs the extra [train]")


def damaged(text, rng):
    """Half of the letters replaced by random ones."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < 0.5 else char for char in text)


FAST = {
    "granularity": "sample",
    "steps": 30,
    "branch_steps": 6,
    "rows": {"snapshots": 4},
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
        run = lake.learn(str(write_target(tmp_path / "target.parquet")), **FAST)
        lake.publish(run)
        rows = lake.sql("SELECT is_sound, sample_weight FROM samples WHERE domain = 'north'").pl()
        write_rows(
            tmp_path / "lake" / "new.parquet", text=sentences("later", 20), domain=["north"] * 20, is_sound=[True] * 20
        )
        lake.ingest()
        carried = pl.from_arrow(weights_now(lake, run, [], silent).samples).filter(pl.col("domain") == "north")
        kept = lake.sql("SELECT count(*) FILTER (is_sound), count(*) FROM top_k(0.5) WHERE domain = 'north'").fetchall()
    own = pl.from_arrow(run.samples()).select("sample_id", before="sample_weight")
    both = carried.join(own, on="sample_id", how="left")
    seen, new = both.filter(pl.col("before").is_not_null()), both.filter(pl.col("before").is_null())
    assert (len(seen), len(new)) == (80, 20)
    factor = seen["sample_weight"] / seen["before"]  # the worth of a row within its domain is kept
    assert factor.to_numpy() == pytest.approx(factor.mean(), rel=1e-5)
    assert factor.std() < 1e-5 < seen["sample_weight"].std()
    mean = (seen["sample_weight"] * seen["num_tokens"]).sum() / seen["num_tokens"].sum()
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
        assert (domain["domain_weight"], domain["ci_low"], domain["ci_high"]) == (1, 1, 1)
        assert run.record["line_search"] is None
        lake.publish(run)
        rows = lake.sql("SELECT is_sound, sample_weight FROM samples").pl()
    assert auc(rows["sample_weight"].to_numpy(), rows["is_sound"].to_numpy()) > 0.9
