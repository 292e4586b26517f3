"""Weights of rows: what is measured, what becomes of it in a lake, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import FAST, LANGUAGES, sentences, write_lake, write_rows, write_target

import curator as sdk
from curator.config import LearnConfig
from curator.errors import ConfigError
from curator.tokens import RowBatch, train_tokenizer, write_cache

pytest.importorskip("megatron.core", reason="needs the extra [train]")

import torch

from curator.row_gaps import MeasuredRows, weigh_rows
from curator.row_pairs import RowPairs
from curator.sampler import Sampler, SamplerSettings
from curator.worker import _world
from optim.backend import AdamWSettings, Copy, ModelSource
from optim.batch import Batch
from optim.blocks import Block
from optim.learners.scalebio import ScaleBiO
from optim.local import LocalBackend
from optim.presets import preset
from optim.row_gaps import RowGaps, reliability, spread
from optim.schedules import LearningRate
from optim.state import SolverState

LEARN = LearnConfig(
    **FAST | {"steps": 11, "sequence_length": 16, "granularity": "sample", "rows": {"pairs": 2, "steps": 7}}
)
ROWS = FAST | {"granularity": "sample", "rows": {"pairs": 2}}


@pytest.fixture
def caches(tmp_path):
    """Rows of up to three windows in two domains, and a target."""
    texts = {name: [" ".join([t] * (1 + i % 3)) for i, t in enumerate(sentences(name, 7))] for name in LANGUAGES}
    tokenizer = train_tokenizer([text for rows in texts.values() for text in rows], 300)
    found = []
    for name, domains in (("corpus", ["north", "south"]), ("target", ["east"])):
        (tmp_path / name).mkdir()
        batches = [
            RowBatch(
                sample_id=pa.array([f"{domain}-{i}" for i in range(7)]),
                text=texts[domain],
                domain=np.full(7, d, np.int32),
            )
            for d, domain in enumerate(domains)
        ]
        found.append(write_cache(tmp_path / name, tokenizer, batches, domains))
    return found


def backend_for(corpus, seed):
    source = ModelSource(hf_config=preset("tiny", vocab_size=corpus.vocab_size, sequence_length=16), seed=seed)
    return LocalBackend(source, optimizer=AdamWSettings(), micro_batch_rows=5)


def losses_of(backend, copy, cache, row):
    """The losses of the tokens of a row of the cache, each as the summed loss of a row that counts it alone."""
    start, total = int(cache.start[row]), int(cache.num_targets[row])
    losses = []
    for first in range(0, total, 16):
        length = min(16, total - first)
        ids = torch.tensor(cache.tokens[start + first : start + first + length + 1].astype(np.int64))[None]
        batch = Batch(
            tokens_BS=ids.expand(length, -1),
            mask_BS=torch.eye(length),
            domain_B=torch.zeros(length, dtype=torch.int64),
            row_weight_B=torch.ones(length),
        )
        losses += backend.losses(copy, batch).tolist()
    return np.array(losses)


def pairs_of(caches, folder, learn):
    sizes = {"sequence_length": 16, "rows_per_domain": 2, "domains_per_step": 32, "target_rows": 4, "seed": learn.seed}
    sampler = Sampler(*caches, SamplerSettings(**sizes))
    return sampler, RowPairs(caches[0], sampler, learn, folder)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_rows_are_measured_under_pairs_that_begin_anew(caches, tmp_path, share):
    """Against the steps of a pair, and single tokens through its copies, by hand."""
    corpus, _ = caches
    learn = LEARN.model_copy(update={"rows": LEARN.rows.model_copy(update={"worst_share": share})})
    assert (LEARN.num_solver_steps(2), LEARN.pair_starts(2), LEARN.num_total_steps(2)) == (11, (11, 18), 25)
    assert (LEARN.num_solver_steps(1), LEARN.pair_starts(1), LEARN.num_total_steps(1)) == (0, (0, 7), 14)
    weights_D = torch.tensor([0.3, 0.7], dtype=torch.float64)
    targets = np.asarray(corpus.num_targets)
    by_hand = RowGaps.none(corpus.num_rows)
    with _world():
        sampler, pairs = pairs_of(caches, tmp_path, learn)
        state = replace(SolverState.initial(weights_D), step=LEARN.steps)
        seen, trained = [], 0.0
        for seed, first in enumerate(LEARN.pair_starts(2)):
            learned, other = backend_for(corpus, seed), backend_for(corpus, seed)
            assert pairs.index(state.step) == seed
            state = pairs.train(learned, weights_D, state, num_layers=4, after_step=lambda now: seen.append(now.step))
            for step in range(7):
                rate = LearningRate(peak=4e-3, num_steps=7, final_fraction=0.05).at(step)
                other.set_block(Block(layers=frozenset(range(4)), edges=True))
                taken = ScaleBiO(penalty=0.5).step(
                    other, sampler.at(first + step), weights_D, prior_D=weights_D, step=step, learning_rate=rate
                )
                trained += taken.compute_tokens
            gap_R, loss_u_R = np.zeros(corpus.num_rows), np.zeros(corpus.num_rows)
            for row in range(corpus.num_rows):
                loss_w_T, loss_u_T = (losses_of(other, copy, corpus, row) for copy in (Copy.MODEL, Copy.AUX))
                d_T = loss_w_T - loss_u_T
                gap_R[row] = np.mean(sorted(d_T)[-math.ceil(share * len(d_T)) :])
                loss_u_R[row] = loss_u_T.mean()
            by_hand = by_hand.added(gap_R, loss_u_R, np.asarray(corpus.domain), targets)
        pairs.save(tmp_path)
    measured = MeasuredRows.read(tmp_path)
    assert seen == list(range(12, 26))
    assert state.step == 25
    assert measured.places.tolist() == list(range(14))
    assert np.abs(by_hand.mean_R).max() > 1e-3
    assert measured.gaps.num_snapshots == by_hand.num_snapshots == 2
    for name in ("loss_R", "sum_R", "relative_R", "square_R"):
        np.testing.assert_allclose(getattr(measured.gaps, name), getattr(by_hand, name), atol=1e-5)
    # two copies, two snapshots, a third of a pass each
    assert pairs.compute_tokens == measured.compute_tokens == pytest.approx(trained + 4 / 3 * int(targets.sum()))
    done, total = map(int, (tmp_path / "rows.done").read_text().split())
    assert done == total == 14 * 3 * (2 * 4 + 4) + 4 * sum(-(-int(number) // 16) for number in targets)


def test_a_pair_goes_on_where_it_was_left(caches, tmp_path):
    weights_D = torch.tensor([0.3, 0.7], dtype=torch.float64)
    begin = replace(SolverState.initial(weights_D), step=LEARN.steps)

    class StopError(Exception):
        pass

    def stop(state):
        if state.step == 15:
            raise StopError

    def train(pairs, backend, state, after_step=lambda _: None):
        return pairs.train(backend, weights_D, state, num_layers=4, after_step=after_step)

    with _world():
        _, whole = pairs_of(caches, tmp_path, LEARN)
        train(whole, backend_for(caches[0], 0), begin)
        _, cut = pairs_of(caches, tmp_path, LEARN)
        backend = backend_for(caches[0], 0)
        with pytest.raises(StopError):
            train(cut, backend, begin, stop)
        cut.save(tmp_path)
        _, again = pairs_of(caches, tmp_path, LEARN)
        again.load(tmp_path)
        assert train(again, backend, replace(begin, step=15)).step == 18
        assert again.compute_tokens == pytest.approx(whole.compute_tokens)
        for one, folder in ((whole, tmp_path / "whole"), (again, tmp_path / "again")):
            folder.mkdir()
            one.save(folder)
    first, second = (MeasuredRows.read(tmp_path / name).gaps for name in ("whole", "again"))
    np.testing.assert_array_equal(first.sum_R, second.sum_R)


def test_of_many_rows_a_part_of_each_domain_is_measured(caches, tmp_path):
    learn = LEARN.model_copy(update={"rows": LEARN.rows.model_copy(update={"max_rows": 6})})
    with _world():
        places = []
        for seed in (0, 0, 1):
            _, pairs = pairs_of(caches, tmp_path, learn.model_copy(update={"seed": seed}))
            pairs.save(tmp_path)
            places.append(MeasuredRows.read(tmp_path).places.tolist())
    assert places[0] == places[1] != places[2]
    assert [sum(place < 7 for place in places[0]), len(places[0])] == [3, 6]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "doge"}, "compares the two copies of method 'scalebio', which 'doge' does not train"),
        ({"method": "dsir"}, "compares the two copies of method 'scalebio', which 'dsir' does not train"),
    ],
)
def test_what_would_tell_no_rows_apart_is_refused(tmp_path, settings, said):
    write_target(tmp_path / "target.parquet")
    with sdk.open_lake(str(write_lake(tmp_path / "lake"))) as lake, pytest.raises(ConfigError, match=said):
        lake.learn(str(tmp_path / "target.parquet"), **FAST | {"granularity": "sample"} | settings)


def weights_of(folder, files, **settings):
    """text → row weight, and the run's record, of a lake of these files."""
    for name, rows in files.items():
        write_rows(folder / "lake" / f"{name}.parquet", text=[t for t, _ in rows], domain=[d for _, d in rows])
    write_target(folder / "target.parquet")
    with sdk.open_lake(str(folder / "lake")) as lake:
        run = lake.learn(str(folder / "target.parquet"), **ROWS | settings)
        lake.publish(run)
        assert lake.verify(deep=True).is_sound
        found = dict(lake.sql("SELECT text, sample_weight FROM samples").fetchall())
        table = lake.sql(
            "SELECT s.domain, g.*, s.sample_weight, t.num_tokens FROM samples s JOIN row_gaps g USING (sample_id) "
            "JOIN sample_tokens t USING (sample_id) ORDER BY sample_id"
        ).pl()
        return found, table, run


def test_weights_of_rows_reach_the_lake_whatever_files_they_are_in(tmp_path):
    rows = [(text, domain) for domain in LANGUAGES for text in sentences(domain, 16)]
    found, table, run = weights_of(tmp_path / "one", {"a": rows})
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(48)]
    again, *_ = weights_of(tmp_path / "other", {"b": mixed[:5], "a": mixed[5:]})
    assert again == found

    assert len(table) == 48
    assert table["run_id"].unique().to_list() == [run.run_id]
    assert table["snapshots"].unique().to_list() == [2]
    share = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
    tokens = (table["sample_weight"].cast(float) * table["num_tokens"]).sum()
    for (domain,), own in table.group_by("domain"):
        assert (own["row_weight"] * own["num_tokens"]).sum() == pytest.approx(own["num_tokens"].sum())
        ratio = own["sample_weight"].cast(float) / own["row_weight"]
        assert ratio.max() == pytest.approx(ratio.min(), rel=1e-5)  # v is all that rows of a domain differ by
        assert (own["sample_weight"].cast(float) * own["num_tokens"]).sum() / tokens == pytest.approx(
            share[domain], 1e-5
        )

    figures = run.record["rows"]
    assert (figures["share"], figures["num_rows"], figures["snapshots"]) == (1.0, 48, 2)
    assert figures["quantiles"]["1.0"] == pytest.approx(table["row_weight"].max())
    assert (figures["reliability"] > 0) == (table["row_weight"].n_unique() > 3)
    assert "which no training has judged" in run.verdict
    assert json.loads((run.run_dir / "run.json").read_text())["rows"] == figures
    steps = sum(
        json.loads(line)["compute_tokens"] for line in (run.run_dir / "trajectory.jsonl").read_text().splitlines()
    )
    pairs = MeasuredRows.read(run.run_dir).compute_tokens
    assert pairs > 4 / 3 * table["num_tokens"].sum()  # 2 snapshots · 2 · 1/3, and their training
    assert run.record["compute_tokens"] == pytest.approx(steps + pairs)


def test_rows_that_were_not_measured_weigh_their_domains_mean(tmp_path):
    rows = [(text, domain) for domain in LANGUAGES for text in sentences(domain, 16)]
    found, table, run = weights_of(tmp_path, {"a": rows}, rows={"pairs": 2, "max_rows": 24})
    assert len(table) == 24
    assert run.record["rows"]["share"] == 0.5
    measured = set(table["sample_id"])
    for name in LANGUAGES:
        others = {
            row["sample_weight"]
            for row in run.samples().to_pylist()
            if row["domain"] == name and row["sample_id"] not in measured
        }
        own = table.filter(table["domain"] == name)
        mean = (own["sample_weight"].cast(float) * own["num_tokens"]).sum() / own["num_tokens"].sum()
        assert list(others) == [pytest.approx(mean, rel=1e-5)]
    assert len(found) == 48


@pytest.mark.parametrize("by_content", [True, False])
def test_rows_with_ids_of_the_same_content_weigh_the_same(tmp_path, by_content):
    """Rows a, a-2 and b were measured, a-3 and c were not; with a key the names mean nothing."""
    texts = sentences("north", 3)
    rows = RowBatch(
        sample_id=pa.array(["a", "a-2", "a-3", "b", "c"]),
        text=[texts[0]] * 3 + texts[1:],
        domain=np.zeros(5, np.int32),
    )
    (tmp_path / "corpus").mkdir()
    corpus = write_cache(tmp_path / "corpus", train_tokenizer(texts, 300), [rows], ["north"])
    places, tokens = np.array([0, 1, 3]), np.asarray(corpus.num_targets)
    gaps = RowGaps.none(3)
    for noise in (0.0, 0.001):
        gap_R = np.array([-0.1, -0.3 + noise, 0.2])
        gaps = gaps.added(gap_R, np.zeros(3), np.zeros(3, np.int32), tokens[places])
    measured = MeasuredRows(places=places, gaps=gaps)
    found = weigh_rows(tmp_path, "run", corpus, measured, None, sharpness=1.0, near_duplicates=0, by_content=by_content)
    x, y, z = reliability(gaps, tokens[places]) * gaps.mean_relative_R / spread(gaps.mean_relative_R, tokens[places])
    known, worth = ([0, 1, 2, 3], [(x + y) / 2] * 3 + [z]) if by_content else ([0, 1, 3], [x, y, z])
    ratio = np.exp(-np.array(worth))
    expected = np.ones(5)
    expected[known] = ratio / np.average(ratio, weights=tokens[known])
    assert y + 0.1 < x
    assert found.weights == pytest.approx(expected)
    table = pq.read_table(tmp_path / "row_gaps.parquet")
    assert table["row_weight"].to_pylist() == pytest.approx(list(expected[places]))
    assert (found.num_rows, found.num_scored) == (3, 0)


def test_a_lake_whose_runs_weigh_no_rows_has_an_empty_table(learned):
    with sdk.open_lake(str(learned.lake)) as lake:
        lake.ingest()
        assert lake.sql("SELECT count(*), count(row_weight) FROM row_gaps").fetchall() == [(0, 0)]
        assert lake.run(learned.run_id).record["rows"] is None
