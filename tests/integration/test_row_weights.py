"""Half of the rows of one domain are damaged: a run that knows nothing of it weighs them down."""

import random

import numpy as np
import pytest
from lake_cases import sentences, write_rows, write_target

import curator as sdk

pytest.importorskip("megatron.core", reason="needs the extra [train]")


def damaged(text, rng):
    """Half of the letters replaced by random ones."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < 0.5 else char for char in text)


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
            granularity="sample",
            steps=30,
            branch_steps=6,
            rows={"snapshots": 4},
            sequence_length=48,
            rows_per_domain=4,
            target_rows=8,
            vocab_size=300,
            data_parallel=1,
            line_search={"places": []},
        )
        lake.publish(run)
        rows = lake.sql("SELECT is_sound, sample_weight FROM samples WHERE domain = 'north'").pl()
        kept = lake.sql("SELECT count(*) FILTER (is_sound), count(*) FROM top_k(0.5) WHERE domain = 'north'").fetchall()
    is_sound = rows["is_sound"].to_numpy()
    assert auc(rows["sample_weight"].to_numpy(), is_sound) > 0.8
    assert run.record["rows"]["reliability"] > 0.5
    [(num_sound, num_kept)] = kept
    assert num_kept == 40
    assert num_sound > 28
