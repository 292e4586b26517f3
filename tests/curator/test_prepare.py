"""What comes before the workers: rows that also stand in the target, and the orders of a run."""

import json

import pyarrow as pa
import pytest
from lake_cases import FAST, curator, sentences, values_of, write_lake, write_rows, write_settings, write_target

import curator as sdk
from curator.begun import Begun
from curator.config import TargetConfig
from curator.errors import ConfigError, InputError
from curator.tokens import TokenCache

pytest.importorskip("megatron.core", reason="needs the extra [train]")

BESIDE = " ".join(f"padding{i}" for i in range(40))


@pytest.fixture
def planted(tmp_path):
    """A lake with a domain of 24 rows of which 3 stand in the target: one word for word, one in capitals, one inside
    a longer row; and one row that quotes less than half of a row of the target."""
    write_lake(tmp_path / "lake")
    write_target(tmp_path / "target.parquet")
    first, second, third, *_ = sentences("north", 1020)[1000:]
    long = " ".join(sentences("north", 1100)[1050:1055])
    write_rows(tmp_path / "target.parquet", text=[*sentences("north", 1020)[1000:], long])
    texts = [first, second.upper(), f"{BESIDE} {third}", f"{long[: len(long) // 3]} {BESIDE}"]
    texts += sentences("pqr", 20)
    write_rows(
        tmp_path / "lake" / "west.parquet", text=texts, domain=["west"] * 24, score=pa.array([0.0] * 24, pa.float32())
    )
    return tmp_path


def prepared(here, leaks="exclude", run="run", **settings):
    """The orders of a run, and what was told meanwhile."""
    told = []
    with sdk.open_lake(str(here / "lake"), **settings) as lake:
        goal = TargetConfig(url=str(here / "target.parquet"), leaks=leaks)
        folder = lake.prepare(goal, run_dir=here / run, on_progress=told.append, **FAST)
    return Begun.read(folder), told


def texts_of(cache):
    """How many rows of each domain are in a cache."""
    return {name: int((cache.domain == d).sum()) for d, name in enumerate(cache.domains)}


def test_rows_of_the_target_are_told_and_left_out(planted):
    begun, told = prepared(planted)
    leaks = begun.leaks
    assert (leaks.num_rows, leaks.num_exact, leaks.num_near, leaks.num_overlapping) == (96, 2, 1, 1)
    assert leaks.by_domain == {"west": 3}
    with sdk.open_lake(str(planted / "lake")) as lake:
        ids = lake.sql("SELECT sample_id, text FROM samples WHERE domain = 'west'").fetchall()
    by_id = dict(ids)
    assert len(leaks.examples) == 3
    assert {by_id[sample_id] for sample_id in leaks.examples} == {
        text for text in by_id.values() if text.startswith(BESIDE) or text.isupper() or text in sentences("north", 1001)
    }
    corpus = TokenCache.open(begun.job.corpus)
    assert texts_of(corpus) == {"east": 24, "north": 24, "south": 24, "west": 21}
    assert not {*leaks.examples} & {*corpus.sample_ids().to_pylist()}
    line = "3 rows of the lake (3.12%) also stand in the target: 2 word for word, 1 nearly (west 3); left out"
    assert [state.detail for state in told if state.stage == "leaks"] == [f"rows: {line}"]
    assert [state.stage for state in told][-1] == "leaks"


def test_rows_of_the_target_are_kept_on_request_and_still_told(planted):
    begun, told = prepared(planted, leaks="keep")
    assert texts_of(TokenCache.open(begun.job.corpus))["west"] == 24
    assert (begun.leaks.num_leaks, begun.leaks.kept) == (3, True)
    assert told[-1].detail.endswith("(west 3); kept")


def test_a_second_run_tells_the_same_from_the_cache(planted):
    first, _ = prepared(planted)
    second, told = prepared(planted, run="again")
    assert second.job.corpus == first.job.corpus
    assert second.leaks == first.leaks
    assert [state.stage for state in told if state.stage in ("tokenize", "leaks")] == ["leaks"]


def test_a_lake_without_the_target_says_so(tmp_path):
    write_lake(tmp_path / "lake")
    write_target(tmp_path / "target.parquet")
    begun, told = prepared(tmp_path)
    assert (begun.leaks.num_rows, begun.leaks.num_leaks, begun.leaks.num_overlapping) == (72, 0, 0)
    assert told[-1].detail == "rows: no row of the lake stands in the target"


@pytest.mark.parametrize("domains", [("north",), ("north", "south", "east")], ids=["a domain", "the lake"])
def test_a_domain_that_is_the_target_is_refused(tmp_path, domains):
    write_lake(tmp_path / "lake")
    write_rows(tmp_path / "target.parquet", text=[text for name in domains for text in sentences(name, 24)])
    with pytest.raises(InputError) as caught:
        prepared(tmp_path)
    assert str(caught.value) == (
        f"domain '{min(domains)}' of {tmp_path / 'lake'} has 0 rows beside the 24 that also stand in the target "
        f"{tmp_path / 'target.parquet'}, fewer than min_domain_rows=8; take the target's rows from elsewhere, or set "
        'target.leaks = "keep"'
    )
    begun, _ = prepared(tmp_path, leaks="keep", run="kept")
    assert begun.leaks.share == len(domains) / 3


def test_leaks_are_in_the_output_the_record_and_sql(planted):
    write_settings(planted / "fast.toml", data_parallel=1)
    arguments = ("learn", "lake", "--target", "target.parquet", "--config", "fast.toml")
    process = curator(planted, *arguments, "--json")
    values = values_of(process)
    assert values["leaks"] | {"examples": 3} == {
        "num_rows": 96,
        "num_exact": 2,
        "num_near": 1,
        "num_overlapping": 1,
        "by_domain": {"west": 3},
        "examples": 3,
        "kept": False,
        "num_leaks": 3,
        "share": 3 / 96,
    }
    said = "3 rows of the lake (3.12%) also stand in the target: 2 word for word, 1 nearly (west 3); left out"
    lines = process.stderr.splitlines()
    assert lines.index(f"leaks 96/96 rows: {said}") < min(i for i, line in enumerate(lines) if line.startswith("learn"))
    with sdk.open_lake(str(planted / "lake")) as lake:
        run = lake.run("latest")
        assert str(run.leaks) == said
        assert lake.sql("SELECT num_leaks, leak_share FROM runs").fetchall() == [(3, 3 / 96)]
        samples = run.samples()
    assert not {*run.leaks.examples} & {*samples["sample_id"].to_pylist()}


def test_a_run_record_of_before_the_guard_is_still_read(learned):
    (path,) = learned.state.glob("runs/*/run.json")
    record = json.loads(path.read_text())
    del record["leaks"]
    path.write_text(json.dumps(record))
    with sdk.open_lake(str(learned.lake)) as lake:
        assert lake.run("latest").leaks is None
        assert lake.sql("SELECT num_leaks, leak_share FROM runs").fetchall() == [(None, None)]


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (99, "a newer")])
def test_orders_of_another_version_are_refused_in_a_sentence(planted, version, age):
    begun, _ = prepared(planted)
    path = begun.folder / "job.json"
    values = json.loads(path.read_text()) | {"schema_version": version}
    del values["leaks"]
    path.write_text(json.dumps(values))
    with sdk.open_lake(str(planted / "lake")) as lake, pytest.raises(ConfigError) as caught:
        lake.resume(begun.folder)
    assert str(caught.value) == (
        f"{path} was written by {age} Lake Curator (schema_version {version}, this one reads 2); end the run with that "
        "one, or learn anew"
    )


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": "two"}', "\udcff", '{"schema_version": 2, "job": 3}'],
)
def test_damaged_orders_are_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "job.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"job\.json is damaged \(.*\); learn anew"):
        Begun.read(tmp_path)


def test_a_folder_without_orders_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="holds no run that was begun"):
        Begun.read(tmp_path)


@pytest.mark.parametrize("victim", ["leaks.json", "corpus/tokens.npy", "corpus/start.npy", "target/meta.json"])
def test_a_damaged_token_cache_is_made_again(planted, victim):
    before, _ = prepared(planted)
    path = before.job.corpus.parent / victim
    path.write_bytes(path.read_bytes()[:20])
    after, _ = prepared(planted, run="again")
    assert after.job.corpus == before.job.corpus
    assert after.leaks == before.leaks
    assert texts_of(TokenCache.open(after.job.corpus)) == {"east": 24, "north": 24, "south": 24, "west": 21}


def test_a_share_that_leaves_no_target_rows_to_learn_from_is_refused(planted):
    judged = {"places": [1.0], "validation_share": 0.99}
    with sdk.open_lake(str(planted / "lake")) as lake, pytest.raises(ConfigError) as caught:
        lake.learn(str(planted / "target.parquet"), **FAST | {"line_search": judged})
    assert str(caught.value).startswith("learn.line_search.validation_share=0.99 leaves 0 of the 21 distinct rows of ")


@pytest.fixture
def prior_of(tmp_path):
    """The shares that a run with this prior would begin at, in the order of the domains."""
    target = str(write_target(tmp_path / "target.parquet"))
    lake = write_lake(tmp_path / "lake")

    def found(prior, name="run"):
        with sdk.open_lake(str(lake)) as opened:
            folder = opened.prepare(target, run_dir=tmp_path / name, **FAST | {"weights": {"prior": str(prior)}})
        return Begun.read(folder).job.prior

    return found


def test_a_run_begins_at_the_mixture_of_a_file(prior_of, tmp_path):
    (tmp_path / "ours.json").write_text('{"north": 3, "south": 1, "east": 1}')
    assert prior_of(tmp_path / "ours.json") == pytest.approx([0.2, 0.6, 0.2])
    (tmp_path / "blend.txt").write_text("0.5 data/north_text_document 0.25 data/south 0.25 data/east")
    assert prior_of(tmp_path / "blend.txt", "again") == pytest.approx([0.25, 0.5, 0.25])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '{"north": 1, "south": 1}', "gives domain 'east' no weight"),
        ("a.json", '{"north": 1, "soth": 1, "east": 1}', "did you mean 'south'"),
        ("a.csv", "index,train_north,train_south,train_east\n1,1,1,1\n2,1,2,3\n", "holds 2 mixtures"),
        ("gone.json", None, "cannot be read: No such file"),
        ("a.xml", "", r"it must be uniform, natural or a file of a mixture \(\.json"),
    ],
)
def test_a_file_that_is_no_prior_is_refused(prior_of, tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        prior_of(tmp_path / name)
