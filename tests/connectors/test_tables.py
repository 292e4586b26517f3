"""What Delta and Iceberg tables have in common: each test runs on both; on a local disk and, with `table`, on S3."""

import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from table_cases import NEW, ROWS, case_class, connect, prepare, publish

from connectors import duck
from connectors.errors import ConflictError, ConnectorError, CorruptFileError, NotFoundError, UnavailableError
from connectors.garbage import find_table_garbage, remove_garbage
from connectors.store import delete, list_objects, read_bytes, substore, write_object

LIBRARIES = {"delta": "deltalake", "iceberg": "pyiceberg"}


@pytest.fixture(params=["delta", "iceberg"])
def table_class(request):
    pytest.importorskip(LIBRARIES[request.param], reason=f"needs the extra [{request.param}]")
    return case_class(request.param)


# reading -----------------------------------------------------------------------------------------------------------


def test_the_corpus_is_what_the_newest_snapshot_names(table):
    table.create(partition_by=["domain"])
    table.overwrite(ROWS.slice(0, 1))
    table.append(ROWS.slice(1, 1))
    corpus = table.connector().read_corpus()
    assert [(file.partition, file.num_rows) for file in corpus.files] == [({"domain": "x"}, 1), ({"domain": "y"}, 1)]
    in_the_files = {"delta": ["text", "score"], "iceberg": ["text", "domain", "score"]}
    assert corpus.schema.names == in_the_files[table.format_name]
    assert len(list_objects(corpus.store, ".parquet")) == 4


def test_diff_tells_files_gained_and_lost(local):
    local.create()
    connector = local.connector()
    created, first = local.number(), set(local.paths())
    local.append()
    appended, both = local.number(), set(local.paths())
    assert (set(connector.diff(created).added), connector.diff(created).removed) == (both - first, ())
    assert len(both - first) == 1
    before = connector.revision()
    publish(connector, "run")  # copies of ours count as their sources
    assert (connector.diff(appended).added, connector.diff(appended).removed) == ((), ())
    assert {info.path for info in connector.list_files()} == both
    assert connector.revision() == connector.revision() != before
    local.overwrite(NEW)
    assert (set(connector.diff(appended).added), set(connector.diff(appended).removed)) == (set(local.paths()), both)
    with pytest.raises(NotFoundError, match=r"has no (version|snapshot) 99"):
        connector.diff(99)


def test_a_table_that_lost_a_file_is_refused(local):
    local.create()
    (path,) = local.paths()
    (local.root / path).unlink()
    name = local.format_name.title()
    with pytest.raises(CorruptFileError, match=f"{path}, which the {name} table names, is not there"):
        local.connector().read_corpus()


def test_without_its_library_the_extra_is_named(local):
    name = local.format_name
    code = (
        f"import sys; sys.modules['{LIBRARIES[name]}'] = None\n"
        f"from connectors.connector import read_corpus\nread_corpus({local.url!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"MissingExtraError: {name}: needs an optional dependency: pip install 'lake-curator[{name}]'" in done.stderr


# publishing --------------------------------------------------------------------------------------------------------


def test_a_publication_is_one_version_that_every_reader_sees(table, monkeypatch):
    import polars as pl

    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else polars asks for a plugin of its own
    table.create(partition_by=["domain"])
    before, fields = table.number(), table.open().schema().fields
    version = publish(table.connector(), "run")
    assert (version.number, version.created, table.number()) == (before + 1, True, before + 1)
    assert table.weights() == {"a": 0, "b": 0, "c": 1}
    assert table.open().schema().fields[:3] == fields
    assert table.rows(before) == ROWS.to_pylist()
    assert table.scan().filter(pl.col("sample_weight") > 0).collect()["text"].to_list() == ["c"]
    with duck.connect() as connection:
        store = table.connector().data
        duck.register_store(connection, store)
        listed = ", ".join(duck.quote_literal(duck.duck_path(store, path)) for path in table.paths())
        read = connection.execute(f"SELECT text, weight_run_id FROM read_parquet([{listed}]) ORDER BY 1").fetchall()
    assert read == [("a", "run"), ("b", "run"), ("c", "run")]


def test_a_key_is_committed_once(table):
    table.create()
    connector = table.connector()
    before = table.number()
    first = publish(connector, "run")
    again = publish(table.connector(), "run")
    assert (again, again.created) == (first, False)
    assert table.number() == before + 1
    assert [version.number for version in connector.read_log()] == [before + 1]


def test_the_next_version_is_made_from_the_first_files_and_replaces_the_columns(table):
    table.create()
    connector = table.connector()
    original = connector.read_corpus()
    publish(connector, "one")
    assert connector.read_corpus() == original
    table.append()
    assert {file.schema.names[-1] for file in connector.read_corpus().files} == {"score"}
    publish(connector, "two")
    assert table.weights() == {"a": 0, "b": 1, "c": 2, "new": 0}
    assert {row["weight_run_id"] for row in table.rows()} == {"two"}
    (newest, older) = (connector.read_manifest(version) for version in reversed(connector.read_log()))
    assert older.files[0].source_path in {file.source_path for file in newest.files}
    assert len(table.paths()) == 2
    assert table.columns() == [*ROWS.schema.names, "sample_weight", "weight_run_id"]


def test_once_the_sources_were_cleaned_away_the_copies_are_the_source(local):
    local.create()
    publish(local.connector(), "one")
    assert local.clean() == 1
    for run in ("two", "three"):
        publish(local.connector(), run)
        local.clean()
        assert local.connector().read_manifest(local.connector().read_log()[-1]).run_id == run
        assert {row["weight_run_id"] for row in local.rows()} == {run}
        (path,) = local.paths()
        assert pq.read_schema(local.root / path).names == [*ROWS.schema.names, "sample_weight", "weight_run_id"]
        assert (path.count("curator/"), path.count("from-")) == (1, 1)
    assert [(row["text"], row["score"]) for row in local.rows()] == [("a", 3), ("b", 1), ("c", 2)]
    assert local.connector().check_writable() is None


def test_files_that_another_writer_compacts_keep_their_weights(local):
    local.create()
    local.append(ROWS)
    connector = local.connector()
    publish(connector, "one")
    local.compact()
    corpus = connector.read_corpus()
    assert (len(corpus.files), corpus.num_rows, corpus.schema.names) == (1, 6, ROWS.schema.names)
    assert [file.published_path for file in connector.current(corpus).files] == [corpus.files[0].path]
    publish(connector, "two")
    assert [row["weight_run_id"] for row in local.rows()] == ["two"] * 6


# others at the same time -------------------------------------------------------------------------------------------


def test_rows_appended_meanwhile_stay_without_weights(table):
    table.create(partition_by=["domain"])
    connector = table.connector()
    before = table.number()
    manifest = prepare(connector, "run")
    table.append()
    version = connector.commit(manifest, idempotency_key="run")
    assert version.number == before + 2
    assert table.weights() == {"a": 0, "b": 0, "c": 1, "new": None}
    publish(connector, "next")
    assert table.weights() == {"a": 0, "b": 0, "c": 1, "new": 0}


@pytest.mark.parametrize("change", ["compact", "delete", "overwrite"])
def test_files_replaced_meanwhile_are_a_conflict_and_change_nothing(local, change):
    local.create()
    local.append(ROWS)
    connector = local.connector()
    manifest = prepare(connector, "run")
    if change == "compact":
        local.compact()
    elif change == "delete":
        local.open().delete("text = 'a'")
    else:
        local.overwrite(ROWS)
    expected = local.rows()
    name = local.format_name.title()
    with pytest.raises(ConflictError, match=f"was removed from the {name} table or replaced since it was read"):
        connector.commit(manifest, idempotency_key="run")
    assert local.rows() == expected
    assert connector.read_log() == []


def test_a_lost_answer_is_recognised(local, monkeypatch):
    local.create()
    before = local.number()
    commit = local.module.replace_files

    def unanswered(*arguments):
        commit(*arguments)
        raise UnavailableError("no answer")

    monkeypatch.setattr(local.module, "replace_files", unanswered)
    version = publish(local.connector(), "run")
    assert (version.number, version.created, local.number()) == (before + 1, True, before + 1)


def test_a_writer_that_appends_all_the_time_loses_nothing(table):
    table.create()
    with table.writer("append", 6) as writer:
        assert writer.stdout.readline() == "0\n", writer.stderr.read()
        version = publish(table.connector(), "run")
        _, said = writer.communicate(timeout=60)
    assert writer.returncode == 0, said
    assert version.created
    texts = [row["text"] for row in table.rows()]
    assert sorted(texts) == sorted([*"abc", *(f"appended {number}" for number in range(6))])
    assert {text: weight for text, weight in table.weights().items() if text in "abc"} == {"a": 0, "b": 1, "c": 2}
    assert table.num_ours() == 1


def test_processes_that_publish_at_once_commit_every_run_once(table):
    table.create()
    publishers = [table.writer("publish", run) for run in ("one", "one", "two")]
    said = [publisher.communicate(timeout=120) for publisher in publishers]
    assert [publisher.returncode for publisher in publishers] == [0, 0, 0], said
    assert sorted(out.split()[1] for out, _ in said) == ["False", "True", "True"]
    assert sorted(v.idempotency_key for v in table.connector().read_log()) == ["one", "two"]
    assert sorted(table.weights()) == ["a", "b", "c"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_leaves_the_old_version_or_the_new_one_and_the_same_call_completes(local, when):
    local.create()
    before, expected = local.number(), local.rows()
    crashed = local.writer("publish", "run", when)
    crashed.communicate(timeout=60)
    assert crashed.returncode == 9
    assert (local.rows() == expected) is (when == "before")
    version = publish(local.connector(), "run")
    assert (version.number, version.created, local.number()) == (before + 1, when == "before", before + 1)
    assert local.weights() == {"a": 0, "b": 1, "c": 2}


# manifests ---------------------------------------------------------------------------------------------------------


def test_a_published_version_whose_manifest_is_gone_is_read_as_it_is(local):
    local.create()
    connector = local.connector()
    publish(connector, "one")
    for info in list_objects(connector.data, prefix="_curator"):
        delete(connector.data, info.path)
    (file,) = connector.read_corpus().files
    folders = {"delta": "curator/one/", "iceberg": "curator/one-fields-4-5/"}
    assert file.path.startswith(folders[local.format_name])
    assert connector.current(connector.read_corpus()).files[0].published_path == file.path
    publish(connector, "two")
    assert {row["weight_run_id"] for row in local.rows()} == {"two"}


def test_the_manifest_that_a_commit_names_is_checked(local):
    local.create()
    connector = local.connector()
    version = publish(connector, "run")
    named = f"version {local.number()} of the {local.format_name.title()} table"
    with pytest.raises(CorruptFileError, match=f"is not what {named}"):
        connector.read_manifest(replace(version, manifest_hash="0" * 32))


# garbage -----------------------------------------------------------------------------------------------------------


def test_of_a_table_that_goes_which_no_commit_names_and_copies_stay(table):
    table.create()
    connector = table.connector()
    for run in ("one", "two"):
        publish(connector, run)
    root, destination = connector.data, substore(connector.data, "_curator")
    left = [(destination, f"manifests/{'0' * 32}-7.json"), (destination, f".probe-{'1' * 32}")]
    left += [(root, f"curator/.probe-{'2' * 32}")]
    theirs = [(destination, "manifests/notes.json"), (destination, "runs/x.json"), (root, "curator/left/a.parquet")]
    kept = {(store.url, info.path) for store in (root, destination) for info in list_objects(store)}
    for store, path in left + theirs:
        write_object(store, path, b"x")
    if root.is_remote:
        bucket, _, key = root.full_path("curator/one/a.parquet").partition("/")
        root.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)

    def find(grace):
        return find_table_garbage(destination, root, connector.named_manifests, grace_seconds=grace)

    assert find(60) == []
    found = find(-5)
    uploads = [(root, "curator/one/a.parquet")] if root.is_remote else []
    assert {(store.url, item.path) for store, item in found} == {(store.url, path) for store, path in left + uploads}
    assert all(remove_garbage(store, item) for store, item in found)
    now = {(store.url, info.path) for store in (root, destination) for info in list_objects(store)}
    assert kept <= now
    assert {(store.url, path) for store, path in theirs} <= now
    assert find(-5) == []
    assert {row["weight_run_id"] for row in table.rows()} == {"two"}


# credentials -------------------------------------------------------------------------------------------------------


def test_credentials_are_nowhere(table_class, s3_place, tmp_path, caplog):
    table = table_class(tmp_path, s3_place)
    table.create()
    connector = table.connector()
    publish(connector, "run")
    store = s3_place.store()
    written = b"".join(read_bytes(store, info.path) for info in list_objects(store))
    written += b"".join(path.read_bytes() for path in tmp_path.iterdir())  # Iceberg's catalog
    shown = repr(connector) + repr(connector.read_corpus()) + repr(connector.read_log()) + caplog.text
    for secret in (s3_place.options["secret"], s3_place.options["key"]):
        assert secret.encode() not in written
        assert secret not in shown
    refusals = {"delta": "cannot reach the Delta table s3://", "iceberg": "demo.lake.docs"}
    with pytest.raises(ConnectorError, match=refusals[table.format_name]) as caught:
        connect(table.url, {**s3_place.options, "secret": "unutterable-secret"}).read_corpus()
    assert "unutterable" not in str(caught.value)
    assert s3_place.options["key"] not in str(caught.value)
