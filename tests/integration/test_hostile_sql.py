"""`curator sql` with queries of somebody else: they see the lake, and nothing beyond it can be read, written or set."""

from __future__ import annotations

import uuid

import pytest
from lake_cases import FAST, refusal, tree, values_of, write_lake, write_rows, write_target
from lake_cases import curator as curator_command
from s3fs import S3FileSystem

import curator
from curator.errors import CuratorError, UsageError

ODD = "a [1]*? #%é ' \".parquet"

READS = [
    "SELECT * FROM read_csv('{outside}')",
    "SELECT * FROM '{outside}'",
    "SELECT * FROM read_text('{outside}')",
    "SELECT * FROM read_blob('{outside}')",
    "SELECT * FROM read_text('{lake}/../secret.csv')",
    "SELECT * FROM read_text('{lake}/_curator/../../secret.csv')",
    "SELECT * FROM read_parquet('{lake}/../other.parquet')",
    "SELECT * FROM read_parquet(['{lake}/*.parquet', '{lake}/../*.parquet'])",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('{outside}')",
    "SELECT * FROM read_parquet('https://example.com/x.parquet')",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM query('SELECT * FROM read_text(''{outside}'')')",
    "WITH x AS (FROM read_csv('{outside}')) SELECT * FROM x",
    "SELECT (SELECT content FROM read_text('{outside}'))",
    "SELECT getenv('HOME')",
    "SELECT * FROM secret",
]
STATEMENTS = [
    ("COPY (SELECT 1) TO '{lake}/north.parquet'", "copy"),
    ("COPY samples TO '{outside}'", "copy"),
    ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{lake}/north.parquet'", "explain"),
    ("SELECT 1; DROP TABLE files", "select and drop"),
    ("ATTACH '{outside}.db'", "attach"),
    ("SET enable_external_access = true", "set"),
    ("RESET lock_configuration", "set"),
    ("INSTALL httpfs", "load"),
    ("LOAD httpfs", "load"),
    ("EXPORT DATABASE '{outside}'", "export"),
    ("CREATE TEMP TABLE x AS SELECT 1", "create"),
    ("DROP VIEW samples", "drop"),
    ("DELETE FROM sample_index", "delete"),
    ("PRAGMA database_list", "pragma"),
    ("CHECKPOINT", "call"),
    ("", "nothing"),
    (" -- nothing at all", "nothing"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A published lake, one of its files with a name of wildcards and quotes, and files beside it that are not its."""
    folder = tmp_path_factory.mktemp("hostile")
    write_lake(folder / "lake")
    (folder / "lake" / "north.parquet").rename(folder / "lake" / ODD)
    write_target(folder / "target.parquet")
    write_rows(folder / "other.parquet", a=[1])
    (folder / "secret.csv").write_text("a\nsecret\n")
    with curator.open_lake(str(folder / "lake")) as lake:
        lake.publish(lake.learn(str(folder / "target.parquet"), **FAST | {"method": "dsir"}))
    return folder


@pytest.fixture
def lake(place):
    with curator.open_lake(str(place / "lake")) as opened:
        yield opened


def spelled(query, place):
    return query.format(lake=place / "lake", outside=place / "secret.csv")


def test_a_query_sees_the_lake_its_weights_and_its_runs(lake):
    def ask(query):
        return lake.fetch(query, confined=True)[1]

    assert ask("SELECT count(*), count(sample_weight), count(text) FROM samples") == [(72, 72, 72)]
    assert ask("SELECT count(*) FROM domain_weights") == [(3,)]
    assert ask("FROM (SUMMARIZE runs) SELECT count(*) > 0") == [(True,)]
    assert ask("SELECT count(*) FROM versions") == [(1,)]
    assert ask("DESCRIBE samples")
    assert lake.fetch("SELECT count(*) FROM samples", confined=True, version=1)[1] == [(72,)]


@pytest.mark.parametrize("query", READS)
def test_nothing_beyond_the_lake_can_be_read(lake, place, query):
    secret = [1]  # noqa: F841 - what DuckDB would find by its name
    with pytest.raises(UsageError):
        lake.fetch(spelled(query, place), confined=True)


@pytest.mark.parametrize(("statement", "kind"), STATEMENTS)
def test_only_one_query_is_run_and_nothing_changes(lake, place, statement, kind):
    before = tree(place)
    with pytest.raises(CuratorError) as caught:
        lake.fetch(spelled(statement, place), confined=True)
    assert f"this is {kind}" in str(caught.value) or kind == "load"
    assert caught.value.exit_code == 2
    assert tree(place) == before


def test_the_lake_can_be_used_after_it_was_confined(lake, place):
    lake.fetch("SELECT 1", confined=True)
    lake.ingest()
    assert lake.sql(f"SELECT count(*) FROM read_csv('{place / 'secret.csv'}')").fetchall() == [(1,)]


def test_the_command_is_confined(place):
    asked = ["sql", place / "lake"]
    assert values_of(curator_command(place, *asked, "SELECT count(*) AS n FROM samples", "--json"))["rows"] == [[72]]
    said = refusal(curator_command(place, *asked, f"SELECT * FROM '{place / 'secret.csv'}'"), 2)
    assert "secret.csv" in said
    assert "only one query can be asked" in refusal(curator_command(place, *asked, "CHECKPOINT"), 2)


@pytest.mark.parametrize("query", READS)
def test_a_file_is_written_of_the_lake_alone(place, lake, query):
    secret = [1]  # noqa: F841 - what DuckDB would find by its name
    before = tree(place)
    with pytest.raises(UsageError):
        lake.save(spelled(query, place), place / "stolen.csv", confined=True)
    assert tree(place) == before


def test_a_statement_writes_no_file_and_the_named_file_is_not_for_the_query_to_read(place, lake):
    out = place / "answer.csv"
    for statement, _ in STATEMENTS:
        with pytest.raises(CuratorError):
            lake.save(spelled(statement, place), out, confined=True)
        assert not out.exists()
    try:
        lake.save("SELECT count(*) AS n FROM samples", out, confined=True)
        with pytest.raises(UsageError):
            lake.save(f"SELECT * FROM '{out}'", place / "more.csv", confined=True)
    finally:
        out.unlink(missing_ok=True)


BUCKET_READS = [
    "SELECT * FROM read_text('{base}/secret.csv')",
    "SELECT * FROM read_text('{base}/lake/notes.csv')",
    "SELECT * FROM read_text('{base}/lake2/x.csv')",
    "SELECT * FROM read_parquet('{base}/other.parquet')",
    "SELECT * FROM read_parquet('{base}/lake*/*.parquet')",
    "SELECT * FROM '{base}/other.parquet'",
    "SELECT * FROM glob('{base}/*')",
    "SELECT * FROM read_text('{home}/own.csv')",
    "SELECT * FROM read_text('/etc/passwd')",
]
KEYS = [
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_settings()",
    "SELECT sql FROM duckdb_views()",
]


@pytest.fixture(scope="module")
def bucket(s3_server, tmp_path_factory):
    """(folder of a published lake in a bucket, options, folder here); beside the lake lie keys that are not its."""
    base, home = f"s3://lake/{uuid.uuid4().hex}", tmp_path_factory.mktemp("home")
    fs = S3FileSystem(**s3_server.options)
    for path in write_lake(home / "lake").glob("*.parquet"):
        fs.put_file(str(path), f"{base}/lake/{path.name}")
        fs.put_file(str(path), f"{base}/lake2/{path.name}")
    fs.put_file(str(write_target(home / "target.parquet")), f"{base}/other.parquet")
    for name in ("secret.csv", "lake/notes.csv", "lake2/x.csv"):
        fs.pipe_file(f"{base}/{name}", b"a\nsecret\n")
    (home / "own.csv").write_text("a\nsecret\n")
    with curator.open_lake(f"{base}/lake", storage_options=s3_server.options) as lake:
        lake.publish(lake.learn(str(home / "target.parquet"), **FAST | {"method": "dsir"}))
    return base, s3_server.options, home


@pytest.fixture(scope="module")
def lake_in_bucket(bucket):
    base, options, _ = bucket
    with curator.open_lake(f"{base}/lake", storage_options=options) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
@pytest.mark.parametrize("query", BUCKET_READS)
def test_nothing_beyond_a_lake_in_a_bucket_can_be_read(lake_in_bucket, bucket, query, scheme):
    base, _, home = bucket
    with pytest.raises(UsageError):
        lake_in_bucket.fetch(query.format(base=f"{scheme}{base.removeprefix('s3')}", home=home), confined=True)


@pytest.mark.parametrize("query", KEYS)
def test_the_keys_of_a_bucket_are_not_told(lake_in_bucket, bucket, query):
    try:
        told = str(lake_in_bucket.fetch(query, confined=True))
    except UsageError as error:
        told = str(error)
    assert bucket[1]["secret"] not in told
    assert bucket[1]["key"] not in told


def test_a_lake_in_a_bucket_is_seen_after_all_that(lake_in_bucket):
    query = "SELECT count(*), count(sample_weight), count(text) FROM samples"
    assert lake_in_bucket.fetch(query, confined=True)[1] == [(72, 72, 72)]
