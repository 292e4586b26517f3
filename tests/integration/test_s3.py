"""The same on object storage: a real S3 server, credentials by the environment and by storage_options."""

import os
import uuid
from pathlib import Path

import pytest
from lake_cases import FAST, LANGUAGES, curator, refusal, tree, values_of
from s3fs import S3FileSystem

import curator as sdk

pytest.importorskip("megatron.core", reason="needs the extra [train]")


@pytest.fixture
def bucket(s3_place, here):
    """(address of a lake on the server, its filesystem, what a shell would export)."""
    fs = S3FileSystem(**s3_place.options, use_listings_cache=False)
    for path in sorted((here / "lake").glob("*.parquet")):
        fs.put_file(str(path), f"{s3_place.url}/lake/{path.name}")
    fs.put_file(str(here / "target.parquet"), f"{s3_place.url}/target.parquet")
    return s3_place.url, fs, s3_place.options


def exported(options, style):
    if style == "AWS":
        return {
            "AWS_ACCESS_KEY_ID": options["key"],
            "AWS_SECRET_ACCESS_KEY": options["secret"],
            "AWS_ENDPOINT_URL": options["endpoint_url"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    return {
        "FSSPEC_S3_KEY": options["key"],
        "FSSPEC_S3_SECRET": options["secret"],
        "FSSPEC_S3_ENDPOINT_URL": options["endpoint_url"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def objects(fs, url):
    return {path: fs.cat_file(path) for path in fs.find(url)}


def check_no_secret(options, *places):
    """Neither the key nor the secret is in any of these texts, folders or objects."""
    for place in places:
        if isinstance(place, Path):
            contents = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
        else:
            contents = list(place.values()) if isinstance(place, dict) else [place.encode()]
        for secret in (options["secret"].encode(), options["key"].encode()):
            assert not any(secret in content for content in contents)


def test_the_whole_path_with_credentials_of_the_environment(bucket, here):
    url, fs, options = bucket
    variables = exported(options, "AWS")
    before = objects(fs, url)
    lake = f"{url}/lake"
    processes = []

    def call(*arguments):
        processes.append(curator(here, *arguments, "--json", **variables))
        return values_of(processes[-1])

    ingested = call("ingest", lake)
    assert (ingested["num_rows"], ingested["domains"]) == (72, dict.fromkeys(LANGUAGES, 24))
    learned = call("learn", lake, "--target", f"{url}/target.parquet", "--config", "fast.toml")
    assert max(learned["domain_weights"], key=learned["domain_weights"].get) == "north"
    assert Path(learned["run_dir"]).is_relative_to(here / "curator-home")
    dry = call("publish", lake, "--run", learned["run_id"], "--dry-run")
    assert not fs.find(f"{lake}/_curator/data")
    published = call("publish", lake, "--run", learned["run_id"])
    assert published["location"] == dry["location"]
    assert published["location"].startswith(f"{lake}/_curator/data/")
    assert (published["version"], published["created"], published["num_unweighted"]) == (1, True, 0)
    assert call("publish", lake)["created"] is False
    rows = call("sql", lake, "SELECT count(sample_weight), avg(sample_weight) FROM samples")["rows"]
    assert rows[0] == [72, pytest.approx(1, abs=1e-5)]
    # another machine: nothing but the address and the credentials
    elsewhere = {**variables, "CURATOR_HOME": str(here / "other-home")}
    history = values_of(curator(here, "history", lake, "--json", **elsewhere))
    assert [run["run_id"] for run in history["runs"]] == [learned["run_id"]]
    assert [version["version"] for version in history["versions"]] == [1]

    after = objects(fs, url)
    assert {path: data for path, data in after.items() if "/_curator/" not in path} == before
    check_no_secret(options, *(p.stdout + p.stderr for p in processes), here / "curator-home", after)


def test_the_whole_path_with_storage_options(bucket, here, monkeypatch):
    url, fs, options = bucket
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CURATOR_HOME", str(here / "home"))
    where = {"text": "text", "domain": "domain", "storage_options": options, "destination": f"{url}/curated"}
    with sdk.open_lake(f"{url}/lake/*.parquet", **where) as lake:
        run = lake.learn(f"{url}/target.parquet", **FAST)
        publication = lake.publish(run)
        assert publication.location.startswith(f"{url}/curated/data/")
        frame = lake.scan().collect()
        assert len(frame) == 72
        assert frame["sample_weight"].mean() == pytest.approx(1, abs=1e-5)
        weighted = dict(lake.sql("SELECT domain, any_value(domain_weight) FROM samples GROUP BY 1").fetchall())
        assert weighted == pytest.approx(
            {row["domain"]: row["domain_weight"] for row in run.record["domains"]}, rel=1e-6
        )
        then = dict(lake.sql("SELECT domain, any_value(domain_weight) FROM samples GROUP BY 1", version=1).fetchall())
        assert then == weighted
        assert len(lake.scan(as_of="2100-01-01").collect()) == 72
        assert lake.verify(deep=True).findings == ()
        assert lake.rollback(1).created is False
        fs.pipe_file(f"{url}/curated/data/{run.run_id}-{'0' * 12}/left.parquet", b"12345")
        assert [item.size_bytes for item in lake.gc("0s").items] == [5]
        views = lake.write_views(here / "views.duckdb")
        beside = lake.publish(run, mode="sidecar")
        assert (beside.version, beside.size_bytes < publication.size_bytes) == (2, True)
        assert lake.scan().collect().sort("text").equals(frame.sort("text"))
        query = "SELECT sample_id, text, sample_weight FROM samples ORDER BY ALL"
        assert lake.sql(query, version=2).fetchall() == lake.sql(query).fetchall()
        assert lake.verify().findings == ()
        shown = repr(lake) + repr(lake.config) + repr(run) + repr(lake.corpus) + repr(publication)
    assert views.exists()
    views.rename(here / "home" / views.name)
    check_no_secret(options, shown, here / "home", objects(fs, url))


def test_credentials_in_the_variables_of_fsspec(bucket, here):
    url, fs, options = bucket
    process = curator(here, "ingest", f"{url}/lake", "--json", **exported(options, "FSSPEC"))
    assert values_of(process)["num_rows"] == 72
    check_no_secret(options, process.stdout + process.stderr, here, objects(fs, url))


def test_storage_options_in_the_settings_file(bucket, here):
    url, fs, options = bucket
    (here / "s3.toml").write_text(
        f'[lake]\nurl = "{url}/lake"\n[lake.storage_options]\n'
        f'key = "{options["key"]}"\nsecret = "{options["secret"]}"\n'
        f'endpoint_url = "{options["endpoint_url"]}"\n'
    )
    process = curator(here, "ingest", "--config", "s3.toml", "--json", AWS_DEFAULT_REGION="us-east-1")
    assert values_of(process)["num_rows"] == 72
    (here / "s3.toml").unlink()
    check_no_secret(options, process.stdout + process.stderr, here, objects(fs, url))


def test_wrong_credentials_are_refused_without_being_shown(bucket, here):
    url, _, options = bucket
    wrong = {**exported(options, "AWS"), "AWS_SECRET_ACCESS_KEY": "another-secret-value"}
    process = curator(here, "ingest", f"{url}/lake", **wrong)
    message = refusal(process, 1)
    assert f"{url}/lake" in message
    assert "set the credentials" in message
    assert "another-secret-value" not in process.stderr
    check_no_secret(options, process.stderr)


def test_a_bucket_or_folder_that_is_not_there(bucket, here):
    url, _, options = bucket
    variables = exported(options, "AWS")
    message = refusal(curator(here, "ingest", f"{url}/lakes", **variables), 2)
    assert (
        message
        == f"there is nothing at {url}/lakes; names starting with '_' or '.' are passed over: give a folder of Parquet "
        "files"
    )
    missing = f"s3://no-such-{uuid.uuid4().hex}"
    assert missing in refusal(curator(here, "ingest", f"{missing}/lake", **variables), 2)
    arguments = ["lake", "--target", "target.parquet", "--destination", f"{missing}/curated", "--steps", 10**6]
    before = tree(here)
    message = refusal(curator(here, "learn", *arguments, **variables), 2)
    assert message == f"cannot list {missing}/curated/runs: it does not exist; check the address"
    assert {p: d for p, d in tree(here).items() if not p.startswith("curator-home")} == before


@pytest.mark.slow
def test_a_server_that_does_not_answer(here):
    variables = exported({"key": "k" * 8, "secret": "s" * 8, "endpoint_url": "http://127.0.0.1:9"}, "AWS")
    message = refusal(curator(here, "ingest", "s3://bucket/lake", **variables), 1)
    assert "s3://bucket/lake" in message
    assert "try again, or check the endpoint and network" in message
