"""A lake that grows and is refreshed as a scheduler does it, with kills in the middle: one version for each change."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lake_cases import FAST, command, curator, environment, sentences, values_of, write_rows, write_settings
from process_cases import processes_of, wait_until
from s3fs import S3FileSystem

import curator as sdk
from connectors.commit import read_log
from connectors.store import Store
from curator.config import LearnConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "connectors"))

from mortal import KilledError, MortalS3

pytest.importorskip("megatron.core", reason="needs the extra [train]")

LEASE_SECONDS = 0.6
ANY = {
    "verdicts": ["converged", "not converged", "no gain", "unstable"],
    "max_share_change": 1.0,
    "max_drift": 1.0,
    "lease_minutes": LEASE_SECONDS / 60,
}
KILLED_AT = {2: (9, 60, 95), 3: (85, 105, 115)}
"""Of about 120 requests: while it looks, while it takes the lock, while it writes copies and commits."""
REFRESH = ("refresh", "lake", "--target", "target.parquet", "--config", "refresh.toml", "--json")


def write_refresh_settings(path, **learn):
    write_settings(path, **learn)
    with path.open("a") as settings:
        settings.write("[learn.checkpoint]\nevery_minutes = 0.008\n[refresh]\n")
        settings.writelines(f"{name} = {json.dumps(value)}\n" for name, value in ANY.items())


def grow(here, name, language, num_rows):
    write_rows(here / "lake" / f"{name}.parquet", text=sentences(language, num_rows, 5), domain=[language] * num_rows)


def test_a_growing_lake_is_refreshed_and_a_killed_refresh_goes_on(here):
    write_refresh_settings(here / "refresh.toml", steps=40, data_parallel=1)
    process = subprocess.Popen(
        command(*REFRESH), cwd=here, env=environment(here), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: any((here / "lake" / "_curator" / "runs").glob("*/checkpoints/step-*")), 180, process)
    process.kill()
    process.communicate()
    wait_until(lambda: not processes_of(here), 15)
    time.sleep(LEASE_SECONDS)

    first = values_of(curator(here, *REFRESH))
    (run,) = (here / "lake" / "_curator" / "runs").iterdir()  # the run that was killed
    assert (first["outcome"], first["version"], first["run_id"]) == ("published", 1, run.name)
    assert [reason["code"] for reason in first["reasons"]] == ["first"]
    assert Path(first["report"]).exists()

    grow(here, "more", "east", 10)
    second = values_of(curator(here, *REFRESH))
    assert (second["action"], second["version"], second["run_id"]) == ("publish", 2, run.name)
    assert (second["rows_written"], second["rows_read"], second["num_new_rows"]) == (82, 10, 10)

    grow(here, "new", "pqr", 10)
    asked = values_of(
        curator(here, "status", "lake", "--target", "target.parquet", "--config", "refresh.toml", "--json")
    )
    assert (asked["version"], asked["action"], asked["changes"]["files_added"]) == (2, "learn", ["new.parquet"])
    third = values_of(curator(here, *REFRESH))
    assert [reason["code"] for reason in third["reasons"]] == ["new_domain"]
    assert (third["version"], third["run_id"] != run.name, third["weights_changed"]) == (3, True, True)

    assert values_of(curator(here, *REFRESH))["outcome"] == "nothing"
    nothing = curator(here, *REFRESH, "--skip-exit-code")
    assert (nothing.returncode, json.loads(nothing.stdout)["status"]) == (99, "ok")
    history = values_of(curator(here, "history", "lake", "--json"))
    assert [(version["version"], version["num_rows"]) for version in history["versions"]] == [(1, 72), (2, 82), (3, 92)]
    assert values_of(curator(here, "verify", "lake", "--json"))["findings"] == []


@pytest.fixture
def on_s3(s3_place, here, monkeypatch):
    """(address of a lake on the server with a run that was learned here, its filesystem, options)."""
    monkeypatch.setenv("CURATOR_HOME", str(here / "home"))
    fs = S3FileSystem(**s3_place.options, use_listings_cache=False)
    for path in sorted((here / "lake").glob("*.parquet")):
        fs.put_file(str(path), f"{s3_place.url}/lake/{path.name}")
    return f"{s3_place.url}/lake", fs, s3_place.options


def refresh_on_s3(here, url, options, k=None, *, after=False):
    """A refresh whose client is gone at its `k`-th request to the destination, before or after the server did it."""
    with sdk.open_lake(url, text="text", domain="domain", storage_options=options) as lake:
        if k is not None:
            doomed = MortalS3(k, after, **options, use_listings_cache=False)
            place = lake.destination
            lake.destination = lake.connector.data = Store(place.url, place.path, doomed)
        return lake.refresh(str(here / "target.parquet"), learn=LearnConfig(**FAST), **ANY)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the lock's thread dies, too
def test_a_growing_lake_on_s3_gets_one_version_for_each_change_whoever_dies(on_s3, here):
    url, fs, options = on_s3
    first = refresh_on_s3(here, url, options)
    assert (first.outcome, first.action, first.version) == ("published", "learn", 1)
    for version, language in ((2, "east"), (3, "south")):
        grow(here, f"more-{version}", language, 10)
        fs.put_file(str(here / "lake" / f"more-{version}.parquet"), f"{url}/more-{version}.parquet")
        num_killed = 0
        for k in KILLED_AT[version]:
            try:
                refresh_on_s3(here, url, options, k, after=version == 3)
            except KilledError:
                num_killed += 1
                time.sleep(1.2 * LEASE_SECONDS)
        assert num_killed >= 2
        done = refresh_on_s3(here, url, options)
        assert done.outcome in ("published", "nothing")
        with sdk.open_lake(url, storage_options=options) as lake:
            assert [each.number for each in read_log(lake.destination)] == list(range(1, version + 1))
            assert {each.run_id for each in lake.history()} == {first.run_id}
            total = 72 + 10 * (version - 1)
            assert lake.sql("SELECT count(*), count(sample_weight) FROM samples").fetchall() == [(total, total)]
            assert lake.verify().findings == ()
    assert refresh_on_s3(here, url, options).outcome == "nothing"
