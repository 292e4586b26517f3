"""Iceberg tables beyond what `test_tables.py` has of them: catalogs, field ids, and what only this format has."""

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.errors import ConflictError, InputError, NotFoundError, UnavailableError, UnsupportedError

pyiceberg = pytest.importorskip("pyiceberg", reason="needs the extra [iceberg]")

from iceberg_cases import IDENTITY, IcebergCase  # noqa: E402  # they need it, too
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat  # noqa: E402
from pyiceberg.transforms import DayTransform, TruncateTransform, YearTransform  # noqa: E402
from pyiceberg.typedef import Record  # noqa: E402
from pyiceberg.types import LongType, StringType  # noqa: E402
from table_cases import NEW, ROWS, connect, overtake, prepare, publish  # noqa: E402

from connectors import _iceberg_table as iceberg  # noqa: E402


@pytest.fixture
def table_class():
    return IcebergCase


# addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["iceberg:docs", "iceberg:lake.docs", "iceberg:demo..docs", "iceberg:sqlite:///c.db#a.b"]
)
def test_an_address_that_names_no_table_is_refused(url):
    with pytest.raises(InputError, match=r"does not name an Iceberg table; write iceberg:CATALOG\.NAMESPACE\.TABLE"):
        connect(url, None)


def test_an_address_with_a_password_is_refused():
    with pytest.raises(InputError, match=r"holds a password; give the catalog's uri in ~/\.pyiceberg\.yaml") as caught:
        connect("iceberg:postgresql://me:unutterable@host/db#demo.lake.docs", None)
    assert "unutterable" not in str(caught.value)


def test_what_is_not_there_is_named_and_not_made(local, monkeypatch):
    with pytest.raises(NotFoundError, match=r"catalog.db does not exist; check the address"):
        local.connector()
    assert list(local.folder.iterdir()) == []
    with pytest.raises(NotFoundError, match="pyiceberg's configuration has no catalog 'nowhere'"):
        connect("iceberg:nowhere.lake.docs", None)
    local.create()
    for wrong in ("demo.lake.other", "demo.other.docs", "other.lake.docs"):
        with pytest.raises(NotFoundError, match=f"the catalog has no Iceberg table {wrong}"):
            connect(local.url.replace("demo.lake.docs", wrong), None)
    (local.folder / "empty.db").touch()
    with pytest.raises(UnavailableError, match=r"the catalog of the Iceberg table demo\.lake\.docs did not answer"):
        connect(local.url.replace("catalog.db", "empty.db"), None)


@pytest.mark.parametrize("place", ["file", "variable"])
def test_a_catalog_of_pyicebergs_configuration_is_found(local, place):
    local.create()
    uri = f"sqlite:///{local.folder}/catalog.db"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYICEBERG_")}
    if place == "file":
        (local.folder / ".pyiceberg.yaml").write_text(f"catalog:\n  demo:\n    uri: {uri}\n")
        variables["PYICEBERG_HOME"] = str(local.folder)
    else:
        variables["PYICEBERG_CATALOG__DEMO__URI"] = uri
    code = "from connectors.connector import read_corpus\nprint(read_corpus('iceberg:demo.lake.docs').num_rows)"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stderr


# reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "values"),
    [
        (IDENTITY, ["1/2", "ä = %20", None]),
        (IDENTITY, [date(2024, 2, 29), date(1999, 1, 1), None]),
        (IDENTITY, [True, False, None]),
        (TruncateTransform(1), ["one", "two", None]),
        (DayTransform(), [date(2024, 2, 29), date(1999, 1, 1), None]),
        (YearTransform(), [date(2024, 2, 29), date(1999, 1, 1), None]),
    ],
)
def test_partitions_of_any_kind_survive_a_publication(local, transform, values):
    rows = pa.table({"text": ["a", "b", "c"], "part": values})
    if transform is IDENTITY:
        local.create(rows, partition_by=["part"])
    else:  # pyiceberg itself writes these by another package only
        local.root.mkdir(parents=True)
        for number in range(3):
            pq.write_table(rows.slice(number, 1), local.root / f"{number}.parquet")
        files = [f"file://{local.root}/{number}.parquet" for number in range(3)]
        local.create(rows, partition_by=["part"], transform=transform, files=files)
    before = {row["text"]: row["part"] for row in local.rows()}
    partitions = local.open().inspect.partitions()["partition"].to_pylist()
    assert len(partitions) == 3
    publish(local.connector(), "run")
    assert {row["text"]: row["part"] for row in local.rows()} == before
    assert local.weights() == dict.fromkeys("abc", 0)
    after = local.open().inspect.partitions()["partition"].to_pylist()
    assert sorted(map(str, after)) == sorted(map(str, partitions))
    picked = local.open().scan(row_filter="part is null").to_arrow()
    assert picked["text"].to_pylist() == ["c"]


def test_a_table_of_names_that_parquet_writers_change_is_published(local):
    local.create(ROWS.rename_columns(["text", "domain", "a-b c"]))
    assert local.connector().read_corpus().schema.names == ["text", "domain", "a_x2Db_x20c"]
    publish(local.connector(), "run")
    assert [row["a-b c"] for row in local.rows()] == [3, 1, 2]
    assert local.weights() == {"a": 0, "b": 1, "c": 2}


def test_files_without_field_ids_are_read_by_the_name_mapping(local):
    """Parquet files that were there first, taken in place as `add_files` does."""
    (local.root / "raw").mkdir(parents=True)
    pq.write_table(ROWS, local.root / "raw" / "one.parquet")
    local.create(files=[f"file://{local.root}/raw/one.parquet"])
    connector = local.connector()
    assert [file.path for file in connector.read_corpus().files] == ["raw/one.parquet"]
    publish(connector, "one")
    local.append()
    publish(connector, "two")
    assert local.weights() == {"a": 0, "b": 1, "c": 2, "new": 0}
    for path in local.paths():
        numbered = [b"PARQUET:field_id" in (f.metadata or {}) for f in pq.read_schema(local.root / path)]
        assert numbered == ["one.parquet" not in path] * 5


@pytest.mark.parametrize("folder", ["domain=x", "first"])
def test_a_partition_column_that_only_the_path_has_is_read_from_it(local, folder):
    """As Spark takes Hive tables in place; pyiceberg's `add_files` wants the column in the file."""
    local.create(ROWS.slice(0, 0), partition_by=["domain"])
    place = local.root / "raw" / folder / "one.parquet"
    place.parent.mkdir(parents=True)
    pq.write_table(ROWS.drop_columns(["domain"]), place)
    with local.open().transaction() as transaction:
        mapping = transaction.table_metadata.schema().name_mapping.model_dump_json()
        transaction.set_properties({"schema.name-mapping.default": mapping})
        with transaction.update_snapshot().fast_append() as snapshot:
            entry = {"file_path": f"file://{place}", "file_format": FileFormat.PARQUET, "record_count": 3}
            entry |= {"file_size_in_bytes": place.stat().st_size, "spec_id": 1, "partition": Record("x")}
            snapshot.append_data_file(DataFile.from_args(content=DataFileContent.DATA, **entry))
    if folder == "first":
        with pytest.raises(UnsupportedError, match="nor its path tells its value of the partition column 'domain'"):
            local.connector().read_corpus()
    else:
        publish(local.connector(), "run")
        assert {row["domain"] for row in local.rows()} == {"x"}
        assert local.weights() == {"a": 0, "b": 1, "c": 2}


def test_an_empty_table_is_refused(local):
    local.create(ROWS.slice(0, 0))
    with pytest.raises(NotFoundError, match="has no rows yet"):
        local.connector().read_corpus()


def test_a_dropped_column_is_not_shown_and_a_renamed_one_is_refused(local):
    local.create()
    with local.open().update_schema() as schema:
        schema.delete_column("score")
    assert local.connector().read_corpus().schema.names == ["text", "domain"]
    publish(local.connector(), "run")
    assert local.rows()[2] == {"text": "c", "domain": "x", "sample_weight": 2, "weight_run_id": "run"}
    with local.open().update_schema() as schema:
        schema.rename_column("text", "body")
    with pytest.raises(UnsupportedError, match="column 'body' of the Iceberg table is called 'text' in"):
        local.connector().read_corpus()


def test_a_column_that_took_the_name_of_a_dropped_one_is_refused(local):
    local.create()
    with local.open().update_schema() as schema:
        schema.delete_column("score")
    with local.open().update_schema() as schema:
        schema.add_column("score", LongType())
    with pytest.raises(UnsupportedError, match="is not the one of that name in the Iceberg table, which was dropped"):
        local.connector().read_corpus()


def test_delete_files_are_refused(local):
    """An entry as merge-on-read writers make it; pyiceberg itself has none."""
    local.create()
    (path,) = local.paths()
    with local.open().transaction() as transaction, transaction.update_snapshot().fast_append() as snapshot:
        entry = {"file_path": f"file://{local.root}/{path}", "file_format": FileFormat.PARQUET, "record_count": 1}
        entry |= {"file_size_in_bytes": 4, "spec_id": 0, "partition": Record()}
        snapshot.append_data_file(DataFile.from_args(content=DataFileContent.POSITION_DELETES, **entry))
    with pytest.raises(UnsupportedError, match=r"has 1 delete file\(s\), so that rows of its data files are not all"):
        local.connector().read_corpus()


@pytest.mark.parametrize("is_hidden", [False, True])
def test_files_outside_the_tables_folder_are_refused(local, tmp_path, is_hidden):
    pq.write_table(ROWS, tmp_path / "elsewhere.parquet")
    local.root.mkdir(parents=True)
    folder = str(tmp_path)
    if is_hidden:  # it begins like the table's folder
        folder = f"{local.root}/" + "/".join([".."] * len(local.root.relative_to(tmp_path).parts))
    local.create(files=[f"file://{folder}/elsewhere.parquet"])
    with pytest.raises(UnsupportedError, match="names a file outside its folder"):
        local.connector().read_corpus()


def test_files_named_twice_are_refused(local):
    """Replacing one would replace both."""
    local.root.mkdir(parents=True)
    pq.write_table(ROWS, local.root / "one.parquet")
    local.create(files=[f"file://{local.root}/one.parquet"])
    local.open().add_files([f"file://{local.root}/one.parquet"], check_duplicate_files=False)
    with pytest.raises(UnsupportedError, match=r"names one\.parquet twice"):
        local.connector().read_corpus()


def test_what_cannot_be_published_is_refused_before_work(local):
    local.create(**{"format-version": "1"})
    assert local.connector().read_corpus().num_rows == 3
    with pytest.raises(UnsupportedError, match="has format version 1, whose snapshots have no numbers"):
        local.connector().check_writable()
    with local.open().transaction() as transaction:
        transaction.upgrade_table_version(2)
    assert local.connector().check_writable() is None
    with local.open().update_spec() as spec:
        spec.add_identity("domain")
    with pytest.raises(UnsupportedError, match=r"the partition spec of the Iceberg table .* has changed since"):
        local.connector().check_writable()


def test_format_version_3_is_refused(local):
    """Its metadata as another writer would have them; pyiceberg itself does not write it yet."""
    local.create()
    place = Path(local.open().metadata_location.removeprefix("file://"))
    place.write_text(json.dumps(json.loads(place.read_text()) | {"format-version": 3, "next-row-id": 3}))
    with pytest.raises(UnsupportedError, match="has format version 3, whose row ids and default values"):
        local.connector()


# publishing --------------------------------------------------------------------------------------------------------


def test_a_publication_is_one_snapshot_of_all_rows(table):
    table.create(partition_by=["domain"])
    before = table.open()
    version = publish(table.connector(), "run")
    after = table.open()
    assert (version.number, len(after.snapshots())) == (2, 2)
    assert after.current_snapshot().summary["run_id"] == "run"
    assert after.current_snapshot().summary["total-records"] == "3"
    assert len(after.metadata.metadata_log) == len(before.metadata.metadata_log) + 1


def test_the_copies_have_the_field_ids_of_the_schema(local):
    local.create()
    with local.open().update_schema() as schema:
        schema.add_column("later", StringType())
    publish(local.connector(), "run")
    (path,) = local.paths()
    told = {f.name: int(f.metadata[b"PARQUET:field_id"]) for f in pq.read_schema(local.root / path)}
    named = {field.name: field.field_id for field in local.open().schema().fields}
    assert named == {"text": 1, "domain": 2, "score": 3, "later": 4, "sample_weight": 5, "weight_run_id": 6}
    assert told == {name: number for name, number in named.items() if name != "later"}


def test_statistics_are_kept_and_given_for_the_new_columns(local):
    local.create()
    kept = local.open().inspect.files()["readable_metrics"].to_pylist()[0]
    publish(local.connector(), "run")
    (entry,) = local.open().inspect.files().to_pylist()
    metrics = entry["readable_metrics"]
    assert {name: metrics[name] for name in kept} == kept
    assert (metrics["sample_weight"]["lower_bound"], metrics["sample_weight"]["upper_bound"]) == (0, 2)
    assert (metrics["weight_run_id"]["value_count"], metrics["weight_run_id"]["null_value_count"]) == (3, 0)
    assert (entry["record_count"], entry["split_offsets"]) == (3, [4])
    assert list(local.open().scan(row_filter="sample_weight > 5").plan_files()) == []


def test_columns_that_the_owner_dropped_come_back_under_new_ids(local):
    local.create()
    connector = local.connector()
    publish(connector, "one")
    with local.open().update_schema() as schema:
        schema.delete_column("sample_weight")
    assert connector.read_corpus().schema.names == ROWS.schema.names
    publish(connector, "two")
    assert local.weights() == {"a": 0, "b": 1, "c": 2}
    assert connector.restore(2).number == 4
    assert {row["weight_run_id"] for row in local.rows()} == {"one"}
    assert local.weights() == {"a": 0, "b": 1, "c": 2}


# others at the same time -------------------------------------------------------------------------------------------


def test_columns_added_meanwhile_are_a_conflict_and_the_copies_are_staged_anew(local):
    """Else the copies would have the field id of another column, whose values they would show."""
    local.create()
    connector = local.connector()
    manifest = prepare(connector, "run")
    with local.open().update_schema() as schema:
        schema.add_column("theirs", LongType())
    with pytest.raises(ConflictError, match="columns were added to the Iceberg table"):
        connector.commit(manifest, idempotency_key="run")
    publish(connector, "run")
    assert local.weights() == {"a": 0, "b": 1, "c": 2}
    assert {row["theirs"] for row in local.rows()} == {None}


@pytest.mark.parametrize("change", ["append", "branch", "compact", "column"])
def test_a_commit_between_reading_and_committing_is_never_rebased_on_unseen(local, monkeypatch, change):
    """In a table with this isolation level pyiceberg's own retry goes on after what it has not looked at."""
    local.create(**{"write.delete.isolation-level": "snapshot"})
    connector = local.connector()
    manifest = prepare(connector, "run")

    def append_to_branch():
        newest = local.open()
        newest.manage_snapshots().create_branch(newest.current_snapshot().snapshot_id, "other").commit()
        local.open().append(NEW, branch="other")

    def add_column():
        with local.open().update_schema() as schema:
            schema.add_column("theirs", LongType())

    changes = {"append": local.append, "branch": append_to_branch, "compact": local.compact, "column": add_column}
    attempts = overtake(monkeypatch, local, changes[change])
    if change in ("append", "branch"):
        assert connector.commit(manifest, idempotency_key="run").number == 3
        assert len(attempts) == 2
    else:
        with pytest.raises(ConflictError, match=r"columns were added|was removed from the Iceberg table or replaced"):
            connector.commit(manifest, idempotency_key="run")
        assert connector.read_log() == []
    assert [row["text"] for row in local.rows()] == ["a", "b", "c", "new"][: 4 if change == "append" else 3]


def test_columns_dropped_at_the_last_moment_are_a_conflict(local, monkeypatch):
    """Else the snapshot would have files with columns that the table does not show."""
    local.create()
    connector = local.connector()
    publish(connector, "one")
    manifest = prepare(connector, "two")

    def drop_column():
        with local.open().update_schema() as schema:
            schema.delete_column("sample_weight")

    overtake(monkeypatch, local, drop_column)
    with pytest.raises(ConflictError, match=r"columns were added to the Iceberg table .* or dropped"):
        connector.commit(manifest, idempotency_key="two")
    assert {version.run_id for version in connector.read_log()} == {"one"}


# going back --------------------------------------------------------------------------------------------------------


def test_restore_makes_a_new_snapshot_of_the_rows_and_the_schema_of_an_older_one(table):
    table.create()
    connector = table.connector()
    publish(connector, "one")
    with table.open().update_schema() as schema:
        schema.add_column("later", StringType())
    table.append()
    publish(connector, "two")
    back = connector.restore(2)
    assert (back.number, back.run_id, back.created) == (5, "one", True)
    assert {row["weight_run_id"] for row in table.rows()} == {"one"}
    assert table.open().schema().column_names == [*ROWS.schema.names, "sample_weight", "weight_run_id"]
    assert table.weights() == {"a": 0, "b": 1, "c": 2}
    assert [version.run_id for version in connector.read_log()] == ["one", "two", "one"]
    assert connector.current(connector.read_corpus()).run_id == "one"
    assert len(table.open().history()) == 5
    for number in (1, 99):
        with pytest.raises(NotFoundError, match=f"has no version {number} of ours"):
            connector.restore(number)


def test_restore_does_not_hide_what_nobody_has_seen(local, monkeypatch):
    local.create()
    connector = local.connector()
    publish(connector, "one")
    publish(connector, "two")
    restore = iceberg.restore_snapshot

    def overtaken(*arguments):
        local.append()
        restore(*arguments)

    monkeypatch.setattr(iceberg, "restore_snapshot", overtaken)
    with pytest.raises(ConflictError, match="another writer committed to the Iceberg table"):
        connector.restore(2)
    assert sorted(local.weights()) == ["a", "b", "c", "new"]


def test_restore_of_files_that_are_gone_is_refused(local):
    local.create()
    connector = local.connector()
    publish(connector, "one")
    (path,) = local.paths()
    publish(connector, "two")
    (local.root / path).unlink()
    with pytest.raises(NotFoundError, match="which version 2 names, is gone"):
        connector.restore(2)


def test_what_the_owner_rolled_back_can_be_published_again(local):
    local.create()
    connector = local.connector()
    first = local.open().current_snapshot().snapshot_id
    publish(connector, "run")
    local.open().manage_snapshots().rollback_to_snapshot(first).commit()
    assert connector.read_log() == []
    assert connector.current(connector.read_corpus()) is None
    assert publish(connector, "run").created
    assert local.weights() == {"a": 0, "b": 1, "c": 2}


# credentials -------------------------------------------------------------------------------------------------------


def test_credentials_of_the_catalog_reach_the_files(s3_place, tmp_path):
    """As a named catalog has them in pyiceberg's configuration, and no storage options are given."""
    table = IcebergCase(tmp_path, s3_place)
    table.create()
    uri, properties = f"sqlite:///{tmp_path}/catalog.db", table.open().io.properties
    variables = {"PYICEBERG_CATALOG__DEMO__URI": uri}
    for name in ("s3.endpoint", "s3.access-key-id", "s3.secret-access-key", "s3.region"):
        if name in properties:
            variables["PYICEBERG_CATALOG__DEMO__" + name.upper().replace(".", "__").replace("-", "_")] = properties[
                name
            ]
    code = "from connectors.connector import read_corpus\nprint(read_corpus('iceberg:demo.lake.docs').num_rows)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.stdout == "3\n", done.stderr


def test_the_manifest_of_a_version_that_the_owner_rolled_back_behind_is_no_garbage(local):
    local.create()
    connector = local.connector()
    one, two = (publish(connector, run) for run in ("one", "two"))
    table = local.open()
    table.manage_snapshots().rollback_to_snapshot(table.snapshots()[-2].snapshot_id).commit()
    assert [version.run_id for version in connector.read_log()] == ["one"]
    assert connector.named_manifests() == {one.manifest_path, two.manifest_path}
