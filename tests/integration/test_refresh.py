"""A lake that grows and is refreshed as a scheduler does it, with kills in the middle: one version for each change."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lake_cases import FAST, command, curator, environment, sentences, values_of, write_rows, write_settings
from process_cases import outcome, processes_of, wait_until
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


def write_refresh_settings(path, lease_seconds=LEASE_SECONDS, **learn):
    write_settings(path, **learn)
    with path.open("a") as settings:
        settings.write("[learn.checkpoint]\nevery_minutes = 0.008\n[refresh]\n")
        values = ANY | {"lease_minutes": lease_seconds / 60}
        settings.writelines(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


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
    learning = curator(here, *REFRESH, "--quiet")
    third = values_of(learning)
    assert learning.stderr == ""
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


class Scheduled:
    """A lake on this machine or on the S3 server, and `curator refresh` of it as processes; each home is a machine."""

    def __init__(self, here, place):
        self.here, self.url, self.options = here, place.url, place.options or {}
        self.exported = {}
        if self.options:
            self.fs = S3FileSystem(**self.options, use_listings_cache=False)
            self.exported = {
                "AWS_ACCESS_KEY_ID": self.options["key"],
                "AWS_SECRET_ACCESS_KEY": self.options["secret"],
                "AWS_ENDPOINT_URL": self.options["endpoint_url"],
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            for path in (here / "lake").glob("*.parquet"):
                self.put(path)

    def put(self, path):
        if self.options:
            self.fs.put_file(str(path), f"{self.url}/{path.name}")

    def grow(self, name, language, num_rows, num_files=1):
        for i in range(num_files):
            texts = sentences(language, num_rows * num_files, 5)[i * num_rows : (i + 1) * num_rows]
            domain = [language] * num_rows
            self.put(write_rows(self.here / "lake" / f"{name}-{i}.parquet", text=texts, domain=domain))

    def start(self, home="home"):
        (self.here / home).mkdir(exist_ok=True)
        call = ("refresh", self.url, *REFRESH[2:])
        return subprocess.Popen(
            command(*call),
            cwd=self.here,
            env=environment(self.here / home, **self.exported),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def refresh(self):
        return values_of(outcome(self.start(), 280))

    def open(self):
        return sdk.open_lake(self.url, text="text", domain="domain", storage_options=self.options)

    def check(self, num_versions, num_rows):
        """So many versions, numbered without a gap, the newest of which weighs every row."""
        with self.open() as lake:
            lake.ingest()
            assert [version.number for version in read_log(lake.destination)] == list(range(1, num_versions + 1))
            query = "SELECT count(*), count(sample_weight) FROM samples"
            assert lake.sql(query).fetchall() == [(num_rows, num_rows)]
            assert lake.verify().findings == ()
            return lake.history()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def scheduled(request, here, monkeypatch):
    monkeypatch.setenv("CURATOR_HOME", str(here / "ours"))
    place = (
        request.getfixturevalue("s3_place")
        if request.param == "s3"
        else SimpleNamespace(url=str(here / "lake"), options=None)
    )
    return Scheduled(here, place)


def test_of_two_processes_one_makes_the_version_and_the_other_is_told_so(scheduled):
    """Both learn, then both publish: on S3 two machines, here one with one work folder."""
    write_refresh_settings(scheduled.here / "refresh.toml", lease_seconds=60, steps=20, data_parallel=1)
    homes = ("home", "home") if scheduled.url.startswith("/") else ("home", "other")
    for version in (1, 2):
        if version == 2:
            scheduled.grow("more", "east", 10)
        ended = [outcome(process, 280) for process in [scheduled.start(home) for home in homes]]
        codes = sorted(process.returncode for process in ended)
        assert codes in ([0, 75], [0, 0]), [process.stderr for process in ended]
        values = [json.loads(process.stdout.splitlines()[-1]) for process in ended if process.returncode == 0]
        assert [each["outcome"] for each in values].count("published") == 1
        assert {each["version"] for each in values} == {version}
        for process in ended:
            if process.returncode == 75:
                error = json.loads(process.stdout.splitlines()[-1])["error"]
                assert error["code"] == "try_again", error
        history = scheduled.check(version, 72 + 10 * (version - 1))
        assert len({each.run_id for each in history}) == 1  # nobody learned beside the other
        with scheduled.open() as lake:
            assert len(lake.runs()) == 1


@pytest.mark.parametrize("killed_while", ["publishing", pytest.param("learning", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_on_s3_is_gone_on_with(s3_place, here, monkeypatch, killed_while):
    """SIGKILL, not an exception: no `finally` runs, the lock is not given back, workers are left without a parent."""
    monkeypatch.setenv("CURATOR_HOME", str(here / "ours"))
    lake = Scheduled(here, s3_place)
    write_refresh_settings(here / "refresh.toml", lease_seconds=2, steps=40, data_parallel=1)
    if killed_while == "learning":
        process = lake.start()
        wait_until(lambda: any((here / "home").rglob("checkpoints/step-*")), 180, process)
        kill(process, here)
        assert list((here / "home").rglob("trajectory.jsonl"))
        with lake.open() as found:
            assert (found.history(), found.runs()) == ([], [])
    first = lake.refresh()
    assert (first["outcome"], first["action"], first["version"]) == ("published", "learn", 1)
    assert len(list((here / "home").rglob("trajectory.jsonl"))) == 1  # of the run that was killed, if it was

    lake.grow("more", "east", 1, num_files=24)
    if killed_while == "publishing":
        data = f"{s3_place.url}/_curator/data"
        before = len(lake.fs.find(data))
        process = lake.start()
        wait_until(lambda: len(lake.fs.find(data)) > before, 180, process)
        kill(process, here)
        staged = len(lake.fs.find(data)) - before
        assert 0 < staged < 27
        with lake.open() as found:
            assert [version.number for version in read_log(found.destination)] == [1]
    second = lake.refresh()
    assert (second["outcome"], second["action"], second["version"]) == ("published", "publish", 2)
    lake.check(2, 96)

    lake.grow("south", "south", 12)
    third = lake.refresh()
    assert (third["version"], third["run_id"], third["num_new_rows"]) == (3, first["run_id"], 36)
    assert lake.refresh()["outcome"] == "nothing"
    lake.check(3, 108)


def kill(process, here):
    """SIGKILL, and wait until its workers have noticed and its lock has lapsed."""
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not processes_of(here), 30)
    time.sleep(2.4)
