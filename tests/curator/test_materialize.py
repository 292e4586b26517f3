"""Selections of a published lake: in SQL, in the file of views, and written as a data set with its provenance."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import selection_cases as witness
from lake_cases import curator as curator_command
from lake_cases import refusal, sentences, tree, values_of, write_rows
from selection_cases import DOMAINS, Row, record_run

import curator
from connectors.store import list_objects, open_store, read_bytes
from curator.carry import weights_now
from curator.errors import InputError, NotFoundError, StorageError, UsageError
from curator.materialize import MANIFEST
from curator.publish import publish
from curator.selection import (
    Curated,
    MixtureBudget,
    Quantiles,
    Repeats,
    TokenBudget,
    TopK,
    WeightedSample,
    bucket_domains,
)

SELECTIONS = [
    Curated(threshold=1.0),
    TopK(fraction=0.25),
    WeightedSample(n=20, seed=3),
    Repeats(factor=2.0, seed=3),
    TokenBudget(tokens=2000, seed=3),
    MixtureBudget(shares={DOMAINS[0]: 0.75, DOMAINS[1]: 0.25}, tokens=1000),
    Quantiles(buckets=2),
]
NUM_ROWS = 40


def write_corpus(folder, key=True):
    """A file a domain, with a key if asked, and columns called as ours."""
    for number, domain in enumerate(DOMAINS):
        columns = {
            "text": sentences("abcdef"[number], NUM_ROWS),
            "domain": [domain] * NUM_ROWS,
            "repeats": list(range(NUM_ROWS)),
            "copy": ["'"] * NUM_ROWS,
        }
        keys = {"key": [f"k{number}-{i}" for i in range(NUM_ROWS)]} if key else {}
        write_rows(folder / f"part {number}'.parquet", **columns, **keys)
    return folder


@pytest.fixture(scope="module")
def published_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selected")
    write_corpus(folder / "lake")
    with curator.open_lake(str(folder / "lake"), key="key") as lake:
        lake.publish(record_run(lake, folder / "run"))
    return folder


@pytest.fixture
def folder(published_once, tmp_path):
    shutil.copytree(published_once, tmp_path / "copy", copy_function=shutil.copy2)
    return tmp_path / "copy"


@pytest.fixture
def lake(folder):
    with curator.open_lake(str(folder / "lake")) as opened:
        yield opened


def read_all(folder):
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))])


def rows_of(lake):
    weights = lake.run("latest").samples().to_pylist()
    return [Row(r["sample_id"], r["domain"], r["sample_weight"], r["num_tokens"]) for r in weights]


# in SQL -----------------------------------------------------------------------------------------------------------


def test_the_lake_selects_by_its_weights_and_tokens(lake):
    rows = rows_of(lake)
    found = lake.select(TokenBudget(tokens=2000, seed=3)).pl()
    counted = dict(zip(found["sample_id"], found["repeats"], strict=True))
    assert counted == witness.token_budget(rows, 2000, 4, 3)
    same = lake.sql("SELECT sample_id, repeats FROM token_budget(2000, 4, seed := 3)").fetchall()
    assert dict(same) == witness.token_budget(rows, 2000, 4, 3)
    assert lake.fetch("SELECT count(*) FROM weighted_sample(7)", confined=True)[1] == [(7,)]
    assert lake.sql("FROM curated(0)").to_arrow_reader().read_all().num_rows == 3 * NUM_ROWS
    assert lake.select(Curated(threshold=0), version=1).columns == lake.select(Curated(threshold=0)).columns


def test_old_versions_stand_beside_the_newest(lake, folder):
    record_run(lake, folder / "second", seed=1, run_id="second")
    lake.publish("second")
    first = dict(lake.sql("SELECT sample_id, sample_weight FROM at_version(1)").fetchall())
    assert first == dict(lake.sql("SELECT sample_id, sample_weight FROM samples", version=1).fetchall())
    changed = "SELECT count(*) FROM samples AS s JOIN AT_VERSION ( 1 ) AS o USING (sample_id) WHERE s.sample_weight"
    assert lake.sql(f"{changed} <> o.sample_weight").fetchall() == [(3 * NUM_ROWS,)]
    assert lake.fetch(f"{changed} <> o.sample_weight", confined=True)[1] == [(3 * NUM_ROWS,)]
    with pytest.raises(NotFoundError, match="no version 7; there are 1 to 2"):
        lake.sql("FROM at_version(7)")


def test_an_unpublished_lake_selects_nothing_and_says_why_it_counts_nothing(tmp_path):
    write_corpus(tmp_path / "lake")
    with curator.open_lake(str(tmp_path / "lake")) as lake:
        lake.ingest()
        assert lake.select(Curated(threshold=0)).fetchall() == []
        assert lake.select(TokenBudget(tokens=10)).fetchall() == []
        with pytest.raises(UsageError, match="no run was published yet"):
            lake.fetch("FROM sample_tokens")
        with pytest.raises(NotFoundError, match="no published version"):
            lake.materialize(Curated(threshold=0), tmp_path / "out")


@pytest.fixture
def carried(lake, folder):
    """The lake with rows that came since the run, and a version in which they have weights."""
    rows = {"text": sentences("a", 400, 9), "domain": [DOMAINS[0]] * 400, "key": [f"new-{i}" for i in range(400)]}
    write_rows(folder / "lake" / "new.parquet", **rows, repeats=[0] * 400, copy=[""] * 400)
    lake.ingest()
    run = lake.run("latest")
    weights = weights_now(lake, run, (), lambda _: None)
    publish(lake, run, lambda _: None, weights_now=weights, label="carried")
    return lake, weights.samples.to_pylist()


def test_rows_that_came_since_the_run_are_chosen_as_all_others(carried, folder):
    lake, weights = carried
    num_rows, num_tokens = len(weights), sum(row["num_tokens"] for row in weights)
    assert num_rows == 3 * NUM_ROWS + 400
    for selection in (Curated(threshold=-1.0), TokenBudget(tokens=10**9, max_repeats=1)):
        done = lake.materialize(selection, folder / selection.macro)
        assert (done.num_rows, done.num_tokens) == (num_rows, num_tokens)
        assert read_all(folder / selection.macro).num_rows == num_rows
    assert sum(bucket["num_samples"] for bucket in bucket_domains(lake.run("latest"), 2)) == num_rows
    budget = "FROM token_budget(1000000000, 1)"
    assert len(lake.fetch(budget, confined=True)[1]) == num_rows
    assert len(lake.sql(budget, version=1).fetchall()) == 3 * NUM_ROWS
    lake.write_views(folder / "views.duckdb")
    with duckdb.connect(str(folder / "views.duckdb"), read_only=True) as connection:
        assert len(connection.sql(budget).fetchall()) == num_rows


def test_tokens_of_such_rows_stay_as_long_as_their_version(carried, folder):
    lake, weights = carried
    (kept,) = (folder / "lake" / "_curator" / "data").glob("*-tokens-*/tokens.parquet")
    assert lake.gc("0s").items == ()
    lake.publish(record_run(lake, folder / "second", seed=1, run_id="second"))
    assert lake.gc("0s").items == ()
    assert len(lake.sql("FROM token_budget(1000000000, 1)", version=2).fetchall()) == len(weights)
    assert kept.exists()
    planned = lake.gc("0s", keep=1, dry_run=True)
    removed = lake.gc("0s", keep=1)
    name = kept.relative_to(folder / "lake" / "_curator").as_posix()
    assert name in {item.path for item in planned.items} & {item.path for item in removed.items}
    assert not kept.exists()


def test_tokens_that_are_gone_fail_where_they_are_counted_alone(lake, folder):
    (folder / "lake" / "_curator" / "runs" / "by-hand" / "weights.parquet").unlink()
    assert len(lake.select(TopK(fraction=0.5)).fetchall()) == 3 * NUM_ROWS / 2
    with pytest.raises(UsageError, match=r"weights\.parquet, with the tokens of every row, cannot be read"):
        lake.fetch("FROM token_budget(10, 1)")


BARE = """
import json, sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
print(json.dumps([connection.execute(query).fetchall() for query in sys.argv[2:]]))
"""


def ask_bare(path, *queries):
    program = [sys.executable, "-I", "-W", "error", "-c", BARE, str(path), *queries]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_bare_duckdb_selects_the_same_rows_by_the_key(lake):
    queries = [f"SELECT sample_id FROM {selection.call} ORDER BY 1" for selection in SELECTIONS]
    expected = [[list(row) for row in lake.sql(query).fetchall()] for query in queries]
    assert ask_bare(lake.write_views(), *queries) == expected
    assert all(expected)


def test_a_bare_duckdb_draws_by_content_without_a_key(tmp_path):
    write_corpus(tmp_path / "lake", key=False)
    with curator.open_lake(str(tmp_path / "lake")) as lake:
        lake.publish(record_run(lake, tmp_path / "run"))
        path = lake.write_views()
        weight_of = dict(lake.sql("SELECT text, sample_weight FROM samples").fetchall())
        best = lake.sql("SELECT text FROM top_k(0.25) ORDER BY 1").fetchall()
    rows = [Row(text, "", weight, 1) for text, weight in weight_of.items()]
    asked = ["SELECT text FROM weighted_sample(20, 3) ORDER BY 1", "SELECT text FROM top_k(0.25) ORDER BY 1"]
    sample, top = ask_bare(path, *asked)
    assert len(sample) == 20
    assert top == [list(row) for row in best]  # no two weights are equal
    assert {text for (text,) in sample} <= {row.sample_id for row in rows if row.sample_weight}
    assert ask_bare(path, asked[0]) == [sample]


# as a data set ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.macro)
def test_what_is_written_is_what_is_selected(lake, tmp_path, selection):
    told = []
    done = lake.materialize(selection, tmp_path / "out", on_progress=told.append)
    expected = lake.select(selection).pl()
    times = expected["repeats"] if "repeats" in expected.columns else pl.ones(len(expected), dtype=pl.Int64, eager=True)
    counted = dict(zip(expected["sample_id"], times, strict=True))
    written = read_all(tmp_path / "out")
    assert Counter(written["sample_id"].to_pylist()) == counted
    assert done.num_rows == written.num_rows == sum(counted.values()) == told[-1].done == told[-1].total
    assert done.num_tokens == sum(written["num_tokens"].to_pylist())
    assert (done.version, done.run_id, done.created) == (1, "by-hand", True)
    names = ["key", "text", "original_repeats", "copy", "sample_weight", "domain_weight", "weight_run_id", "num_tokens"]
    assert set(names) <= set(written.column_names)
    assert not {"repeats", "usable"} & set(written.column_names)
    record = json.loads((tmp_path / "out" / MANIFEST).read_text())
    footer = json.loads(written.schema.metadata[b"lake-curator"])
    for told_by in (record, footer):
        assert told_by["selection"] == json.loads(json.dumps(selection.values))
        assert (told_by["run_id"], told_by["version"], told_by["lake"]) == ("by-hand", 1, lake.url)
    assert {f["path"] for f in record["files"]} | {MANIFEST} == {p.name for p in (tmp_path / "out").iterdir()}
    assert lake.sql(record["sql"], version=record["version"]).shape[0] == len(counted)
    once = lake.materialize(selection, tmp_path / "once", repeat_rows=False)
    assert read_all(tmp_path / "once").num_rows == len(counted)
    assert (once.num_rows, once.num_tokens, once.domains) == (done.num_rows, done.num_tokens, done.domains)


def test_a_dry_run_counts_the_same_and_writes_nothing(lake, tmp_path, folder):
    lake.sql("FROM samples")
    before = tree(tmp_path)
    planned = lake.materialize(SELECTIONS[4], tmp_path / "out", dry_run=True)
    assert tree(tmp_path) == before
    done = lake.materialize(SELECTIONS[4], tmp_path / "out")
    assert (planned.num_rows, planned.num_tokens, planned.domains) == (done.num_rows, done.num_tokens, done.domains)
    assert not planned.created
    assert planned.num_tokens <= 2000


def test_a_destination_is_replaced_only_if_it_was_ours_and_asked_for(lake, tmp_path):
    out = tmp_path / "out"
    lake.materialize(TopK(fraction=0.5), out)
    before = tree(out)
    with pytest.raises(UsageError, match="is there already"):
        lake.materialize(TopK(fraction=0.1), out)
    assert tree(out) == before
    lake.materialize(TopK(fraction=0.1), out, overwrite=True)
    assert read_all(out).num_rows == 3 * NUM_ROWS / 10
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.txt is not of the earlier call"):
        lake.materialize(TopK(fraction=0.1), out, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("mine")
    with pytest.raises(UsageError, match=f"is not empty and has no {MANIFEST}"):
        lake.materialize(TopK(fraction=0.1), tmp_path / "other", overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        lake.materialize(TopK(fraction=0.1), tmp_path / "other" / "a")
    with pytest.raises(UsageError, match="lies inside the lake"):
        lake.materialize(TopK(fraction=0.1), Path(lake.url) / "more")
    with pytest.raises(UsageError, match="selects no row"):
        lake.materialize(Curated(threshold=1e9), tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "other", "out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_a_local_folder_as_it_was(lake, tmp_path, overwrite):
    if overwrite:
        lake.materialize(TopK(fraction=0.5), tmp_path / "out")
    before = tree(tmp_path)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lake.materialize(TopK(fraction=0.1), tmp_path / "out", overwrite=overwrite, on_progress=stop)
    assert tree(tmp_path) == before


def test_rows_without_an_id_are_not_passed_over(lake, folder, tmp_path):
    write_corpus(tmp_path / "keyless", key=False)
    with curator.open_lake(str(tmp_path / "keyless")) as keyless:
        keyless.publish(record_run(keyless, tmp_path / "run"))
        write_rows(tmp_path / "keyless" / "part 0'.parquet", text=["new"], domain=[DOMAINS[0]])
        keyless.ingest()
        with pytest.raises(InputError, match="40 rows of version 1 have no id any more"):
            keyless.materialize(TopK(fraction=0.1), tmp_path / "out")
    write_rows(folder / "lake" / "part 0'.parquet", text=["new"], domain=[DOMAINS[0]], key=["k"])
    lake.ingest()
    assert lake.materialize(TopK(fraction=0.1), tmp_path / "out").num_rows == 12  # the version has its keys


def test_a_damaged_copy_leaves_nothing(lake, tmp_path):
    copy = next(Path(lake.history()[0].location).glob("*.parquet"))
    data = bytearray(copy.read_bytes())
    data[200:1500] = bytes(1300)
    copy.write_bytes(data)
    with pytest.raises(StorageError):
        lake.materialize(Curated(threshold=0), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_other_storage_gets_its_manifest_last_and_is_tidied(lake, place, tmp_path):
    if open_store(place.url, place.options).is_local:
        pytest.skip("local folders are renamed")
    out, options = f"{place.url}/out", place.options
    store = open_store(out, options)

    def stop(_):
        assert not any(info.path == MANIFEST for info in list_objects(store))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lake.materialize(SELECTIONS[4], out, storage_options=options, on_progress=stop)
    assert list_objects(store) == []
    done = lake.materialize(SELECTIONS[4], out, storage_options=options)
    record = json.loads(read_bytes(store, MANIFEST))
    assert {f["path"]: f["size_bytes"] for f in record["files"]} | {MANIFEST: len(read_bytes(store, MANIFEST))} == {
        info.path: info.size_bytes for info in list_objects(store)
    }
    again = lake.materialize(TopK(fraction=0.1), out, storage_options=options, overwrite=True)
    assert again.num_rows == 12 != done.num_rows
    (part,) = json.loads(read_bytes(store, MANIFEST))["files"]
    assert [info.path for info in list_objects(store, ".parquet")] == [part["path"]]
    assert pq.read_table(pa.BufferReader(read_bytes(store, part["path"]))).num_rows == 12


# quantiles for a trainer ------------------------------------------------------------------------------------------


def test_buckets_are_domains_of_a_blend(lake, tmp_path):
    run = lake.run("latest")
    rows, bucket_of = rows_of(lake), witness.buckets(rows_of(lake), 4)
    total = sum(row.sample_weight * row.num_tokens for row in rows)
    found = {row["domain"]: row for row in bucket_domains(run, 4)}
    assert set(found) == set(bucket_of.values())
    for name, row in found.items():
        own = [each for each in rows if bucket_of[each.sample_id] == name]
        share = sum(each.sample_weight * each.num_tokens for each in own) / total
        assert row["domain_weight"] == pytest.approx(share, rel=1e-5)
        assert (row["num_samples"], row["num_tokens"]) == (len(own), sum(each.num_tokens for each in own))
    places = {name: f"data/{number}" for number, name in enumerate(found)}
    done = run.export("megatron", tmp_path / "blend.txt", places=places, quantiles=4)
    assert sum(done.weights.values()) == pytest.approx(1)
    assert done.weights[f"{DOMAINS[0]}/q4"] > done.weights[f"{DOMAINS[0]}/q1"]
    record_run(lake, tmp_path / "second", seed=1, run_id="second")
    with pytest.raises(NotFoundError, match="'second' was not published"):
        lake.run("second").export("megatron", tmp_path / "other.txt", places=places, quantiles=4)


# the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_call_does(folder, tmp_path):
    (tmp_path / "mixture.json").write_text(json.dumps({DOMAINS[0]: 0.75, DOMAINS[1]: 0.25}))
    asked = ["materialize", folder / "lake", "--out", tmp_path / "out", "--token-budget", 1000, "--mixture"]
    (tmp_path / "wrong.json").write_text(json.dumps({DOMAINS[0]: 0.75, "wep": 0.25}))
    said = "the mixture names domain 'wep', which the lake does not have; did you mean 'web'?"
    assert refusal(curator_command(tmp_path, *asked, tmp_path / "wrong.json"), 2) == said
    asked.append(tmp_path / "mixture.json")
    planned = values_of(curator_command(tmp_path, *asked, "--dry-run", "--json"))
    assert not (tmp_path / "out").exists()
    done = values_of(curator_command(tmp_path, *asked, "--json"))
    assert done["num_tokens"] == planned["num_tokens"] == sum(read_all(tmp_path / "out")["num_tokens"].to_pylist())
    assert done["selection"] == SELECTIONS[5].values
    assert "is there already" in refusal(curator_command(tmp_path, *asked), 2)
    shown = curator_command(tmp_path, *asked, "--overwrite", "--seed", 1, "--max-repeats", 2)
    assert shown.returncode == 0, shown.stderr
    assert "of version 1 (run by-hand): 1 files" in shown.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "none was given"),
        (["--mixture", "a.json"], "--mixture divides a --token-budget"),
        (["--curated", 1, "--top-k", 0.1], "--curated and --top-k were given"),
        (["--curated", 1, "--seed", 1], "--seed means nothing to --curated"),
        (["--curated", 1, "--mixture", "a.json"], "--mixture divides a --token-budget"),
        (["--top-k", 7], "above 0 and at most 1"),
    ],
)
def test_the_command_refuses_what_means_nothing(folder, tmp_path, options, said):
    assert said in refusal(curator_command(tmp_path, "materialize", folder / "lake", "--out", "out", *options), 2)
    assert not (tmp_path / "out").exists()


# what is said where there are too few rows ------------------------------------------------------------------------


def notes(lake, selection):
    return lake.materialize(selection, "unused", dry_run=True).notes


def test_a_budget_beyond_the_rows_is_told_with_what_it_does_to_the_shares(lake, folder):
    lake.publish(record_run(lake, folder / "favouring", run_id="favouring", favour=3.0))
    weights = {row["domain"]: row["domain_weight"] for row in lake.run("favouring").record["domains"]}
    whole = lake.materialize(TokenBudget(tokens=10**9, max_repeats=3), "unused", dry_run=True)
    share = {d.domain: d.num_tokens / whole.num_tokens for d in whole.domains}
    worst = DOMAINS[0]
    lost, missing = whole.notes
    assert lost.startswith(
        f"rows are taken 3 times at most, so that {worst!r} has {share[worst]:.3f} of the tokens instead of the "
        f"{weights[worst]:.3f} of its weight: "
    )
    assert missing.startswith(f"all rows with a weight, 3 times each, are {whole.num_tokens:,} of the 1,000,000,000 ")
    assert notes(lake, TokenBudget(tokens=2000, max_repeats=100)) == ()


def test_a_sample_of_more_rows_than_there_are_is_told(lake, folder):
    num = sum(row.sample_weight > 0 for row in rows_of(lake))
    assert notes(lake, WeightedSample(n=num)) == ()
    (said,) = notes(lake, WeightedSample(n=num + 1))
    assert said == (
        f"only {num} rows have a weight, fewer than n={num + 1}, so that all are taken whatever they weigh: ask for "
        "fewer"
    )
    call = ("materialize", "lake", "--out", "unused", "--dry-run", "--weighted-sample", num + 1)
    assert f"note: {said}" in " ".join(curator_command(folder, *call).stderr.split())
    assert values_of(curator_command(folder, *call, "--json"))["notes"] == [said]
