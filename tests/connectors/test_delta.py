"""Delta tables, written and read back by deltalake itself, by polars and by DuckDB; on a local disk and on S3."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors import duck
from connectors.errors import ConflictError, ConnectorError, CorruptFileError, NotFoundError, UnsupportedError
from connectors.store import delete, list_objects, open_store, read_bytes

deltalake = pytest.importorskip("deltalake", reason="needs the extra [delta]")

from delta_writer import connect  # noqa: E402  # it needs it, too
from table_cases import prepare, publish  # noqa: E402

from connectors._delta_log import delta_options  # noqa: E402

ROWS = pa.table({"text": ["a", "b", "c"], "domain": ["x", "y", "x"], "score": pa.array([3, 1, 2], pa.int64())})
WRITER = Path(__file__).with_name("delta_writer.py")


class TestTable:
    """A real Delta table and what its other users see of it."""

    __test__ = False

    def __init__(self, url, options=None):
        self.url = url
        self.given = options
        self.options = delta_options(open_store(url, options)) or None

    def connector(self):
        return connect(self.url, self.given)

    def write(self, rows=ROWS, **settings):
        if settings.get("mode") == "append":
            settings["schema_mode"] = "merge"
        deltalake.write_deltalake(self.url, rows, storage_options=self.options, **settings)

    def open(self, version=None):
        return deltalake.DeltaTable(self.url, version=version, storage_options=self.options)

    def rows(self, version=None):
        """The rows as deltalake's own query engine reads them, sorted by text."""
        builder = deltalake.QueryBuilder().register("t", self.open(version))
        return pa.table(builder.execute("SELECT * FROM t ORDER BY text").read_all()).to_pylist()

    def weights(self):
        return {row["text"]: row["sample_weight"] for row in self.rows()}

    def writer(self, task, *arguments):
        command = [sys.executable, str(WRITER), task, self.url, json.dumps(self.given), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def local(tmp_path):
    return TestTable(str(tmp_path / "table"))


@pytest.fixture(params=["local", "s3"])
def table(request, tmp_path):
    if request.param == "local":
        return TestTable(str(tmp_path / "table"))
    place = request.getfixturevalue("s3_place")
    return TestTable(place.url, place.options)


# reading -----------------------------------------------------------------------------------------------------------


def test_the_corpus_is_what_the_newest_snapshot_names(table):
    table.write(partition_by=["domain"])
    table.write(ROWS.slice(0, 1), mode="overwrite", partition_by=["domain"])
    table.write(ROWS.slice(1, 1), mode="append")
    corpus = table.connector().read_corpus()
    assert [(file.partition, file.num_rows) for file in corpus.files] == [({"domain": "x"}, 1), ({"domain": "y"}, 1)]
    assert corpus.schema.names == ["text", "score"]
    assert len(list_objects(corpus.store, ".parquet")) == 4


def test_diff_tells_files_gained_and_lost(local):
    local.write()
    (first,) = local.open().get_add_actions()["path"].to_pylist()
    local.write(mode="append")
    (added,) = set(local.open().get_add_actions()["path"].to_pylist()) - {first}
    connector = local.connector()
    assert (connector.diff(0).added, connector.diff(0).removed) == ((added,), ())
    before = connector.revision()
    publish(connector, "run")
    assert (connector.diff(1).added, connector.diff(1).removed) == ((), ())
    assert {info.path for info in connector.list_files()} == {first, added}
    assert connector.revision() == connector.revision() != before
    local.write(mode="overwrite", schema_mode="overwrite")
    assert set(connector.diff(1).removed) == {first, added}
    with pytest.raises(NotFoundError):
        connector.diff(99)


@pytest.mark.parametrize(
    "values",
    [["1/2", "ä = %20", None], [date(2024, 2, 29), date(1999, 1, 1), None], [7, -1, None], [True, False, None]],
)
def test_partitions_of_any_type_and_name_survive_a_publication(local, values):
    local.write(pa.table({"text": ["a", "b", "c"], "day of": values}), partition_by=["day of"])
    before = {row["text"]: row["day of"] for row in local.rows()}
    publish(local.connector(), "run")
    assert {row["text"]: row["day of"] for row in local.rows()} == before
    assert local.weights() == dict.fromkeys("abc", 0)
    assert local.open().metadata().partition_columns == ["day of"]


def test_what_is_not_a_table_is_refused(local, tmp_path):
    with pytest.raises(NotFoundError, match="no _delta_log"):
        local.connector().read_corpus()
    local.write()
    (name,) = local.open().get_add_actions()["path"].to_pylist()
    (tmp_path / "table" / name).unlink()
    with pytest.raises(CorruptFileError, match=f"{name}, which the Delta table names, is not there"):
        local.connector().read_corpus()


def test_column_mapping_is_refused(local):
    schema = deltalake.Schema.from_arrow(ROWS.schema)
    deltalake.DeltaTable.create(local.url, schema, configuration={"delta.columnMapping.mode": "name"})
    with pytest.raises(UnsupportedError, match="maps columns by name"):
        local.connector().read_corpus()


def test_deletion_vectors_are_refused(local):
    """The log of a table with one deleted row, as Delta's protocol describes it; no writer in Python makes one."""
    local.write(pa.table({"text": [str(number) for number in range(40)]}))
    (entry,) = Path(local.url, "_delta_log").glob("*.json")
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
    local.write()
    (entry,) = Path(local.url, "_delta_log").glob("*.json")
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            Path(local.url, "..", "elsewhere.parquet").write_bytes(Path(local.url, line["add"]["path"]).read_bytes())
            line["add"]["path"] = path
    entry.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UnsupportedError, match="names a file outside its folder"):
        local.connector().read_corpus()


def test_an_append_only_table_is_refused_before_work(local):
    local.write(configuration={"delta.appendOnly": "true"})
    with pytest.raises(UnsupportedError, match=r"append-only \(delta.appendOnly\)"):
        local.connector().check_writable()


def test_a_table_on_other_storage_is_refused():
    with pytest.raises(UnsupportedError, match="from a local folder or s3://, not from memory://x"):
        connect("memory://x", None)


def test_without_deltalake_the_extra_is_named(local):
    code = (
        "import sys; sys.modules['deltalake'] = None\n"
        "from connectors.connector import read_corpus\nread_corpus('delta:/nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError: delta: needs an optional dependency: pip install 'lake-curator[delta]'" in done.stderr


# publishing --------------------------------------------------------------------------------------------------------


def test_a_publication_is_one_commit_that_every_reader_sees(table):
    import polars as pl

    table.write(partition_by=["domain"], configuration={"delta.logRetentionDuration": "interval 9 days"})
    before = table.open()
    version = publish(table.connector(), "run")
    after = table.open()
    assert (version.number, version.created, after.version()) == (1, True, 1)
    assert (after.history(1)[0]["run_id"], after.history(1)[0]["operation"]) == ("run", "WRITE")
    assert table.weights() == {"a": 0, "b": 0, "c": 1}
    assert after.metadata().id == before.metadata().id
    assert after.metadata().configuration == before.metadata().configuration
    assert after.schema().fields[:3] == before.schema().fields
    assert [row.keys() & {"sample_weight"} for row in table.rows(version=0)] == [set()] * 3
    scanned = pl.scan_delta(table.url, storage_options=table.options).filter(pl.col("sample_weight") > 0).collect()
    assert scanned["text"].to_list() == ["c"]
    with duck.connect() as connection:
        store = open_store(table.url, table.given)
        duck.register_store(connection, store)
        paths = after.get_add_actions()["path"].to_pylist()
        listed = ", ".join(duck.quote_literal(duck.duck_path(store, path)) for path in paths)
        read = connection.execute(f"SELECT text, weight_run_id FROM read_parquet([{listed}]) ORDER BY 1").fetchall()
    assert read == [("a", "run"), ("b", "run"), ("c", "run")]


def test_statistics_are_kept_and_given_for_the_new_columns(local):
    local.write()
    publish(local.connector(), "run")
    (stats,) = pa.table(local.open().get_add_actions()).to_pylist()
    assert stats["num_records"] == 3
    assert stats["min"] == {"text": "a", "domain": "x", "score": 1, "sample_weight": 0.0, "weight_run_id": "run"}
    assert stats["max"] == {"text": "c", "domain": "y", "score": 3, "sample_weight": 2.0, "weight_run_id": "run"}
    assert set(stats["null_count"].values()) == {0}


def test_a_key_is_committed_once(table):
    table.write()
    connector = table.connector()
    first = publish(connector, "run")
    again = publish(table.connector(), "run")
    assert (again, again.created) == (first, False)
    assert table.open().version() == 1
    assert [version.number for version in connector.read_log()] == [1]


def test_the_next_version_is_made_from_the_first_files_and_replaces_the_columns(table):
    table.write()
    connector = table.connector()
    original = connector.read_corpus()
    publish(connector, "one")
    assert connector.read_corpus() == original
    table.write(pa.table({"text": ["d"], "domain": ["y"], "score": pa.array([4], pa.int64())}), mode="append")
    publish(connector, "two")
    assert table.weights() == {"a": 0, "b": 1, "c": 2, "d": 0}
    assert {row["weight_run_id"] for row in table.rows()} == {"two"}
    (newest, older) = (connector.read_manifest(version) for version in reversed(connector.read_log()))
    assert older.files[0].source_path in {file.source_path for file in newest.files}
    assert len(table.open().file_uris()) == 2
    assert [field.name for field in table.open().schema().fields][3:] == ["sample_weight", "weight_run_id"]


def test_after_vacuum_the_copies_are_the_source(local):
    local.write()
    publish(local.connector(), "one")
    everything = {"retention_hours": 0, "enforce_retention_duration": False, "dry_run": False, "full": True}
    assert len(local.open().vacuum(**everything)) == 1
    for run in ("two", "three"):
        publish(local.connector(), run)
        local.open().vacuum(**everything)
        assert local.connector().read_manifest(local.connector().read_log()[-1]).run_id == run
        assert {row["weight_run_id"] for row in local.rows()} == {run}
        (path,) = local.open().get_add_actions()["path"].to_pylist()
        assert pq.read_schema(Path(local.url, path)).names == [*ROWS.schema.names, "sample_weight", "weight_run_id"]
        assert (path.count("curator/"), path.count("from-")) == (1, 1)
    assert [(row["text"], row["score"]) for row in local.rows()] == [("a", 3), ("b", 1), ("c", 2)]
    assert local.connector().check_writable() is None


def test_files_that_another_writer_compacts_keep_their_weights(local):
    local.write()
    local.write(mode="append")
    connector = local.connector()
    publish(connector, "one")
    local.open().optimize.compact()
    corpus = connector.read_corpus()
    assert (len(corpus.files), corpus.num_rows, corpus.schema.names) == (1, 6, ROWS.schema.names)
    assert [file.published_path for file in connector.current(corpus).files] == [corpus.files[0].path]
    publish(connector, "two")
    assert [row["weight_run_id"] for row in local.rows()] == ["two"] * 6


# others at the same time -------------------------------------------------------------------------------------------


def test_rows_appended_meanwhile_stay_without_weights(table):
    table.write(partition_by=["domain"])
    connector = table.connector()
    manifest = prepare(connector, "run")
    table.write(pa.table({"text": ["new"], "domain": ["z"], "score": pa.array([9], pa.int64())}), mode="append")
    version = connector.commit(manifest, idempotency_key="run")
    assert version.number == 2
    assert table.weights() == {"a": 0, "b": 0, "c": 1, "new": None}
    publish(connector, "next")
    assert table.weights() == {"a": 0, "b": 0, "c": 1, "new": 0}


@pytest.mark.parametrize("change", ["compact", "delete", "overwrite"])
def test_files_replaced_meanwhile_are_a_conflict_and_change_nothing(local, change):
    local.write()
    local.write(mode="append")
    connector = local.connector()
    manifest = prepare(connector, "run")
    if change == "compact":
        local.open().optimize.compact()
    elif change == "delete":
        local.open().delete("text = 'a'")
    else:
        local.write(mode="overwrite")
    expected = local.rows()
    with pytest.raises(ConflictError, match="was removed from the Delta table or replaced since it was read"):
        connector.commit(manifest, idempotency_key="run")
    assert local.rows() == expected
    assert connector.read_log() == []


@pytest.mark.parametrize("change", ["append", "compact"])
def test_a_commit_between_reading_and_committing_is_never_rebased_on_unseen(local, monkeypatch, change):
    """deltalake's own retry takes OPTIMIZE for harmless, after which every row is there twice."""
    from connectors import _delta_log

    local.write()
    local.write(mode="append")
    connector = local.connector()
    manifest = prepare(connector, "run")
    commit = _delta_log.replace_files
    attempts = []

    def overtaken(*arguments):
        attempts.append(1)
        if len(attempts) == 1 and change == "append":
            local.write(pa.table({"text": ["new"]}), mode="append")
        elif len(attempts) == 1:
            local.open().optimize.compact()
        commit(*arguments)

    monkeypatch.setattr(_delta_log, "replace_files", overtaken)
    if change == "append":
        assert connector.commit(manifest, idempotency_key="run").number == 3
        assert len(attempts) == 2
    else:
        with pytest.raises(ConflictError, match="was removed from the Delta table or replaced"):
            connector.commit(manifest, idempotency_key="run")
    assert [row["text"] for row in local.rows()] == ["a", "a", "b", "b", "c", "c", "new"][
        : 7 if change == "append" else 6
    ]


def test_a_lost_answer_is_recognised(local, monkeypatch):
    from connectors import _delta_log
    from connectors.errors import UnavailableError

    local.write()
    commit = _delta_log.replace_files

    def unanswered(*arguments):
        commit(*arguments)
        raise UnavailableError("no answer")

    monkeypatch.setattr(_delta_log, "replace_files", unanswered)
    version = publish(local.connector(), "run")
    assert (version.number, version.created, local.open().version()) == (1, True, 1)


def test_a_writer_that_appends_all_the_time_loses_nothing(table):
    table.write()
    with table.writer("append", 6) as writer:
        assert writer.stdout.readline() == "0\n", writer.stderr.read()
        version = publish(table.connector(), "run")
        _, said = writer.communicate(timeout=60)
    assert writer.returncode == 0, said
    assert version.created
    texts = [row["text"] for row in table.rows()]
    assert sorted(texts) == sorted([*"abc", *(f"appended {number}" for number in range(6))])
    assert {text: weight for text, weight in table.weights().items() if text in "abc"} == {"a": 0, "b": 1, "c": 2}
    assert sum("lake-curator" in entry for entry in table.open().history()) == 1


def test_processes_that_publish_at_once_commit_every_run_once(table):
    table.write()
    publishers = [table.writer("publish", run) for run in ("one", "one", "two")]
    said = [publisher.communicate(timeout=120) for publisher in publishers]
    assert [publisher.returncode for publisher in publishers] == [0, 0, 0], said
    assert sorted(out.split()[1] for out, _ in said) == ["False", "True", "True"]
    assert sorted(v.idempotency_key for v in table.connector().read_log()) == ["one", "two"]
    assert sorted(table.weights()) == ["a", "b", "c"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_leaves_the_old_version_or_the_new_one_and_the_same_call_completes(local, when):
    local.write()
    expected = local.rows()
    crashed = local.writer("publish", "run", when)
    crashed.communicate(timeout=60)
    assert crashed.returncode == 9
    assert (local.rows() == expected) is (when == "before")
    version = publish(local.connector(), "run")
    assert (version.number, version.created, local.open().version()) == (1, when == "before", 1)
    assert local.weights() == {"a": 0, "b": 1, "c": 2}


# going back --------------------------------------------------------------------------------------------------------


def test_restore_brings_back_rows_and_schema_of_any_version(local):
    local.write()
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


def test_a_published_version_whose_manifest_is_gone_is_read_as_it_is(local):
    local.write()
    connector = local.connector()
    publish(connector, "one")
    for info in list_objects(open_store(local.url), prefix="_curator"):
        delete(open_store(local.url), info.path)
    (file,) = connector.read_corpus().files
    assert file.path.startswith("curator/one/")
    assert connector.current(connector.read_corpus()).files[0].published_path == file.path
    publish(connector, "two")
    assert {row["weight_run_id"] for row in local.rows()} == {"two"}


# credentials -------------------------------------------------------------------------------------------------------


def test_credentials_are_nowhere(s3_place, caplog):
    table = TestTable(s3_place.url, s3_place.options)
    table.write()
    connector = table.connector()
    publish(connector, "run")
    store = s3_place.store()
    written = b"".join(read_bytes(store, info.path) for info in list_objects(store))
    shown = repr(connector) + repr(connector.read_corpus()) + repr(connector.read_log()) + caplog.text
    for secret in (s3_place.options["secret"], s3_place.options["key"]):
        assert secret.encode() not in written
        assert secret not in shown
    wrong = connect(s3_place.url, {**s3_place.options, "secret": "unutterable-secret"})
    with pytest.raises(ConnectorError, match="cannot reach the Delta table s3://") as caught:
        wrong.read_corpus()
    assert "unutterable" not in str(caught.value)
    assert s3_place.options["key"] not in str(caught.value)


@pytest.mark.parametrize("style", ["AWS_ variables", "fsspec's configuration"])
def test_credentials_of_the_environment_reach_both_libraries(s3_place, monkeypatch, style):
    import fsspec.config

    options = s3_place.options
    if style == "AWS_ variables":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
        monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    else:
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
    TestTable(s3_place.url, options).write()
    assert publish(connect(s3_place.url, None), "run").number == 1


def test_the_manifest_that_a_commit_names_is_checked(local):
    local.write()
    connector = local.connector()
    version = publish(connector, "run")
    with pytest.raises(CorruptFileError, match="is not what version 1 of the Delta table"):
        connector.read_manifest(replace(version, manifest_hash="0" * 32))
