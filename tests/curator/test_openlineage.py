"""Lineage events as OpenLineage's own client sends them: to a file, over HTTP, and to a server that is not there."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from lake_cases import FAST, sentences, values_of, write_rows
from lake_cases import curator as command

import curator
from curator.errors import InputError
from curator.integrations.openlineage import Dataset

pytest.importorskip("openlineage.client", reason="needs the extra [openlineage]")


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What has been written by the client's transport to a file, read anew at every call."""
    place = tmp_path / "events.jsonl"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(place))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    return lambda: [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def names(datasets):
    return [(each["namespace"], each["name"]) for each in datasets]


def brief(events):
    return [(event["job"]["name"], event["eventType"]) for event in events]


def test_publishing_and_refreshing_are_told_with_what_they_read_and_made(learned, told):
    with curator.open_lake(str(learned.lake)) as lake:
        made = lake.publish(learned.run_id)
        settings = {"max_share_change": 1.0, "verdicts": ["converged", "not converged", "no gain", "unstable"]}
        write_rows(learned.lake / "more.parquet", text=sentences("north", 30)[24:], domain=["north"] * 6)
        done = lake.refresh(str(learned.target), learn=curator.LearnConfig(**FAST), **settings)
        assert done.outcome == "published"
        lake.refresh(str(learned.target), learn=curator.LearnConfig(**FAST), dry_run=True, **settings)
    events = told()
    assert brief(events) == [
        ("publish lake", "START"),
        ("publish lake", "COMPLETE"),
        ("refresh lake", "START"),
        ("refresh lake", "COMPLETE"),
    ]
    start, complete, _, refreshed = events
    assert start["run"]["runId"] == complete["run"]["runId"] != refreshed["run"]["runId"]
    assert start["outputs"] == []
    assert names(complete["inputs"])[0] == ("file", str(learned.lake))
    assert complete["inputs"][0]["facets"]["version"]["datasetVersion"] == made.snapshot_id
    assert names(complete["outputs"]) == [("file", made.location)]
    assert complete["outputs"][0]["facets"]["version"]["datasetVersion"] == "1"
    assert complete["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 72
    assert names(refreshed["inputs"]) == [("file", str(learned.lake)), ("file", str(learned.target))]
    assert refreshed["outputs"][0]["facets"]["version"]["datasetVersion"] == "2"


def test_a_failure_is_told_with_its_sentence_and_raised(learned, told):
    with curator.open_lake(str(learned.lake)) as lake, pytest.raises(InputError, match="has no column 'txt'"):
        lake.learn(str(learned.target), target_text="txt", **FAST)
    start, failed = told()
    assert brief([start, failed]) == [("learn lake", "START"), ("learn lake", "FAIL")]
    assert "has no column 'txt'" in failed["run"]["facets"]["errorMessage"]["message"]


def test_a_refresh_that_a_gate_refuses_has_failed_and_runs_within_name_it(learned, told, monkeypatch):
    """Learning within a refresh is a run of its own, whose parent is the refresh, whose parent is the scheduler's."""
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", "airflow/dag.task/0197e2b0-0000-7000-8000-000000000000")
    learn = curator.LearnConfig(**FAST | {"seed": 5})
    with curator.open_lake(str(learned.lake)) as lake:
        assert lake.refresh(str(learned.target), learn=learn, verdicts=[]).outcome == "refused"
    events = told()
    assert brief(events) == [
        ("refresh lake", "START"),
        ("learn lake", "START"),
        ("learn lake", "COMPLETE"),
        ("refresh lake", "FAIL"),
    ]
    outer = events[0]["run"]
    parent = outer["facets"]["parent"]
    assert (parent["job"]["namespace"], parent["job"]["name"]) == ("airflow", "dag.task")
    assert parent["run"]["runId"] == "0197e2b0-0000-7000-8000-000000000000"
    assert events[1]["run"]["facets"]["parent"]["run"]["runId"] == outer["runId"]
    assert "verdict" in events[3]["run"]["facets"]["errorMessage"]["message"]
    assert events[2]["outputs"][0]["name"].startswith(f"{learned.state}/runs/")


def test_a_transport_that_fails_is_warned_of_and_nothing_else(learned, monkeypatch, caplog):
    answers = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(400)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{server.server_port}")
        with caplog.at_level(logging.WARNING, logger="curator"), curator.open_lake(str(learned.lake)) as lake:
            assert lake.publish(learned.run_id).version == 1
        server.shutdown()
    assert [answer["eventType"] for answer in answers] == ["START", "COMPLETE"]
    said = [record.getMessage() for record in caplog.records if record.name == "curator"]
    assert len(said) == 2
    assert said[0].startswith("lineage was not sent (START of 'publish lake'): ")


def test_a_configuration_that_cannot_be_is_warned_of_by_the_command(learned):
    process = command(learned.folder, "publish", learned.lake, "--json", OPENLINEAGE__TRANSPORT__TYPE="carrier pigeon")
    assert values_of(process)["version"] == 1
    assert "lineage was not sent (configuration): " in process.stderr
    assert "Traceback" not in process.stderr


def test_nothing_is_told_unless_it_is_asked_for(learned, told, monkeypatch):
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        monkeypatch.delenv("OPENLINEAGE_DISABLED")
        monkeypatch.delenv("OPENLINEAGE__TRANSPORT__TYPE")
        lake.publish(learned.run_id)
    assert told() == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/a/b/", ("s3://bucket", "a/b")),
        ("s3a://bucket", ("s3://bucket", "/")),
        ("gcs://bucket/a", ("gs://bucket", "a")),
        ("file:///data/x", ("file", "/data/x")),
        ("delta:s3://bucket/table", ("s3://bucket", "table")),
        ("iceberg:catalog.space.table", ("iceberg", "catalog.space.table")),
        ("abfss://box@account.dfs.core.windows.net/a", ("abfss://box@account.dfs.core.windows.net", "a")),
    ],
)
def test_datasets_are_named_as_openlineage_names_them(url, name):
    assert Dataset(url=url).name == name
