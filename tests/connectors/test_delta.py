"""Delta tables beyond what `test_tables.py` has of them: what only this format has, and what its log says."""

import json
from datetime import date

import pyarrow as pa
import pytest

from connectors import _delta_log as delta_log
from connectors.errors import ConflictError, NotFoundError, UnsupportedError

deltalake = pytest.importorskip("deltalake", reason="needs the extra [delta]")

from delta_cases import DeltaCase  # noqa: E402  # it needs it, too
from table_cases import ROWS, connect, overtake, prepare, publish  # noqa: E402


@pytest.fixture
def table_class():
    return DeltaCase


# reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [["1/2", "ä = %20", None], [date(2024, 2, 29), date(1999, 1, 1), None], [7, -1, None], [True, False, None]],
)
def test_partitions_of_any_type_and_name_survive_a_publication(local, values):
    local.create(pa.table({"text": ["a", "b", "c"], "day of": values}), partition_by=["day of"])
    before = {row["text"]: row["day of"] for row in local.rows()}
    publish(local.connector(), "run")
    assert {row["text"]: row["day of"] for row in local.rows()} == before
    assert local.weights() == dict.fromkeys("abc", 0)
    assert local.open().metadata().partition_columns == ["day of"]


def test_what_is_not_a_table_is_refused(local):
    with pytest.raises(NotFoundError, match="no _delta_log"):
        local.connector().read_corpus()


def test_column_mapping_is_refused(local):
    schema = deltalake.Schema.from_arrow(ROWS.schema)
    deltalake.DeltaTable.create(local.path, schema, configuration={"delta.columnMapping.mode": "name"})
    with pytest.raises(UnsupportedError, match="maps columns by name"):
        local.connector().read_corpus()


def test_deletion_vectors_are_refused(local):
    """The log of a table with one deleted row, as Delta's protocol describes it; no writer in Python makes one."""
    local.create(pa.table({"text": [str(number) for number in range(40)]}))
    (entry,) = (local.root / "_delta_log").glob("*.json")
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    features = {"minReaderVersion": 3, "minWriterVersion": 7}
    features |= {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    vector = {"storageType": "i", "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L"}
    for line in lines:
        if "protocol" in line:
            line["protocol"] = features
        if "add" in line:
            line["add"]["deletionVector"] = vector | {"sizeInBytes": 40, "cardinality": 6}
    entry.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UnsupportedError, match="has deletion vectors on 1 file"):
        local.connector().read_corpus()


@pytest.mark.parametrize("path", ["../elsewhere.parquet", "%2e%2e/elsewhere.parquet", "a/../../elsewhere.parquet"])
def test_a_log_that_leads_out_of_the_table_is_refused(local, path):
    local.create()
    (entry,) = (local.root / "_delta_log").glob("*.json")
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            (local.root.parent / "elsewhere.parquet").write_bytes((local.root / line["add"]["path"]).read_bytes())
            line["add"]["path"] = path
    entry.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UnsupportedError, match="names a file outside its folder"):
        local.connector().read_corpus()


def test_an_append_only_table_is_refused_before_work(local):
    local.create(**{"delta.appendOnly": "true"})
    with pytest.raises(UnsupportedError, match=r"append-only \(delta.appendOnly\)"):
        local.connector().check_writable()


def test_a_table_on_other_storage_is_refused():
    with pytest.raises(UnsupportedError, match="from a local folder or s3://, not from memory://x"):
        connect("delta:memory://x", None)


# publishing --------------------------------------------------------------------------------------------------------


def test_a_publication_is_one_commit_that_keeps_the_tables_settings(table):
    table.create(partition_by=["domain"], **{"delta.logRetentionDuration": "interval 9 days"})
    before = table.open()
    publish(table.connector(), "run")
    after = table.open()
    assert (before.version(), after.version()) == (0, 1)
    assert (after.history(1)[0]["run_id"], after.history(1)[0]["operation"]) == ("run", "WRITE")
    assert after.metadata().id == before.metadata().id
    assert after.metadata().configuration == before.metadata().configuration


def test_statistics_are_kept_and_given_for_the_new_columns(local):
    local.create()
    publish(local.connector(), "run")
    (stats,) = pa.table(local.open().get_add_actions()).to_pylist()
    assert stats["num_records"] == 3
    assert stats["min"] == {"text": "a", "domain": "x", "score": 1, "sample_weight": 0.0, "weight_run_id": "run"}
    assert stats["max"] == {"text": "c", "domain": "y", "score": 3, "sample_weight": 2.0, "weight_run_id": "run"}
    assert set(stats["null_count"].values()) == {0}


# others at the same time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["append", "compact"])
def test_a_commit_between_reading_and_committing_is_never_rebased_on_unseen(local, monkeypatch, change):
    """deltalake's own retry takes OPTIMIZE for harmless, after which every row is there twice."""
    local.create()
    local.append(ROWS)
    connector = local.connector()
    manifest = prepare(connector, "run")
    if change == "append":
        attempts = overtake(monkeypatch, local, lambda: local.append(pa.table({"text": ["new"]})))
        assert connector.commit(manifest, idempotency_key="run").number == 3
        assert len(attempts) == 2
    else:
        overtake(monkeypatch, local, local.compact)
        with pytest.raises(ConflictError, match="was removed from the Delta table or replaced"):
            connector.commit(manifest, idempotency_key="run")
    assert [row["text"] for row in local.rows()] == ["a", "a", "b", "b", "c", "c", "new"][
        : 7 if change == "append" else 6
    ]


# going back --------------------------------------------------------------------------------------------------------


def test_restore_brings_back_rows_and_schema_of_any_version(local):
    local.create()
    connector = local.connector()
    publish(connector, "one")
    publish(connector, "two")
    assert connector.restore_snapshot(1) == 3
    assert {row["weight_run_id"] for row in local.rows()} == {"one"}
    assert [version.run_id for version in connector.read_log()] == ["one", "two", "one"]
    assert connector.current(connector.read_corpus()).run_id == "one"
    assert connector.restore_snapshot(0) == 4
    assert local.rows() == ROWS.to_pylist()
    assert connector.current(connector.read_corpus()) is None
    with pytest.raises(NotFoundError, match="no version 99; the newest is 4"):
        connector.restore_snapshot(99)


def test_a_rollback_that_another_writer_follows_at_once_names_its_own_commit(local, monkeypatch):
    local.create()
    connector = local.connector()
    publish(connector, "one")
    publish(connector, "two")
    restore = delta_log.restore_table

    def followed(*arguments):
        restore(*arguments)
        local.append(pa.table({"text": ["new"]}))

    monkeypatch.setattr(delta_log, "restore_table", followed)
    made = connector.restore(1)
    assert (made.number, made.run_id) == (3, "one")


# credentials -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["AWS_ variables", "fsspec's configuration"])
def test_credentials_of_the_environment_reach_both_libraries(s3_place, tmp_path, monkeypatch, style):
    import fsspec.config

    options = s3_place.options
    if style == "AWS_ variables":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
        monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    else:
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
    table = DeltaCase(tmp_path, s3_place)
    table.create()
    assert publish(connect(table.url, None), "run").number == 1
