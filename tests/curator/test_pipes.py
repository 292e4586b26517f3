"""What a refresh that Dagster started as a process tells it: by dagster-pipes itself, and by Dagster where it is."""

import base64
import json
import os
import subprocess
import sys
import zlib

import pytest
from lake_cases import FAST, curator, environment, values_of, write_settings

pytest.importorskip("dagster_pipes", reason="needs the extra [dagster]")
DAGSTER = os.environ.get("DAGSTER_PYTHON")

IN_DAGSTER = """
import json, os, sys
import dagster as dg

@dg.asset
def weights(context: dg.AssetExecutionContext):
    client = dg.PipesSubprocessClient()
    return client.run(context=context, command=json.loads(sys.argv[1]), env=dict(os.environ)).get_materialize_result()

with dg.DagsterInstance.ephemeral() as instance:
    (found,) = dg.materialize([weights], instance=instance).asset_materializations_for_node("weights")
print(json.dumps({key: value.value for key, value in found.metadata.items()} | {"tags": dict(found.tags)}))
"""


def encoded(values):
    return base64.b64encode(zlib.compress(json.dumps(values).encode())).decode()


def context(asset="weights"):
    """What Dagster puts into the environment of a process that materializes an asset."""
    return {
        "asset_keys": [asset],
        "code_version_by_asset_key": {asset: None},
        "provenance_by_asset_key": {asset: None},
        "partition_key": None,
        "partition_key_range": None,
        "partition_time_window": None,
        "run_id": "1",
        "job_name": None,
        "retry_number": 0,
        "extras": {},
    }


@pytest.fixture
def refresh(learned):
    settings = write_settings(learned.folder / "curator.toml", **FAST)
    with settings.open("a") as file:
        file.write(
            '[refresh]\nverdicts = ["converged", "not converged", "no gain", "unstable"]\nmax_share_change = 1.0\n'
        )
    return ("refresh", learned.lake, "--target", learned.target, "--config", settings, "--json")


@pytest.fixture
def in_pipes(learned, tmp_path, refresh):
    """The command as Dagster starts it, and the messages that it sent."""

    def run(*more):
        messages = tmp_path / "messages"
        messages.write_text("")
        given = {
            "DAGSTER_PIPES_CONTEXT": encoded({"data": context()}),
            "DAGSTER_PIPES_MESSAGES": encoded({"path": str(messages)}),
        }
        process = curator(learned.folder, *refresh, *more, **given)
        return process, [json.loads(line) for line in messages.read_text().splitlines()]

    return run


def test_a_refresh_reports_the_asset_with_its_metadata(in_pipes):
    process, messages = in_pipes()
    values = values_of(process)
    (said,) = [each["params"] for each in messages if each["method"] == "report_asset_materialization"]
    assert (said["asset_key"], said["data_version"]) == ("weights", str(values["version"]))
    found = {key: value["raw_value"] for key, value in said["metadata"].items()}
    assert (found["outcome"], found["version"], found["rows_written"]) == ("published", 1, 72)
    assert found["run_id"] == values["run_id"]
    assert [said.split()[1] for said in found["gates"]] == [gate["name"] for gate in values["gates"]]
    assert messages[0]["method"] == "opened"
    assert messages[-1]["method"] == "closed"


def test_a_refused_refresh_materializes_nothing_and_a_failed_one_is_told(in_pipes, learned):
    settings = learned.folder / "curator.toml"
    settings.write_text(
        settings.read_text().replace(
            'verdicts = ["converged", "not converged", "no gain", "unstable"]', "verdicts = []"
        )
    )
    process, messages = in_pipes()
    assert process.returncode == 3
    assert "report_asset_materialization" not in [each["method"] for each in messages]
    assert any("gate verdict refused" in str(each["params"]) for each in messages)
    process, messages = in_pipes("--text", "txt")
    assert process.returncode == 2
    assert "has no column 'txt'" in str(messages[-1]["params"]["exception"])


def test_a_channel_that_cannot_be_opened_is_warned_of(learned, refresh):
    process = curator(learned.folder, *refresh, DAGSTER_PIPES_CONTEXT="no such thing")
    assert values_of(process)["outcome"] == "published"
    assert "Dagster is told nothing: " in process.stderr


@pytest.mark.skipif(not DAGSTER, reason="needs Dagster in a virtual environment: set DAGSTER_PYTHON")
def test_dagster_itself_takes_the_metadata(learned, tmp_path, refresh):
    command = [sys.executable, "-m", "curator", *map(str, refresh)]
    given = environment(learned.folder, DAGSTER_HOME=str(tmp_path))
    arguments = [DAGSTER, "-c", IN_DAGSTER, json.dumps(command)]
    done = subprocess.run(arguments, env=given, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["outcome"], found["version"], found["rows_written"]) == ("published", 1, 72)
    assert found["tags"]["dagster/data_version"] == "1"
