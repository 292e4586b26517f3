"""The description of a published version in Croissant, read by mlcroissant itself where it is installed."""

import json
import os
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_cases import curator as command
from lake_cases import refusal, values_of

import curator
from curator.errors import ConfigError, NotFoundError

MLCROISSANT = os.environ.get("MLCROISSANT_PYTHON")
READ = """
import json, sys
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
assert not dataset.metadata.ctx.issues.errors, dataset.metadata.ctx.issues.errors
names = [each.uuid for each in dataset.metadata.record_sets]
rows = [{key: value for key, value in row.items()} for row in dataset.records("domain_weights")]
decoded = lambda value: value.decode() if isinstance(value, bytes) else value
print(json.dumps([names, [{key: decoded(value) for key, value in row.items()} for row in rows]]))
"""


@pytest.fixture
def published(learned):
    """A lake with a version, of whose files one has a column of a nested type."""
    north = pq.read_table(learned.lake / "north.parquet")
    tags = pa.array([["a", "b"]] * north.num_rows)
    pq.write_table(north.append_column("tags", tags), learned.lake / "north.parquet")
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        yield lake


def test_a_description_has_the_files_columns_and_weights_of_the_version(published, learned, tmp_path):
    done = published.describe(tmp_path / "croissant.json")
    assert done.text == (tmp_path / "croissant.json").read_text(encoding="utf-8")
    assert (done.version, done.run_id, done.left_out) == (1, learned.run_id, ["tags"])
    values = json.loads(done.text)
    (files,) = values["distribution"]
    assert all((learned.state / path).is_file() for path in files["includes"])
    assert len(files["includes"]) == 3
    samples, domains = values["recordSet"]
    types = {field["name"]: field["dataType"] for field in samples["field"]}
    assert types == {
        "samples/text": "sc:Text",
        "samples/domain": "sc:Text",
        "samples/score": "sc:Float",
        "samples/sample_weight": "sc:Float",
        "samples/domain_weight": "sc:Float",
        "samples/weight_run_id": "sc:Text",
    }
    (weight,) = [field for field in samples["field"] if field["name"] == "samples/sample_weight"]
    assert "mean 1" in weight["description"]
    assert weight["source"] == {"fileSet": {"@id": "parquet-files"}, "extract": {"column": "sample_weight"}}
    shown = {row["domain_weights/domain"]: row["domain_weights/domain_weight"] for row in domains["data"]}
    assert shown == {row["domain"]: row["domain_weight"] for row in published.run(learned.run_id).record["domains"]}


def test_a_description_is_written_by_the_command_and_kept_unless_told(published, learned):
    call = ("export", learned.lake, "--format", "croissant", "--out", "croissant.json")
    assert values_of(command(learned.folder, *call, "--dry-run", "--json"))["version"] == 1
    assert not (learned.folder / "croissant.json").exists()
    shown = command(learned.folder, *call)
    assert shown.stdout.startswith("wrote croissant.json: version 1 with 6 columns")
    assert "is there already" in refusal(command(learned.folder, *call), 2)
    assert "--unit means nothing to croissant" in refusal(command(learned.folder, *call, "--unit", "rows"), 2)


def test_what_is_not_there_cannot_be_described(learned, tmp_path):
    with curator.open_lake(str(learned.lake)) as lake:
        with pytest.raises(NotFoundError, match="no published version yet"):
            lake.describe(tmp_path / "x.json")
        lake.publish(learned.run_id)
        with pytest.raises(NotFoundError, match="no version 2"):
            lake.describe(tmp_path / "x.json", version=2)
        with pytest.raises(ConfigError, match="folder does not exist"):
            lake.describe(tmp_path / "no" / "x.json")


@pytest.mark.skipif(not MLCROISSANT, reason="needs mlcroissant in a virtual environment: MLCROISSANT_PYTHON")
def test_mlcroissant_reads_it(published, learned):
    published.describe(learned.state / "croissant.json")
    process = subprocess.run(
        [MLCROISSANT, "-c", READ, str(learned.state / "croissant.json")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    names, rows = json.loads(process.stdout.splitlines()[-1])
    assert names == ["samples", "domain_weights"]
    assert {row["domain_weights/domain"] for row in rows} == {"north", "south", "east"}
