"""Scoring a lake: every row gets its weight, once, whoever was killed in between and whatever the lake has become."""

import importlib.util
import json
import shutil
import subprocess

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import (
    LANGUAGES,
    command,
    curator,
    environment,
    refusal,
    sentences,
    tree,
    values_of,
    write_rows,
)
from process_cases import wait_until

import curator as sdk
from connectors.store import open_store
from curator import row_gaps
from curator.errors import StorageError, UsageError
from curator.learn import RECORD
from curator.progress import silent
from curator.row_gaps import MeasuredRows, weigh_rows
from curator.score import SCHEMA, score
from curator.tokens import RowBatch, train_tokenizer, write_cache
from curator.unmeasured import score_unmeasured
from optim.row_gaps import RowGaps

pytest.importorskip("tokenizers", reason="needs the extra [train]")

NUM_MEASURED = 150


def write_lake(folder, num_rows=120):
    """Three files of one domain each, one below a folder; every other row is in capitals, which the gaps punish."""
    for place, domain in enumerate(LANGUAGES):
        texts = [t.upper() if i % 2 else t for i, t in enumerate(sentences(domain, num_rows))]
        name = f"deep/{domain}.parquet" if place == 2 else f"{domain}.parquet"
        write_rows(folder / name, text=texts, domain=[domain] * num_rows)


def write_run(lake, tmp_path, meanwhile=lambda: None):
    """A finished run of rows whose gaps are known: what `learn` records after its workers."""
    names = sorted(LANGUAGES)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "target").mkdir()
    tokenizer = train_tokenizer(lake.text_sample(2000), 300)
    corpus = write_cache(tmp_path / "corpus", tokenizer, lake.text_batches(names), names)
    target = RowBatch(sample_id=pa.array(["t"]), text=["any text"], domain=np.zeros(1, np.int32))
    target = write_cache(tmp_path / "target", tokenizer, [target], ["target"])
    places = np.sort(np.random.default_rng(0).permutation(corpus.num_rows)[:NUM_MEASURED])
    texts = {id_: t for b in lake.text_batches(names) for id_, t in zip(b.sample_id.to_pylist(), b.text, strict=True)}
    ids = corpus.sample_ids().take(pa.array(places)).to_pylist()
    worth, rng = np.array([float(texts[i].isupper()) for i in ids]), np.random.default_rng(1)
    gaps = RowGaps.none(NUM_MEASURED)
    for _ in range(3):
        noisy = worth + 0.4 * rng.standard_normal(NUM_MEASURED)
        gaps = gaps.added(noisy, np.zeros(len(places)), corpus.domain[places], corpus.num_targets[places])
    measured = MeasuredRows(places=places, gaps=gaps)
    folder = tmp_path / "run"
    folder.mkdir()
    meanwhile()
    scored = score_unmeasured(lake, corpus, target, measured, 1.0, silent)
    rows = weigh_rows(folder, "r1", corpus, measured, scored, sharpness=1.0, near_duplicates=0, by_content=False)
    return corpus, rows, folder


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A lake whose destination has a run with a scorer, beside the run's corpus and weights."""
    folder = tmp_path_factory.mktemp("scored")
    write_lake(folder / "lake")
    with sdk.open_lake(str(folder / "lake")) as lake:
        lake.ingest()
        corpus, rows, run = write_run(lake, folder)
        record = {
            "schema_version": 1,
            "run_id": "r1",
            "created_at": "2026-01-01T00:00:00+00:00",
            "status": "finished",
            "seconds": 1.0,
            "run_dir": str(run),
            "snapshot_id": lake.snapshot_id,
            "lake": {"text": "text", "domain": "domain", "key": None, "skip_bad_rows": False},
            "learn": {"method": "scalebio", "model": "tiny", "steps": 1, "seed": 0},
            "target": {"url": "t"},
            "verdict": {"status": "converged", "reason": ""},
            "summary": None,
            "domains": [],
            "rows": rows.figures,
        }
        home = folder / "lake" / "_curator" / "runs" / "r1"
        home.mkdir(parents=True)
        for name in row_gaps.files(record):
            shutil.copy(run / name, home / name)
        (home / RECORD).write_text(json.dumps(record))
    return folder, corpus, rows


@pytest.fixture
def here(made_once, tmp_path):
    """A copy of it to change, modification times kept."""
    shutil.copytree(made_once[0] / "lake", tmp_path / "lake", copy_function=shutil.copy2)
    return tmp_path


def shards(folder):
    """Path → rows."""
    return {path.relative_to(folder).as_posix(): pl.read_parquet(path) for path in sorted(folder.rglob("*.parquet"))}


def test_a_row_that_repeats_a_measured_one_weighs_what_that_does(here):
    """In a file of its own, which came after the run."""
    measured = pq.read_table(here / "lake" / "_curator" / "runs" / "r1" / row_gaps.TABLE).to_pylist()
    with sdk.open_lake(str(here / "lake")) as lake:
        texts = dict(lake.sql("SELECT sample_id, text FROM samples").fetchall())
    again = [row for row in measured if row["domain"] == "north"][:5]
    write_rows(here / "lake" / "z.parquet", text=[texts[row["sample_id"]] for row in again], domain=["north"] * 5)
    with sdk.open_lake(str(here / "lake")) as lake:
        lake.score("r1", here / "out")
    found = shards(here / "out")["z.parquet"]
    assert found["sample_id"].str.ends_with("-2").all()
    assert found["origin"].to_list() == ["measured"] * 5
    assert found["row_weight"].to_list() == [row["row_weight"] for row in again]


def test_rows_of_one_text_are_predicted_alike(here):
    """Though their ids differ, by the number of the second."""
    texts = [f"{text} again" for text in sentences("north", 3040)[3000:]]
    write_rows(here / "lake" / "z.parquet", text=texts * 2, domain=["north"] * 80)
    with sdk.open_lake(str(here / "lake")) as lake:
        lake.score("r1", here / "out")
    found = shards(here / "out")["z.parquet"]
    assert set(found["origin"]) == {"predicted"}
    assert found["row_weight"].n_unique() > 30
    first, second = (found["row_weight"][start : start + 40].to_list() for start in (0, 40))
    assert first == second


def test_every_row_has_the_weight_that_the_run_gave_it(here, made_once):
    _, corpus, rows = made_once
    assert (rows.num_scored, rows.scorer["is_usable"]) == (360 - NUM_MEASURED, True)
    with sdk.open_lake(str(here / "lake")) as lake:
        told = []
        done = lake.score("latest", here / "out", on_progress=told.append)
        texts = lake.sql("SELECT sample_id, text FROM samples").pl()
    assert (done.num_files, done.num_written, done.num_there, done.num_rows) == (3, 3, 0, 360)
    found = shards(here / "out")
    assert sorted(found) == ["deep/east.parquet", "north.parquet", "south.parquet"]
    assert pq.read_schema(here / "out" / "north.parquet").remove_metadata() == SCHEMA
    whole = pl.concat(found.values())
    own = pl.DataFrame(
        {"sample_id": corpus.sample_ids().to_pylist(), "v": rows.weights, "t": corpus.num_targets, "d": corpus.domain}
    )
    both = own.join(whole, on="sample_id")
    assert len(both) == 360
    assert both["row_weight"].to_numpy() == pytest.approx(both["v"].to_numpy(), rel=1e-12)
    assert both["origin"].value_counts(sort=True).rows() == [("predicted", 210), ("measured", 150)]
    for _, domain in both.group_by("d"):  # the identity, over measured and predicted rows together
        assert (domain["row_weight"] * domain["t"]).sum() == pytest.approx(domain["t"].sum())
    predicted = both.filter(pl.col("origin") == "predicted").join(texts, on="sample_id")
    capitals = predicted["text"].str.contains("[A-Z]")
    assert predicted.filter(capitals)["row_weight"].max() < predicted.filter(~capitals)["row_weight"].min()
    assert [each.done for each in told if each.stage == "score"][-1] == 360
    assert told[-1].detail.endswith(" rows/s")


def test_what_is_there_is_left_and_what_changed_is_made_again(here):
    with sdk.open_lake(str(here / "lake")) as lake:
        planned = lake.score("r1", here / "out", dry_run=True)
        assert (planned.num_written, planned.num_rows) == (3, 360)
        assert not (here / "out").exists()
        lake.score("r1", here / "out")
        before = tree(here / "out")
        again = lake.score("r1", here / "out")
        assert (again.num_written, again.num_there, tree(here / "out") == before) == (0, 3, True)

        new = [*sentences("new", 10), *sentences("north", 123)[120:]]
        write_rows(here / "lake" / "more.parquet", text=new, domain=["unknown"] * 10 + ["north"] * 3)
        (here / "lake" / "south.parquet").unlink()
        changed = lake.score("r1", here / "out")
    assert (changed.num_written, changed.num_there, changed.num_removed, changed.num_rows) == (1, 2, 1, 13)
    assert sorted(shards(here / "out")) == ["deep/east.parquet", "more.parquet", "north.parquet"]
    more = shards(here / "out")["more.parquet"]
    assert more["row_weight"].is_null().to_list() == [True] * 10 + [False] * 3
    assert more["origin"].to_list() == [None] * 10 + ["predicted"] * 3


def test_rows_renamed_by_another_file_are_scored_again(here):
    """An equal row in a file that comes first takes the id; the second file is as it was."""
    with sdk.open_lake(str(here / "lake")) as lake:
        lake.score("r1", here / "out")
        write_rows(here / "lake" / "a.parquet", text=sentences("south", 1), domain=["south"])
        done = lake.score("r1", here / "out")
        ids = set(lake.sql("SELECT sample_id FROM samples").pl()["sample_id"])
    assert (done.num_written, done.num_there) == (2, 2)
    assert set(pl.concat(shards(here / "out").values())["sample_id"]) == ids


def test_files_rows_and_processes_may_be_cut_in_any_way(here, made_once, monkeypatch):
    with sdk.open_lake(str(here / "lake")) as lake:
        lake.score("r1", here / "one")
        monkeypatch.setattr("curator.score._BATCH_ROWS", 7)
        lake.score("r1", here / "small")
        lake.score("r1", here / "two", workers=2)
        texts = lake.sql("SELECT text, domain FROM samples ORDER BY hash(text)").to_arrow_table()
    one = shards(here / "one")
    assert all(one[name].equals(rows) for folder in ("small", "two") for name, rows in shards(here / folder).items())
    shutil.move(here / "lake" / "_curator", here / "state")
    shutil.rmtree(here / "lake")
    for part, first in enumerate(range(0, 360, 100)):
        rows = texts.slice(first, 100)
        write_rows(here / "lake" / f"{part}.parquet", text=rows["text"], domain=rows["domain"])
    (here / "state" / "catalog.duckdb").unlink()
    with sdk.open_lake(str(here / "lake"), destination=str(here / "state")) as lake:
        lake.score("r1", here / "mixed")
    mixed = pl.concat(shards(here / "mixed").values()).sort("sample_id")
    assert mixed.equals(pl.concat(one.values()).sort("sample_id"))


@pytest.mark.parametrize("failing", range(3))
def test_a_job_that_fails_leaves_whole_shards_and_goes_on_with_the_others(here, failing):
    """Stopped in the middle of every shard in turn."""

    class StopError(Exception):
        pass

    def stop(progress):
        if progress.stage == "score" and progress.done > 120 * failing + 60:
            raise StopError

    with sdk.open_lake(str(here / "lake")) as lake:
        lake.ingest()
        run, place = lake.run("r1"), open_store(str(here / "out"))
        from curator import score as module

        module._BATCH_ROWS, whole = 40, module._BATCH_ROWS
        try:
            with pytest.raises(StopError):
                score(lake, run, place, stop, way=None, workers=1, ray=None, dry_run=False)
        finally:
            module._BATCH_ROWS = whole
        assert [len(rows) for rows in shards(here / "out").values()] == [120] * failing
        done = lake.score(run, here / "out")
        assert (done.num_there, done.num_written) == (failing, 3 - failing)
        assert lake.score(run, here / "out").num_written == 0


def test_a_killed_command_goes_on_and_leaves_no_process(here):
    many = [f"{text} {i}" for i in range(100) for text in sentences("north", 120)]
    for part in range(6):
        write_rows(
            here / "lake" / f"north-{part}.parquet", text=[f"{t} {part}" for t in many], domain=["north"] * 12000
        )
    arguments = ("score", "lake", "--out", "out", "--json", "--workers", 2)
    process = subprocess.Popen(command(*arguments), cwd=here, env=environment(here), stderr=subprocess.PIPE)
    wait_until(lambda: (here / "out").exists() and len(shards(here / "out")) >= 2, 120, process)
    process.kill()
    process.communicate()  # ends when the workers, who share its stderr, have ended
    there = len(shards(here / "out"))
    done = values_of(curator(here, *arguments))
    assert (done["num_there"], done["num_written"]) == (there, 9 - there)
    assert sum(map(len, shards(here / "out").values())) == 360 + 72000


def test_what_cannot_be_scored_is_refused(here):
    with sdk.open_lake(str(here / "lake")) as lake:
        with pytest.raises(UsageError, match="lies inside the lake"):
            lake.score("r1", here / "lake" / "out")
        with pytest.raises(UsageError, match="workers=0 cannot work; at least 1"):
            lake.score("r1", here / "out", workers=0)
        write_rows(here / "out" / "south.parquet", text=["mine"])
        with pytest.raises(UsageError, match=r"south\.parquet is no shard of an earlier call for this lake"):
            lake.score("r1", here / "out")
        assert [path.name for path in (here / "out").rglob("*.parquet")] == ["south.parquet"]
        (here / "lake" / "_curator" / "runs" / "r1" / "scorer.npz").write_bytes(b"PK")
        with pytest.raises(StorageError, match=r"scorer\.npz is damaged"):
            lake.score("r1", here / "elsewhere")


def test_a_lake_that_cannot_be_read_any_more_costs_the_scorer_and_not_the_run(tmp_path):
    write_lake(tmp_path / "lake")
    with sdk.open_lake(str(tmp_path / "lake")) as lake:
        lake.ingest()
        _, rows, folder = write_run(lake, tmp_path, (tmp_path / "lake" / "south.parquet").unlink)
    assert rows.scorer["is_usable"] is False
    assert rows.scorer["refusal"].startswith("the text for a scorer could not be read (")
    assert "; the other 210 weigh their domain's mean, since the text for a scorer could not be read" in rows.sentence
    assert (rows.num_scored, (rows.weights == 1).sum()) == (0, 210)
    assert [path.name for path in folder.iterdir()] == [row_gaps.TABLE]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "it weighed domains alone; learn with --granularity sample"),
        ({"share": 1.0}, "it was learned without a scorer; learn with learn.rows.scorer = true"),
        ({"scorer": {"is_usable": False, "refusal": "the gaps are noise"}}, "the gaps are noise; measure more rows"),
    ],
)
def test_a_run_without_a_scorer_says_why(here, rows, said):
    record = here / "lake" / "_curator" / "runs" / "r1" / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"rows": rows}))
    with (
        sdk.open_lake(str(here / "lake")) as lake,
        pytest.raises(UsageError, match="run r1 cannot score rows: ") as told,
    ):
        lake.score("r1", here / "out")
    assert said in str(told.value)
    assert not (here / "out").exists()


def test_the_command_says_what_it_did(here):
    planned = curator(here, "score", "lake", "--out", "out", "--dry-run")
    what = f"3 shards of 360 rows by run r1 (text) to {here / 'out'}"
    assert planned.stdout == f"would write {what}; nothing was written\n"
    done = curator(here, "score", "lake", "--out", "out", "--run", "r1")
    assert done.stdout.startswith(f"wrote {what} in ")
    assert "score 360/360 rows" in done.stderr
    assert refusal(curator(here, "score", "lake"), 2) == "no place was named; pass --out FOLDER"


# by Ray -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_ray(python_with):
    """`by_ray(folder, *arguments)` is `curator …` where Ray is installed, too."""
    python = python_with("ray[data]==2.60.0")

    def run(cwd, *arguments, program=("-m", "curator")):
        command_ = [python, *program, *map(str, arguments)]
        given = environment(cwd, RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
        return subprocess.run(command_, cwd=cwd, env=given, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.mark.slow
def test_ray_writes_the_same_shards(here, by_ray):
    for number in range(5):
        write_rows(here / "lake" / f"more-{number}.parquet", text=sentences("north", 30, number), domain=["north"] * 30)
    with sdk.open_lake(str(here / "lake")) as lake:
        lake.score("r1", here / "here")
    asked = ("score", here / "lake", "--run", "r1", "--out", here / "ray", "--ray", "local", "--workers", 2, "--json")
    done = values_of(by_ray(here, *asked))
    assert (done["num_files"], done["num_written"], done["num_rows"]) == (8, 8, 510)
    assert tree(here / "ray") == tree(here / "here")
    (here / "ray" / "north.parquet").unlink()
    done = values_of(by_ray(here, *asked))
    assert (done["num_there"], done["num_written"]) == (7, 1)
    assert tree(here / "ray") == tree(here / "here")


CHANGE_A_FILE = """
import os, sys
import curator
from curator.errors import TryAgainError

lake = curator.open_lake("lake")
lake.ingest()
writing = lake.writing
def change_a_file():  # the last thing before the work is handed over
    os.replace("other.parquet", "lake/north.parquet")
    return writing()
lake.writing = change_a_file
try:
    lake.score("r1", "ray", ray="local", workers=1)
except TryAgainError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_what_a_task_of_ray_refuses_is_said_as_by_a_process(here, by_ray):
    write_rows(here / "other.parquet", text=["other"], domain=["north"])
    done = by_ray(here, CHANGE_A_FILE, program=("-c",))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")
    assert "north.parquet has changed since it was listed" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_cluster_that_there_is_not_is_one_sentence(here, by_ray):
    asked = ("score", here / "lake", "--run", "r1", "--out", here / "ray", "--ray")
    assert "there is no Ray cluster at 'auto'" in refusal(by_ray(here, *asked, "auto"), 75)
    assert "is that of a client" in refusal(by_ray(here, *asked, "ray://somewhere:10001"), 2)
    assert not (here / "ray").exists()


def test_scoring_by_ray_says_what_to_install(here):
    if importlib.util.find_spec("ray"):
        pytest.skip("it is installed")
    said = refusal(curator(here, "score", here / "lake", "--run", "r1", "--out", here / "out", "--ray", "local"), 2)
    assert said == "scoring by Ray needs the package 'ray': pip install 'lake-curator[ray]'"
