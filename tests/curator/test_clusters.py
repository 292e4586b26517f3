"""Domains split by content: the clusters, what a run makes of them, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import FAST, curator, refusal, sentences, values_of, write_rows, write_settings, write_target

import curator as sdk
from connectors.store import open_store
from curator.clusters import Clusters, _centers
from curator.errors import ConfigError, InputError, StorageError
from curator.features import NUM_HASHED, content
from curator.learn import RECORD
from curator.weights import DomainWeight

pytest.importorskip("megatron.core", reason="needs the extra [train]")

CLUSTER = FAST | {"granularity": "cluster", "clusters": {"per_domain": 3, "least_rows": 20}}
IN_TWO = CLUSTER | {"clusters": {"per_domain": 2, "least_rows": 20}}
MIXED = {"left": {"north": 90, "south": 60}, "right": {"east": 70, "north": 50}, "whole": {"south": 30}}
"""Domain → alphabet → rows. The alphabets share no letter, so the parts by content are known."""


@pytest.fixture(scope="module")
def learned_once(tmp_path_factory):
    """(a lake of three domains, two of which mix two kinds of sentences, with one run; the run's id)."""
    folder = tmp_path_factory.mktemp("learned")
    for seed, (domain, kinds) in enumerate(MIXED.items()):
        rows = [(text, kind) for kind, num in kinds.items() for text in sentences(kind, num, seed=seed)]
        order = np.random.default_rng(seed).permutation(len(rows))
        texts, kind = zip(*(rows[i] for i in order), strict=True)
        path = folder / "lake" / f"{domain}.parquet"
        write_rows(path, text=list(texts), domain=[domain] * len(rows), kind=list(kind))
    write_target(folder / "target.parquet")
    with sdk.open_lake(str(folder / "lake"), text="text", domain="domain") as lake:
        return folder, lake.learn(str(folder / "target.parquet"), **IN_TWO).run_id


@pytest.fixture
def here(learned_once, tmp_path):
    """A copy, modification times kept."""
    return shutil.copytree(learned_once[0], tmp_path, copy_function=shutil.copy2, dirs_exist_ok=True)


@pytest.fixture
def lake(here):
    with sdk.open_lake(str(here / "lake"), text="text", domain="domain") as opened:
        yield opened


@pytest.fixture
def run(learned_once, lake):
    return lake.run(learned_once[1])


def kinds(lake):
    """sample_id → (domain, kind) as the lake has them."""
    rows = lake.sql("SELECT sample_id, domain, kind FROM samples").fetchall()
    return {sample_id: (domain, kind) for sample_id, domain, kind in rows}


# a run ----------------------------------------------------------------------------------------------------------


def test_each_kind_of_rows_gets_a_weight_of_its_own(lake, run):
    found = {row["cluster"]: row for row in run.record["clusters"]}
    sizes = {name: row["num_samples"] for name, row in found.items()}
    assert sizes == {"left/0": 90, "left/1": 60, "right/0": 70, "right/1": 50, "whole/0": 30}
    samples = run.samples()  # checks that rows and domains add up
    known = kinds(lake)
    weights = {}
    for row in samples.to_pylist():
        weights.setdefault(known[row["sample_id"]], set()).add(row["sample_weight"])
    assert all(len(each) == 1 for each in weights.values())
    assert len(weights) == 5
    assert weights["left", "north"] != weights["left", "south"]
    # of weighted tokens, every cluster has the share that it was learned to have
    names = {("left", "north"): "left/0", ("left", "south"): "left/1", ("right", "east"): "right/0"}
    shares = dict.fromkeys(names.values(), 0.0)
    total = sum(row["sample_weight"] * row["num_tokens"] for row in samples.to_pylist())
    for row in samples.to_pylist():
        name = names.get(known[row["sample_id"]])
        if name:
            shares[name] += row["sample_weight"] * row["num_tokens"] / total
    assert shares == pytest.approx({name: found[name]["domain_weight"] for name in shares}, rel=1e-5)


def test_a_domain_has_what_its_clusters_have(run):
    clusters, domains = run.record["clusters"], {row["domain"]: row for row in run.record["domains"]}
    assert [*domains] == ["left", "right", "whole"]
    for name in ("domain_weight", "natural_share", "num_samples", "num_tokens", "ci_low", "tokens_seen"):
        for domain, row in domains.items():
            assert row[name] == pytest.approx(sum(part[name] for part in clusters if part["domain"] == domain))
    assert all(row["ci_low"] < row["domain_weight"] < row["ci_high"] <= 1 for row in domains.values())
    # the run began with the domains alike, and with their clusters by their tokens
    assert run.record["prior"] == pytest.approx(dict.fromkeys(domains, 1 / 3))
    job = json.loads((run.run_dir / "job.json").read_text())["job"]
    left = [part["natural_share"] / domains["left"]["natural_share"] / 3 for part in clusters[:2]]
    assert job["prior"][:2] == pytest.approx(left)


def test_what_sql_says_of_clusters_and_steps(lake, run):
    rows = lake.sql("SELECT cluster, domain, words, domain_weight FROM clusters ORDER BY cluster").fetchall()
    assert [row[:2] for row in rows] == [(row["cluster"], row["domain"]) for row in run.record["clusters"]]
    assert all(set("".join(words.split())) <= set("abcde") for name, _, words, _ in rows if name == "left/0")
    assert rows[-1][2] == ""  # nothing sets the only cluster of a domain apart from it
    steps = lake.sql(
        "SELECT step, map_keys(weights), map_values(weights), map_values(gaps) FROM diagnostics"
    ).fetchall()
    lines = [json.loads(line) for line in (run.run_dir / "trajectory.jsonl").read_text().splitlines()]
    assert len(steps) == len(lines) == FAST["steps"]
    for (_, names, weights, gaps), line in zip(steps, lines, strict=True):
        assert names == ["left", "right", "whole"]
        w, g = np.array(line["weights"]), np.array(line["gaps"])
        assert weights == pytest.approx([w[0] + w[1], w[2] + w[3], w[4]])
        assert gaps[0] == pytest.approx(w[:2] @ g[:2] / w[:2].sum())


def test_rows_that_come_later_weigh_what_their_cluster_does(here, lake, run):
    by_kind = {kinds(lake)[row["sample_id"]]: row["sample_weight"] for row in run.samples().to_pylist()}
    lake.close()
    new = [*sentences("north", 140, seed=0)[130:], *sentences("south", 140, seed=0)[130:]]
    write_rows(here / "lake" / "new.parquet", text=new, domain=["left"] * 20, kind=["north"] * 10 + ["south"] * 10)
    with sdk.open_lake(str(here / "lake"), text="text", domain="domain") as grown:
        scores = grown.score(run.run_id, str(here / "scores"))
        assert scores.num_rows == 320
        known = kinds(grown)
        found = {}
        for path in (here / "scores").glob("*.parquet"):
            for row in pq.read_table(path).to_pylist():
                assert row["origin"] == "predicted"
                found.setdefault(known[row["sample_id"]], set()).add(row["row_weight"])
        assert all(len(each) == 1 for each in found.values())
        ratio = {kind: next(iter(found["left", kind])) for kind in ("north", "south")}
        assert ratio["north"] / ratio["south"] == pytest.approx(
            by_kind["left", "north"] / by_kind["left", "south"], rel=1e-5
        )
        grown.publish(run.run_id)
        published = grown.sql(
            "SELECT kind, count(DISTINCT sample_weight), count(*) FROM samples "
            "WHERE domain = 'left' GROUP BY ALL ORDER BY ALL"
        )
        assert published.fetchall() == [("north", 1, 100), ("south", 1, 70)]


def test_a_run_that_stopped_after_its_workers_ends_the_same(here, lake, run):
    weights = run.samples()
    (run.run_dir / RECORD).unlink()
    resumed = lake.resume(run.run_dir)
    assert resumed.record["clusters"] == run.record["clusters"]
    assert resumed.samples().equals(weights)


def test_the_command_line_and_the_report(here):
    write_settings(here / "fast.toml", clusters={"per_domain": 2, "least_rows": 20})
    call = ["lake", "--text", "text", "--domain", "domain", "--config", "fast.toml", "--granularity", "cluster"]
    plan = values_of(curator(here, "plan", *call, "--target", "target.parquet", "--calibration-steps", 0, "--json"))
    assert plan["num_domains"] == 3
    assert plan["step_tokens"] == (FAST["rows_per_domain"] * 5 + FAST["target_rows"]) * FAST["sequence_length"]
    learned = values_of(curator(here, "learn", *call, "--target", "target.parquet", "--json"))
    assert [*learned["clusters"]] == ["left/0", "left/1", "right/0", "right/1", "whole/0"]
    assert sum(learned["clusters"].values()) == pytest.approx(1)
    assert curator(here, "report", "lake", "--out", "report.html").returncode == 0
    page = (here / "report.html").read_text()
    assert "Clusters by content" in page
    assert "right/1" in page


@pytest.mark.slow
def test_the_cluster_of_the_target_gains_within_its_domain(here):
    with sdk.open_lake(str(here / "lake"), text="text", domain="domain") as lake:
        settings = IN_TWO | {"steps": 150}
        found = {row["cluster"]: row for row in lake.learn(str(here / "target.parquet"), **settings).record["clusters"]}
    assert found["left/0"]["ratio"] > 1 > found["left/1"]["ratio"]  # the target is of the first kind


# the clusters themselves ----------------------------------------------------------------------------------------


def test_content_is_of_unit_length_in_bytes_and_words():
    found = content(pa.array(["one two three", "x", "", None, "one two three"]))
    assert found.shape == (5, 2 * NUM_HASHED)
    lengths = [(half**2).sum(axis=1) for half in np.split(found, 2, axis=1)]
    np.testing.assert_allclose(lengths, [[1, 0, 0, 0, 1], [1, 1, 0, 0, 1]])  # "x" is a word, and no three bytes
    assert (found[0] == found[4]).all()


def test_a_row_belongs_where_it_does_whatever_is_beside_it(run):
    clusters = Clusters.read(open_store(str(run.lake.destination.path)), f"runs/{run.run_id}/clusters.npz")
    texts = pa.array([*sentences("north", 40, seed=7), *sentences("south", 40, seed=7)])
    domain_N = np.zeros(80, np.int32)
    whole = clusters.assign(texts, domain_N)
    alone = [int(clusters.assign(texts.slice(i, 1), domain_N[:1])[0]) for i in range(80)]
    assert whole.tolist() == alone == [0] * 40 + [1] * 40


def test_small_clusters_are_given_up():
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.normal(0, 0.1, (50, 2)), rng.normal(5, 0.1, (30, 2)), rng.normal(-5, 0.1, (4, 2))])
    centers = _centers(places, 3, 10)
    np.testing.assert_allclose(centers[0], places[:50].mean(axis=0), atol=1.5)
    assert len(centers) == 2
    assert len(_centers(places, 3, 4)) == 3
    assert len(_centers(np.ones((20, 2)), 4, 1)) == 1  # rows that are all alike are one cluster


def part(weight, tokens):
    return DomainWeight(domain="", domain_weight=weight, natural_share=0.0, ratio=0.0, num_samples=1, num_tokens=tokens)


def test_shares_go_from_domains_to_clusters_and_back():
    clusters = Clusters(
        domains=("a", "a/0"),
        domain_K=np.array([0, 0, 1]),
        words_K=("x", "y", ""),
        ratio_K=np.ones(3),
        mean_DH=np.zeros((2, 2)),
        basis_HP=np.eye(2),
        center_KP=np.zeros((3, 2)),
    )
    assert clusters.names == ("a/0", "a/1", "a/0/0")
    assert clusters.spread([0.8, 0.2], np.array([30, 10, 5])) == pytest.approx([0.6, 0.2, 0.2])
    assert clusters.fold([0.6, 0.2, 0.2]) == pytest.approx([0.8, 0.2])
    # 10 of 40 tokens of the first domain are to be half of what is drawn of it: their rows weigh twice its mean
    ratios = clusters.learned([part(0.4, 30), part(0.4, 10), part(0.2, 5)]).ratio_K
    np.testing.assert_allclose(ratios, [2 / 3, 2, 1])


# what is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_split_is_refused(here, lake):
    target = str(here / "target.parquet")
    with pytest.raises(ConfigError, match=r"method 'dsir' does not; set learn.granularity = 'domain'"):
        lake.learn(target, **CLUSTER | {"method": "dsir"})
    write_rows(here / "one" / "a.parquet", text=sentences("north", 30), domain=["a"] * 30)
    with (
        sdk.open_lake(str(here / "one"), text="text", domain="domain") as one,
        pytest.raises(InputError, match=r"make one cluster only; .* learn.clusters.least_rows=20 rows"),
    ):
        one.learn(target, **CLUSTER)
    message = refusal(curator(here, "learn", "lake", "--target", "target.parquet", "--granularity", "clusters"), 2)
    assert "'domain', 'cluster' or 'sample'" in message


@pytest.mark.parametrize("damage", ["cut", "newer", "gone"])
def test_clusters_that_cannot_be_read_are_told(run, damage):
    path = run.lake.destination.full_path(f"runs/{run.run_id}/clusters.npz")
    if damage == "gone":
        run.lake.destination.fs.rm(path)
        error, message = InputError, "clusters.npz"
    elif damage == "cut":
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        error, message = StorageError, "is damaged"
    else:
        with np.load(path) as found:
            values = {name: found[name] for name in found.files}
        np.savez(path, **values | {"schema_version": 2})
        error, message = StorageError, "written by another Lake Curator"
    with pytest.raises(error, match=message):
        run.scorer()


def test_a_damaged_cache_is_made_again(here, lake, run):
    (cache,) = (lake.workdir / "tokens").glob("*/clusters-2-20")
    (cache / "clusters.npz").write_bytes(b"nothing")
    again = lake.learn(str(here / "target.parquet"), **IN_TWO)
    assert again.record["clusters"] == run.record["clusters"]
