import json
import os
import shlex
import shutil

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import FAST, sentences, tree, values_of, write_lake, write_rows
from lake_cases import curator as command_line

import curator
from connectors import duck
from connectors.store import delete, open_store, write_object
from curator.errors import (
    ConfigError,
    CuratorError,
    InputError,
    NotFoundError,
    StorageError,
    TryAgainError,
    UsageError,
)

WEIGHTS = {"sample_weight", "domain_weight", "weight_run_id"}


@pytest.fixture
def lake(tmp_path):
    with curator.open_lake(str(write_lake(tmp_path / "lake"))) as opened:
        yield opened


def counts(lake):
    return dict(lake.sql("SELECT domain, count(*) FROM samples GROUP BY ALL").fetchall())


# opening ----------------------------------------------------------------------------------------------------------


def test_opening_reads_and_writes_nothing(tmp_path):
    write_lake(tmp_path / "lake")
    before = tree(tmp_path, but=())
    with curator.open_lake(str(tmp_path / "lake")) as lake:
        assert repr(lake) == f"Lake('{tmp_path / 'lake'}', text='text', domain='domain')"
    assert tree(tmp_path, but=()) == before


def test_a_lake_that_does_not_exist_is_refused_with_what_is_allowed(tmp_path):
    with pytest.raises(
        InputError, match=r"gone does not exist; give a folder, file or glob of Parquet files, or a URL"
    ):
        curator.open_lake(str(tmp_path / "gone"))


def test_the_columns_are_remembered_until_others_are_named(tmp_path):
    write_rows(tmp_path / "l" / "a.parquet", body=["x"] * 4, kind=["a", "b"] * 2, id=[1, 2, 3, 4], other=["c"] * 4)
    url = str(tmp_path / "l")
    with curator.open_lake(url, text="body", domain="kind", key="id") as lake:
        lake.ingest()
    with curator.open_lake(url) as lake:
        assert (lake.config.text, lake.config.domain, lake.config.key) == ("body", "kind", "id")
        assert counts(lake) == {"a": 2, "b": 2}
    with curator.open_lake(url, domain="other") as lake:
        lake.ingest()
        assert (lake.config.text, counts(lake)) == ("body", {"c": 4})


def test_the_columns_of_a_run_are_known_on_another_machine(learned, monkeypatch):
    (learned.state / "lake.json").unlink(missing_ok=True)
    record = json.loads((learned.state / "runs" / learned.run_id / "run.json").read_text())
    record["lake"]["text"] = "score_text"
    (learned.state / "runs" / learned.run_id / "run.json").write_text(json.dumps(record))
    with curator.open_lake(str(learned.lake)) as lake:
        assert lake.config.text == "score_text"


def test_text_and_domain_must_be_two_columns(tmp_path):
    write_lake(tmp_path / "lake")
    with pytest.raises(ConfigError, match="'text' is named both as the text and as the domain"):
        curator.open_lake(str(tmp_path / "lake"), domain="text")


def test_lakes_in_one_folder_do_not_share_what_is_learned_of_them(tmp_path):
    write_lake(tmp_path / "lake")
    write_lake(tmp_path / "lake" / "part=1")
    found = {}
    for part in ("", "north.parquet", "*.parquet", "no*.parquet", "no?th.parquet", "part=1", "part=1/north.parquet"):
        with curator.open_lake(str(tmp_path / "lake" / part), text="text", domain="domain") as lake:
            lake.ingest()
            found[part] = {row[0] for row in lake.sql("SELECT DISTINCT path FROM files").fetchall()}
            assert lake.destination.path == str(lake.workdir)
            assert lake.workdir.parent == tmp_path / "lake"
    states = sorted(path.name for path in (tmp_path / "lake").glob("_curator*"))
    assert len(states) == 7
    assert states[:2] == ["_curator", "_curator_-.parquet-89b65788"]
    assert "_curator_north.parquet" in states
    assert found[""] == {f"{place}{name}.parquet" for place in ("", "part=1/") for name in ("north", "south", "east")}
    assert found["north.parquet"] == {"north.parquet"}
    assert found["part=1/north.parquet"] == {"part=1/north.parquet"}


@pytest.mark.parametrize(
    ("url", "inside", "refused"),
    [
        ("lake", "lake/curated", True),
        ("lake", "lake/a/b", True),
        ("lake", "lake", True),
        ("lake", "lake/_curated", False),
        ("lake", "lake/.curated", False),
        ("lake", "lake-curated", False),
        ("lake/*.parquet", "lake/curated", False),
        ("lake/**/*.parquet", "lake/curated", True),
        ("lake/north.parquet", "lake/curated", False),
        ("lake/part=1", "lake/part=1/curated", True),
        ("lake/part=1", "lake/curated", False),
    ],
)
def test_a_destination_that_would_become_rows_of_the_lake_is_refused(tmp_path, monkeypatch, url, inside, refused):
    write_lake(tmp_path / "lake")
    write_lake(tmp_path / "lake" / "part=1")
    monkeypatch.chdir(tmp_path)
    if refused:
        with pytest.raises(ConfigError, match=r"lies inside the lake .* choose a folder elsewhere"):
            curator.open_lake(url, destination=inside)
        return
    with curator.open_lake(url, destination=inside) as lake:
        report = lake.ingest()
        write_rows(tmp_path / inside / "weights.parquet", text=["x"], domain=["y"])
        assert lake.ingest().num_rows == report.num_rows


@pytest.mark.parametrize("url", ["../lake", "link", "../lake/../lake/"])
def test_a_lake_by_another_of_its_names_is_guarded_as_well(tmp_path, monkeypatch, url):
    """By "..", as `curator init ../lake` writes it, and by a link; so is a place by another of its names."""
    write_lake(tmp_path / "lake")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "link").symlink_to(tmp_path / "lake")
    monkeypatch.chdir(tmp_path / "work")
    for inside in ("../lake/pub", "link/pub", str(tmp_path / "lake" / "pub")):
        with pytest.raises(ConfigError, match="lies inside the lake"):
            curator.open_lake(url, destination=inside)
    with curator.open_lake(url) as lake:
        lake.ingest()
        for name in ("../lake/new.parquet", "link/north.parquet"):
            with pytest.raises(UsageError, match="lies inside the lake"):
                lake.save("SELECT 1 AS one", name)
    with curator.open_lake("../lake/*.parquet", text="text", domain="domain") as lake:
        lake.ingest()
        for name in ("link/new.parquet", str(tmp_path / "lake" / "north.parquet")):
            with pytest.raises(UsageError, match="is a file of the lake"):
                lake.save("SELECT 1 AS one", name, overwrite=True)


# ingesting --------------------------------------------------------------------------------------------------------


def test_only_changed_files_are_read_again(lake, tmp_path):
    first = lake.ingest()
    assert (first.num_files, first.num_rows, first.added, first.rows_indexed) == (3, 72, 3, 72)
    assert lake.ingest().rows_indexed == 0
    write_rows(tmp_path / "lake" / "more.parquet", text=["a b"] * 3, domain=["north"] * 3)
    (tmp_path / "lake" / "south.parquet").unlink()
    again = lake.ingest()
    assert (again.added, again.removed, again.unchanged, again.rows_indexed) == (1, 1, 2, 3)
    assert counts(lake) == {"north": 27, "east": 24}


def test_a_first_ingest_that_fails_leaves_no_catalog(tmp_path):
    write_rows(tmp_path / "lake" / "a.parquet", text=["x", None], domain=["a", "b"])
    with curator.open_lake(str(tmp_path / "lake")) as lake:
        with pytest.raises(InputError, match=r"1 row\(s\) with no text .* --skip-bad-rows"):
            lake.ingest()
        with pytest.raises(InputError, match="has not been ingested yet; run `curator ingest"):
            lake.sql("SELECT 1")
    assert not list((tmp_path / "lake" / "_curator").iterdir())


def test_a_later_ingest_that_fails_leaves_the_index_as_it_was(lake, tmp_path):
    lake.ingest()
    bad = write_rows(tmp_path / "lake" / "bad.parquet", text=["x", None], domain=["a", "b"])
    with pytest.raises(InputError, match="no text"):
        lake.ingest()
    bad.unlink()
    with curator.open_lake(lake.config.url) as again:
        assert counts(again) == {"north": 24, "south": 24, "east": 24}
        assert again.ingest().rows_indexed == 0


def test_asking_before_ingesting_and_after_a_change_says_what_to_run(lake, tmp_path):
    with pytest.raises(InputError, match=r"has not been ingested yet; run `curator ingest .*lake --text COLUMN"):
        lake.domain_counts()
    lake.ingest()
    write_rows(tmp_path / "lake" / "new.parquet", text=["x"], domain=["a"])
    with (
        curator.open_lake(lake.config.url) as again,
        pytest.raises(InputError, match=r"1 file\(s\) of .* changed .*'new\.parquet'; run `curator ingest"),
    ):
        again.sql("SELECT 1")


def test_addresses_are_texts_or_paths_and_a_lake_in_memory_is_told_to_be_written_first(tmp_path):
    table = pl.DataFrame({"text": ["a"], "domain": ["x"]})
    table.write_parquet(tmp_path / "a.parquet")
    with curator.open_lake(tmp_path / "a.parquet", text="text", domain="domain") as lake:
        assert lake.ingest().num_rows == 1
        with pytest.raises(
            UsageError, match=r"lake is given as a DataFrame, .*; curator.write_corpus\(table, FOLDER\)"
        ):
            curator.open_lake(table)
        with pytest.raises(UsageError, match=r"target is given as a LazyFrame; .* \(collect a LazyFrame first\)"):
            lake.learn(table.lazy())
        with pytest.raises(InputError, match=r"none\.parquet does not exist"):
            lake.learn(tmp_path / "none.parquet")


def test_another_text_of_the_same_size_and_time_is_another_snapshot(tmp_path):
    """Or its rows would be learned on by the texts of before, which are kept by snapshot."""
    seen = set()
    for text in ("one", "two"):
        write_rows(tmp_path / "lake" / "a.parquet", text=[text], domain=["x"])
        os.utime(tmp_path / "lake" / "a.parquet", ns=(1, 1))
        with curator.open_lake(str(tmp_path / "lake"), text="text", domain="domain") as lake:
            (file,) = lake.corpus.files
            seen.add((file.version, file.size_bytes, lake.snapshot_id))
    assert len({(version, size) for version, size, _ in seen}) == 1
    assert len(seen) == 2


def test_another_id_hash_is_another_snapshot_and_is_remembered(lake):
    lake.ingest()
    before = lake.snapshot_id
    lake.close()
    with curator.open_lake(lake.config.url, id_hash="sha256") as other:
        assert other.ingest().reindexed_all
        assert other.snapshot_id != before
    with curator.open_lake(lake.config.url) as again:
        assert again.config.id_hash == "sha256"
        assert again.ingest().rows_indexed == 0
        assert {len(name) for (name,) in again.sql("SELECT sample_id FROM samples").fetchall()} == {64}


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_texts_of_files_that_are_no_longer_those_of_the_index_are_refused(where, change, tmp_path, request):
    place = request.getfixturevalue("s3_place") if where == "s3" else None
    url, options = (place.url, place.options) if place else (str(tmp_path / "lake"), None)

    def put(*texts):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": texts, "domain": ["x", "y"]}), sink)
        write_object(open_store(url, options), "a.parquet", sink.getvalue().to_pybytes())

    put("one", "two")
    with curator.open_lake(url, storage_options=options) as lake:
        lake.ingest()
        assert [batch.text for batch in lake.text_batches(["x", "y"])] == [["one", "two"]]
        batches = lake.text_batches(["x", "y"])
        next(batches)
        if change == "gone":
            delete(lake.corpus.store, "a.parquet")
        else:
            put("six", "ten")
        what = "changed" if change == "replaced" else "gone"
        with pytest.raises(TryAgainError, match=rf"a\.parquet has {what} since it was listed; list the lake again"):
            list(batches)


def test_progress_is_told_in_rows(lake):
    told = []
    lake.ingest(told.append)
    assert [(state.stage, state.done, state.total, state.detail) for state in told] == [
        *(("list", done, 3, "files") for done in (1, 2, 3)),
        *(("ingest", done, 72, "rows") for done in (24, 48, 72)),
    ]


# SQL --------------------------------------------------------------------------------------------------------------


def test_samples_has_the_lakes_columns_and_null_weights_before_a_version(lake):
    lake.ingest()
    relation = lake.sql("SELECT * FROM samples")
    assert set(relation.columns) == {"sample_id", "domain", "usable", "text", "score"} | WEIGHTS
    assert lake.sql(f"SELECT {', '.join(f'count({name})' for name in WEIGHTS)} FROM samples").fetchall() == [(0, 0, 0)]
    assert lake.sql("SELECT count(*) FROM runs, versions, domain_weights").fetchall() == [(0,)]


def test_samples_has_the_same_columns_after_a_version(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
        before = lake.sql("SELECT * FROM samples").columns
        lake.publish(learned.run_id)
        assert lake.sql("SELECT * FROM samples").columns == before


def test_only_files_unchanged_since_the_version_have_weights(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        path = learned.lake / "south.parquet"
        pq.write_table(pq.read_table(path), path)  # the same rows, but another file
        write_rows(learned.lake / "new.parquet", text=sentences("east", 2, seed=4), domain=["east"] * 2)
        lake.ingest()
        found = lake.sql(
            "SELECT domain, count(*), count(sample_weight) FROM samples GROUP BY ALL ORDER BY 1"
        ).fetchall()
    assert found == [("east", 26, 24), ("north", 24, 24), ("south", 24, 0)]


def test_samples_shows_the_newest_version(learned):
    path = learned.state / "runs" / learned.run_id
    shutil.copytree(path, learned.state / "runs" / "other")
    record = json.loads((path / "run.json").read_text()) | {"run_id": "other"}
    (learned.state / "runs" / "other" / "run.json").write_text(json.dumps(record))
    with curator.open_lake(str(learned.lake)) as lake:
        for run_id in (learned.run_id, "other"):
            lake.publish(run_id)
            assert lake.sql("SELECT DISTINCT weight_run_id FROM samples").fetchall() == [(run_id,)]
        assert lake.sql("SELECT version, run_id, num_rows FROM versions ORDER BY 1").fetchall() == [
            (1, learned.run_id, 72),
            (2, "other", 72),
        ]


def test_runs_and_domain_weights_are_tables(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
        run = lake.run(learned.run_id)
        assert lake.sql("SELECT run_id, model, steps, seed FROM runs").fetchall() == [(learned.run_id, "tiny", 12, 0)]
        rows = lake.sql("SELECT domain, domain_weight, natural_share FROM domain_weights").fetchall()
        assert {row[0]: row[1:] for row in rows} == {
            row["domain"]: (row["domain_weight"], row["natural_share"]) for row in run.record["domains"]
        }
        table = run.domain_weights.pl()
        assert table.columns == [
            "domain",
            "domain_weight",
            "natural_share",
            "ratio",
            "num_samples",
            "num_tokens",
            "ci_low",
            "ci_high",
            "tokens_seen",
        ]
        assert (table["ci_low"] <= table["domain_weight"]).all()
        assert (table["domain_weight"] <= table["ci_high"]).all()
        assert table["domain_weight"].is_sorted(descending=True)
        assert table["domain_weight"].sum() == pytest.approx(1)
        assert repr(run).startswith(f"Run('{learned.run_id}': {table['domain'][0]} 0.")


def test_the_steps_of_a_run_are_a_table_wherever_its_record_is(learned):
    """The destination alone answers: the run folder's own lines may be on another machine."""
    (learned.state / "runs" / learned.run_id / "trajectory.jsonl").unlink()
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
        names, rows = lake.fetch(
            "SELECT step, weights['north'], gaps['south'], distance, clipped, entropy FROM diagnostics ORDER BY step"
        )
        assert [row[0] for row in rows] == list(range(12))
        assert rows[-1][names.index("distance")] > 0
        assert lake.sql("SELECT DISTINCT run_id FROM diagnostics").fetchall() == [(learned.run_id,)]
        last = lake.sql("SELECT arg_max(weights['north'], step) FROM diagnostics").fetchall()[0][0]
        weight = {row["domain"]: row["domain_weight"] for row in lake.run(learned.run_id).record["domains"]}
        assert last == pytest.approx(weight["north"], rel=1e-6)  # the reported weight is that after the last step
        figures = "movement, swing, uncertainty, clipped_share, train_gap_last, weight_grad_norm_last, entropy"
        assert None not in lake.sql(f"SELECT {figures} FROM runs").fetchall()[0]
        seen = lake.sql("SELECT sum(tokens_seen) FROM domain_weights").fetchall()
        assert seen == lake.sql("SELECT max(tokens) FROM diagnostics").fetchall()


def test_a_lake_without_runs_has_an_empty_table_of_steps(lake):
    lake.ingest()
    assert lake.sql("SELECT count(*), count(weights['north']) FROM diagnostics").fetchall() == [(0, 0)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELEC 1", r"cannot be run: Parser Error: syntax error at or near"),
        ("SELECT nope\nFROM samples", r'cannot be run: Binder Error: Referenced column "nope" not found'),
        ("SELECT * FROM nowhere", r"cannot be run: Catalog Error: Table with name nowhere does not exist"),
        ("", r"no rows to show|cannot be run"),
        ("DELETE FROM sample_index", r"cannot be run: .*read-only"),
    ],
)
def test_a_query_that_cannot_be_run_is_one_line(lake, query, said):
    lake.ingest()
    with pytest.raises(UsageError, match=said) as caught:
        lake.sql(query)
    assert "\n" not in str(caught.value)
    assert counts(lake)["north"] == 24


def test_a_query_that_fails_while_it_runs_is_one_line(lake):
    lake.ingest()
    with pytest.raises(UsageError, match="the query failed: Conversion Error: ") as caught:
        lake.fetch("SELECT text::int\nFROM samples")
    assert "\n" not in str(caught.value)


def test_values_in_a_query_are_parameters(lake):
    lake.ingest()
    query = "SELECT count(*) FROM samples WHERE domain = $name"
    assert lake.sql(query, params={"name": "north"}).fetchall() == [(24,)]
    assert lake.sql(query, params={"name": "north' OR 'a' = 'a"}).fetchall() == [(0,)]


def test_columns_named_like_the_indexs_are_kept_beside_them(tmp_path):
    write_rows(
        tmp_path / "lake" / "a.parquet",
        row=["text of a", "text of b"],
        usable=["a", "b"],
        file_id=[7, 8],
        sample_id=["x", "y"],
    )
    with curator.open_lake(str(tmp_path / "lake"), text="row", domain="usable") as lake:
        lake.ingest()
        found = lake.sql("SELECT domain, original_row, original_file_id, original_sample_id FROM samples ORDER BY 1")
        assert found.fetchall() == [("a", "text of a", 7, "x"), ("b", "text of b", 8, "y")]
        (batch,) = lake.text_batches(["a", "b"])
        assert dict(zip(batch.domain.tolist(), batch.text, strict=True)) == {0: "text of a", 1: "text of b"}


# scanning ---------------------------------------------------------------------------------------------------------


def test_scan_is_lazy_and_has_the_published_columns(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        with pytest.raises(NotFoundError, match="has no published version yet; publish a run first"):
            lake.scan()
        lake.publish(learned.run_id)
        frame = lake.scan()
        assert isinstance(frame, pl.LazyFrame)
        expected = dict(lake.sql("SELECT domain, max(sample_weight) FROM samples GROUP BY 1").fetchall())
        found = frame.group_by("domain").agg(pl.col("sample_weight").max()).collect()
        assert {str(row[0]): row[1] for row in found.rows()} == expected
        heavy = frame.filter(pl.col("sample_weight") > 1).select("text").collect()
        assert len(heavy) == lake.sql("SELECT count(*) FROM samples WHERE sample_weight > 1").fetchall()[0][0]


def test_scan_reads_partitions_glob_characters_and_files_of_different_columns(learned, tmp_path):
    lake_folder = tmp_path / "odd=1" / "lake"
    for path in learned.lake.glob("*.parquet"):
        table = pq.read_table(path).drop_columns(["domain"])
        place = lake_folder / f"domain={path.stem}" / "[a]*?.parquet"
        write_rows(place, **{name: table[name] for name in table.column_names})
    extra = {"extra": list(range(3)), "text": sentences("pqr", 3), "score": pa.array([0.0] * 3, pa.float32())}
    write_rows(lake_folder / "domain=north" / "b.parquet", **extra)
    shutil.copytree(learned.state / "runs", lake_folder / "_curator" / "runs")
    with curator.open_lake(str(lake_folder), text="text", domain="domain") as lake:
        publication = lake.publish(learned.run_id)
        assert publication.num_unweighted == 3
        frame = lake.scan().collect()
        by_sql = lake.sql(
            "SELECT domain, count(*), count(sample_weight), count(extra) FROM samples GROUP BY 1"
        ).fetchall()
    assert set(frame.columns) == {"text", "score", "domain", "extra"} | WEIGHTS
    found = frame.group_by("domain").agg(
        pl.len(), pl.col("sample_weight").count().alias("w"), pl.col("extra").count().alias("e")
    )
    assert sorted(found.rows()) == sorted(by_sql) == [("east", 24, 24, 0), ("north", 27, 24, 3), ("south", 24, 24, 0)]


# two at a time ----------------------------------------------------------------------------------------------------


def test_a_lake_is_the_same_for_everyone_who_opens_it(learned):
    with curator.open_lake(str(learned.lake)) as one, curator.open_lake(str(learned.lake)) as other:
        one.publish(learned.run_id)
        one.release()
        assert [v.version for v in other.history()] == [1]
        assert other.run("latest").run_id == learned.run_id
        other.ingest()
        assert other.sql("SELECT count(sample_weight) FROM samples").fetchall() == [(72,)]


def test_readers_do_not_shut_each_other_out(lake):
    lake.ingest()
    with curator.open_lake(lake.config.url) as other:
        assert counts(lake) == counts(other)


def test_files_are_ingested_by_one_process_while_another_reads(lake, tmp_path):
    lake.ingest()
    assert counts(lake)["north"] == 24
    write_rows(tmp_path / "lake" / "new.parquet", text=["x", "y"], domain=["north"] * 2)
    said = command_line(tmp_path, "ingest", lake.config.url, "--json", CURATOR_HOME=os.environ["CURATOR_HOME"])
    assert values_of(said)["added"] == 1
    assert counts(lake)["north"] == 26
    assert [path.name for path in lake.workdir.glob(".catalog*")] == []


# no error of another package --------------------------------------------------------------------------------------


def spoil_catalog(learned):
    (learned.state / "catalog.duckdb").write_bytes(b"not a database" * 1000)


def spoil_run_record(learned):
    (learned.state / "runs" / learned.run_id / "run.json").write_text('{"run_id": 3}')


def spoil_run_weights(learned):
    (learned.state / "runs" / learned.run_id / "weights.parquet").write_bytes(b"PAR1 not")


def remove_run_weights(learned):
    (learned.state / "runs" / learned.run_id / "weights.parquet").unlink()


def spoil_log(learned):
    (entry,) = (learned.state / "log").iterdir()
    entry.write_text("{")


def remove_manifest(learned):
    shutil.rmtree(learned.state / "manifests")


def remove_published_file(learned):
    next((learned.state / "data").rglob("*.parquet")).unlink()


def spoil_source(learned):
    (learned.lake / "north.parquet").write_bytes(b"PAR1" + b"x" * 400 + b"PAR1")


def spoil_source_pages(learned):
    data = bytearray((learned.lake / "north.parquet").read_bytes())
    data[4:400] = os.urandom(396)
    (learned.lake / "north.parquet").write_bytes(data)


def remove_lake(learned):
    shutil.rmtree(learned.lake)


def catalog_is_a_folder(learned):
    (learned.state / "catalog.duckdb").unlink()
    (learned.state / "catalog.duckdb").mkdir()


CALLS = {
    "ingest": lambda lake: lake.ingest(),
    "sql": lambda lake: lake.sql("SELECT * FROM samples, versions, runs LIMIT 1"),
    "fetch": lambda lake: lake.fetch("SELECT count(sample_weight), sum(length(text)) FROM samples"),
    "scan": lambda lake: lake.scan(),
    "history": lambda lake: lake.history(),
    "runs": lambda lake: [run.domain_weights for run in lake.runs()],
    "samples": lambda lake: lake.run("latest").samples(),
    "publish": lambda lake: lake.publish("latest"),
    "domain_counts": lambda lake: lake.domain_counts(),
    "snapshot_id": lambda lake: lake.snapshot_id,
    "learn": lambda lake: lake.learn("nowhere.parquet", **FAST),
}


@pytest.mark.parametrize(
    ("spoil", "fails"),
    [
        (spoil_catalog, {"sql", "fetch", "ingest", "publish", "domain_counts", "learn"}),
        (catalog_is_a_folder, {"sql", "fetch", "ingest", "publish", "domain_counts", "learn"}),
        (spoil_run_record, {"sql", "fetch", "runs", "samples", "publish", "learn"}),
        (spoil_run_weights, {"samples", "publish", "learn"}),
        (remove_run_weights, {"samples", "publish", "learn"}),
        (spoil_log, {"sql", "fetch", "scan", "history", "publish", "learn"}),
        (remove_manifest, {"sql", "fetch", "scan", "history", "publish", "learn"}),
        (remove_published_file, {"sql", "fetch", "scan", "publish", "learn"}),
        (spoil_source, {"sql", "fetch", "ingest", "publish", "domain_counts", "snapshot_id", "learn"}),
        (spoil_source_pages, {"sql", "fetch", "ingest", "publish", "domain_counts", "learn"}),
        (
            remove_lake,
            {"sql", "fetch", "ingest", "publish", "domain_counts", "snapshot_id", "scan", "samples", "learn"},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_error_of_another_package_reaches_the_caller(learned, spoil, fails):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        opened = curator.open_lake(str(learned.lake), text="text", domain="domain")
        lake.close()
    spoil(learned)
    failed = {}
    for name, call in CALLS.items():
        try:
            call(opened)
        except CuratorError as error:
            failed[name] = str(error)
        finally:
            opened.close()
    assert failed.keys() >= fails, fails - failed.keys()
    if spoil in (spoil_run_record, spoil_log, remove_manifest, remove_published_file):
        assert "domain_counts" not in failed  # what was published does not stand in the way of learning anew
    for name, message in failed.items():
        assert "\n" not in message, (name, message)
        assert len(message) > 20, (name, message)


def test_a_catalog_open_elsewhere_in_this_process_is_try_again(lake):
    lake.ingest()
    path = lake.workdir / "catalog.duckdb"
    with duck.connect(path), pytest.raises(TryAgainError, match=r"has the catalog .* open with other settings"):
        lake.sql("SELECT 1")
    assert counts(lake)["north"] == 24


def test_another_session_of_this_process_that_shows_the_old_rows_is_told_of(tmp_path):
    """DuckDB hands out the instance that is open for a path, also when another file has taken its place."""
    write_lake(tmp_path / "lake")
    columns = {"text": "text", "domain": "domain"}
    first = curator.open_lake(str(tmp_path / "lake"), **columns)
    first.ingest()
    assert first.sql("SELECT count(*) FROM samples").fetchall() == [(72,)]
    with curator.open_lake(str(tmp_path / "lake"), **columns) as second:
        catalog = second.workdir / "catalog.duckdb"
        before = catalog.stat().st_ino
        assert second.ingest().unchanged == 3  # where nothing is to be written, the other is no hindrance
        assert catalog.stat().st_ino == before
    write_rows(tmp_path / "lake" / "more.parquet", text=["one", "two"], domain=["north"] * 2)
    with curator.open_lake(str(tmp_path / "lake"), **columns) as second:
        with pytest.raises(TryAgainError, match=r"another session of this process .* close that session"):
            second.ingest()
        first.close()
        assert second.ingest().num_rows == 74
        assert second.sql("SELECT count(*) FROM samples").fetchall() == [(74,)]


def test_a_work_folder_that_cannot_be_made_names_both_ways_out(tmp_path, monkeypatch):
    write_lake(tmp_path / "lake")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CURATOR_HOME", str(tmp_path / "file" / "home"))
    destination = str(tmp_path / "file" / "there")
    with (
        curator.open_lake(str(tmp_path / "lake"), destination=destination) as lake,
        pytest.raises(StorageError, match=r"choose a --destination that can be written, or set CURATOR_HOME"),
    ):
        lake.ingest()


# learning: what is refused before any work -----------------------------------------------------------------------


@pytest.fixture
def goal(lake, tmp_path):
    pytest.importorskip("megatron.core", reason="needs the extra [train]")
    return str(write_rows(tmp_path / "target.parquet", text=sentences("north", 5)))


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"steps": 0}, ConfigError, r"the arguments: steps=0: input should be greater than or equal to 1"),
        ({"stps": 5}, ConfigError, r"stps is not a known key; did you mean 'steps'\?"),
        ({"weights": {"flor": 0.1}}, ConfigError, r"weights\.flor is not a known key; did you mean 'floor'\?"),
        ({"blocks": {"size": 99}}, ConfigError, r"99"),
        ({"tensor_parallel": 3}, InputError, r"tensor_parallel=3 cannot split .* allows 1, 2, 4"),
        ({"pipeline_parallel": 3}, InputError, r"pipeline_parallel=3 cannot split 4 layers .* allows 1, 2, 4"),
        ({"data_parallel": 1000}, InputError, r"needs 1000 workers, but this machine has \d+ .* at most \d+"),
        ({"model": "gigantic"}, InputError, r"'gigantic' is neither a preset \(tiny, small\) nor a Hugging Face"),
        ({"run_dir": "LAKE/run"}, ConfigError, r"lies inside the lake .*name a folder elsewhere with --run-dir"),
        ({"run_dir": "."}, ConfigError, r"is not an empty folder; name a new one, nothing is overwritten"),
        ({"run_dir": "/proc/run"}, StorageError, r"cannot be created .*; choose another with --run-dir"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    lake, goal, tmp_path, monkeypatch, settings, kind, said
):
    monkeypatch.chdir(tmp_path)
    if "run_dir" in settings:
        settings = {"run_dir": settings["run_dir"].replace("LAKE", lake.config.url)}
    before = tree(tmp_path, but=())
    with pytest.raises(kind, match=said):
        lake.learn(goal, **settings)
    assert tree(tmp_path, but=()) == before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[]", r"is not a model's configuration: it holds a list, not an object"),
        ("{", r"config\.json cannot be read \(JSONDecodeError\)"),
        ('{"model_type": "llama"}', r"lacks '.*'; it is not a decoder this engine knows"),
        (
            '{"model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 8}',
            r"lacks 'vocab_size'",
        ),
        (
            '{"model_type": "llama", "num_attention_heads": "many", "num_hidden_layers": 2, "hidden_size": 8, '
            '"vocab_size": 9}',
            r"holds a size that is no number",
        ),
    ],
)
def test_a_model_folder_that_is_none_is_refused(lake, goal, tmp_path, config, said):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(config)
    with pytest.raises(InputError, match=said):
        lake.learn(goal, model=str(tmp_path / "model"))


def test_a_floor_that_leaves_nothing_to_learn_is_refused(lake, goal):
    with pytest.raises(
        ConfigError, match=r"floor=0\.5 leaves nothing to learn for 3 domains; it must be below 0\.3333"
    ):
        lake.learn(goal, **FAST, weights={"floor": 0.5})
    assert lake.runs() == []
    assert not list((lake.workdir / "runs").iterdir())


def test_an_interrupt_before_the_workers_leaves_no_run(lake, goal):
    def interrupt(state):
        raise KeyboardInterrupt

    with pytest.raises(curator.CuratorError, match=r"^stopped before the run ended; nothing was published$"):
        lake.learn(goal, **FAST, on_progress=interrupt)
    assert lake.runs() == []
    assert not list((lake.workdir / "runs").iterdir())
    assert lake.ingest().num_rows == 72


def test_a_command_that_is_printed_reaches_the_same_lake(tmp_path):
    lake = write_lake(tmp_path / "a lake")
    with curator.open_lake(str(lake)) as opened:
        assert shlex.split(opened.command_address) == [str(lake)]
    with curator.open_lake(str(lake), destination=str(tmp_path / "else where")) as opened:
        assert shlex.split(opened.command_address) == [str(lake), "--destination", str(tmp_path / "else where")]
