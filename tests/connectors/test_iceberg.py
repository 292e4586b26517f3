"""Iceberg tables, written and read back by pyiceberg itself, by polars and by DuckDB; on a local disk and on S3."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors import duck
from connectors.errors import (
    ConflictError,
    ConnectorError,
    CorruptFileError,
    InputError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from connectors.store import delete, list_objects, read_bytes

pyiceberg = pytest.importorskip("pyiceberg", reason="needs the extra [iceberg]")

from iceberg_writer import connect, load  # noqa: E402  # they need it, too
from pyiceberg.catalog.sql import SqlCatalog  # noqa: E402
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat  # noqa: E402
from pyiceberg.transforms import (  # noqa: E402
    DayTransform,
    IdentityTransform,
    TruncateTransform,
    YearTransform,
)
from pyiceberg.typedef import Record  # noqa: E402
from pyiceberg.types import LongType, StringType  # noqa: E402
from table_cases import prepare, publish  # noqa: E402

from connectors import _iceberg_table as iceberg  # noqa: E402
from connectors._iceberg_catalog import catalog_properties, parse_address  # noqa: E402

ROWS = pa.table({"text": ["a", "b", "c"], "domain": ["x", "y", "x"], "score": pa.array([3, 1, 2], pa.int64())})
NEW = pa.table({"text": ["new"], "domain": ["z"], "score": pa.array([9], pa.int64())})
WRITER = Path(__file__).with_name("iceberg_writer.py")
IDENTITY = IdentityTransform()


class TestTable:
    """A real Iceberg table in a SQL catalog, and what its other users see of it."""

    __test__ = False

    def __init__(self, folder, warehouse=None, options=None):
        self.folder = folder
        self.given = options
        self.warehouse = warehouse or f"file://{folder}"
        self.url = f"iceberg:sqlite:///{folder}/catalog.db#demo.lake.docs"

    @property
    def root(self):
        return Path(self.folder, "lake", "docs")

    def catalog(self):
        (self.folder / "catalog.db").touch()
        properties = catalog_properties(parse_address(self.url), self.given)
        return SqlCatalog("demo", **properties | {"warehouse": self.warehouse, "init_catalog_tables": "true"})

    def create(self, rows=ROWS, partitions=None, files=None, **properties):
        """A table with these rows, partitioned by {column: transform}."""
        with self.catalog() as catalog:
            catalog.create_namespace_if_not_exists("lake")
            table = catalog.create_table("lake.docs", schema=rows.schema, properties=properties)
            with table.update_spec() as spec:
                for column, transform in (partitions or {}).items():
                    spec.add_field(column, transform)
            if files:
                table.add_files(files)
            elif rows.num_rows:
                table.append(rows)

    def connector(self):
        return connect(self.url, self.given)

    def open(self):
        return load(self.url, self.given)

    def append(self, rows=NEW):
        self.open().append(rows)

    def rows(self, snapshot_id=None):
        """The rows as pyiceberg reads them, sorted by text."""
        return self.open().scan(snapshot_id=snapshot_id).to_arrow().sort_by("text").to_pylist()

    def weights(self):
        return {row["text"]: row["sample_weight"] for row in self.rows()}

    def paths(self):
        return [task.file.file_path for task in self.open().scan().plan_files()]

    def writer(self, task, *arguments):
        command = [sys.executable, str(WRITER), task, self.url, json.dumps(self.given), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def local(tmp_path):
    return TestTable(tmp_path)


@pytest.fixture(params=["local", "s3"])
def table(request, tmp_path):
    if request.param == "local":
        return TestTable(tmp_path)
    place = request.getfixturevalue("s3_place")
    return TestTable(tmp_path, place.url, place.options)


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


def test_without_pyiceberg_the_extra_is_named():
    code = (
        "import sys; sys.modules['pyiceberg'] = None\n"
        "from connectors.connector import read_corpus\nread_corpus('iceberg:demo.lake.docs')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "MissingExtraError: iceberg: needs an optional dependency: pip install 'lake-curator[iceberg]'" in done.stderr
    )


# reading -----------------------------------------------------------------------------------------------------------


def test_the_corpus_is_what_the_newest_snapshot_names(table):
    table.create(partitions={"domain": IDENTITY})
    table.open().overwrite(ROWS.slice(0, 1))
    table.append(ROWS.slice(1, 1))
    corpus = table.connector().read_corpus()
    assert [(file.partition, file.num_rows) for file in corpus.files] == [({"domain": "x"}, 1), ({"domain": "y"}, 1)]
    assert corpus.schema.names == ["text", "domain", "score"]
    assert len(list_objects(corpus.store, ".parquet")) == 4


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
        local.create(rows, partitions={"part": transform})
    else:  # pyiceberg itself writes these by another package only
        local.root.mkdir(parents=True)
        for number in range(3):
            pq.write_table(rows.slice(number, 1), local.root / f"{number}.parquet")
        files = [f"file://{local.root}/{number}.parquet" for number in range(3)]
        local.create(rows, partitions={"part": transform}, files=files)
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
        numbered = [b"PARQUET:field_id" in (f.metadata or {}) for f in pq.read_schema(path.removeprefix("file://"))]
        assert numbered == ["one.parquet" not in path] * 5


@pytest.mark.parametrize("folder", ["domain=x", "first"])
def test_a_partition_column_that_only_the_path_has_is_read_from_it(local, folder):
    """As Spark takes Hive tables in place; pyiceberg's `add_files` wants the column in the file."""
    local.create(ROWS.slice(0, 0), partitions={"domain": IDENTITY})
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


def test_an_empty_table_and_one_that_lost_a_file_are_refused(local):
    local.create(ROWS.slice(0, 0))
    with pytest.raises(NotFoundError, match="has no rows yet"):
        local.connector().read_corpus()
    local.append(ROWS)
    (path,) = local.paths()
    Path(path.removeprefix("file://")).unlink()
    with pytest.raises(CorruptFileError, match=r"parquet, which the Iceberg table names, is not there"):
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
        entry = {"file_path": path, "file_format": FileFormat.PARQUET, "partition": Record(), "record_count": 1}
        entry |= {"file_size_in_bytes": 4, "spec_id": 0}
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


def test_a_publication_is_one_snapshot_that_every_reader_sees(table, monkeypatch):
    import polars as pl

    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else polars asks for a plugin of its own

    table.create(partitions={"domain": IDENTITY})
    before = table.open()
    version = publish(table.connector(), "run")
    after = table.open()
    assert (version.number, version.created, len(after.snapshots())) == (2, True, 2)
    assert after.current_snapshot().summary["run_id"] == "run"
    assert after.current_snapshot().summary["total-records"] == "3"
    assert len(after.metadata.metadata_log) == len(before.metadata.metadata_log) + 1
    assert table.weights() == {"a": 0, "b": 0, "c": 1}
    assert after.schema().fields[:3] == before.schema().fields
    assert table.rows(before.current_snapshot().snapshot_id) == ROWS.to_pylist()
    options = after.io.properties if table.given else None
    scanned = pl.scan_iceberg(after, storage_options=options).filter(pl.col("sample_weight") > 0).collect()
    assert scanned["text"].to_list() == ["c"]
    with duck.connect() as connection:
        store = table.connector().data
        duck.register_store(connection, store)
        paths = [path.removeprefix("file://").removeprefix(store.url + "/") for path in table.paths()]
        listed = ", ".join(duck.quote_literal(duck.duck_path(store, path)) for path in paths)
        read = connection.execute(f"SELECT text, weight_run_id FROM read_parquet([{listed}]) ORDER BY 1").fetchall()
    assert read == [("a", "run"), ("b", "run"), ("c", "run")]


def test_the_copies_have_the_field_ids_of_the_schema(local):
    local.create()
    with local.open().update_schema() as schema:
        schema.add_column("later", StringType())
    publish(local.connector(), "run")
    (path,) = local.paths()
    told = {f.name: int(f.metadata[b"PARQUET:field_id"]) for f in pq.read_schema(path.removeprefix("file://"))}
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


def test_a_key_is_committed_once(table):
    table.create()
    connector = table.connector()
    first = publish(connector, "run")
    again = publish(table.connector(), "run")
    assert (again, again.created) == (first, False)
    assert len(table.open().snapshots()) == 2
    assert [version.number for version in connector.read_log()] == [2]


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
    assert table.open().schema().column_names == [*ROWS.schema.names, "sample_weight", "weight_run_id"]


def test_once_the_sources_were_cleaned_away_the_copies_are_the_source(local):
    local.create()
    publish(local.connector(), "one")
    for run in ("two", "three"):
        newest = local.open()
        old = [s.snapshot_id for s in newest.snapshots() if s.snapshot_id != newest.current_snapshot().snapshot_id]
        newest.maintenance.expire_snapshots().by_ids(old).commit()
        named = {path.removeprefix("file://") for path in local.paths()}
        for path in local.root.rglob("*.parquet"):
            if str(path) not in named:
                path.unlink()
        publish(local.connector(), run)
        assert local.connector().read_manifest(local.connector().read_log()[-1]).run_id == run
        assert {row["weight_run_id"] for row in local.rows()} == {run}
        (path,) = local.paths()
        assert (path.count("curator/"), path.count("from-")) == (1, 1)
    assert [(row["text"], row["score"]) for row in local.rows()] == [("a", 3), ("b", 1), ("c", 2)]


def test_files_that_another_writer_compacts_keep_their_weights(local):
    local.create()
    local.append(ROWS)
    connector = local.connector()
    publish(connector, "one")
    newest = local.open()
    newest.overwrite(newest.scan().to_arrow())
    corpus = connector.read_corpus()
    assert (len(corpus.files), corpus.num_rows, corpus.schema.names) == (1, 6, ROWS.schema.names)
    assert [file.published_path for file in connector.current(corpus).files] == [corpus.files[0].path]
    publish(connector, "two")
    assert [row["weight_run_id"] for row in local.rows()] == ["two"] * 6


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


def test_rows_appended_meanwhile_stay_without_weights(table):
    table.create(partitions={"domain": IDENTITY})
    connector = table.connector()
    manifest = prepare(connector, "run")
    table.append()
    version = connector.commit(manifest, idempotency_key="run")
    assert version.number == 3
    assert table.weights() == {"a": 0, "b": 0, "c": 1, "new": None}
    publish(connector, "next")
    assert table.weights() == {"a": 0, "b": 0, "c": 1, "new": 0}


@pytest.mark.parametrize("change", ["compact", "delete", "overwrite"])
def test_files_replaced_meanwhile_are_a_conflict_and_change_nothing(local, change):
    local.create()
    connector = local.connector()
    manifest = prepare(connector, "run")
    if change == "compact":
        local.open().overwrite(local.open().scan().to_arrow())
    elif change == "delete":
        local.open().delete("text = 'a'")
    else:
        local.open().overwrite(NEW)
    expected = local.rows()
    with pytest.raises(ConflictError, match="was removed from the Iceberg table or replaced since it was read"):
        connector.commit(manifest, idempotency_key="run")
    assert local.rows() == expected
    assert connector.read_log() == []


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
    commit = iceberg.replace_files
    attempts = []

    def overtaken(*arguments):
        attempts.append(1)
        if len(attempts) == 1 and change == "append":
            local.append()
        elif len(attempts) == 1 and change == "branch":
            newest = local.open()
            newest.manage_snapshots().create_branch(newest.current_snapshot().snapshot_id, "other").commit()
            local.open().append(NEW, branch="other")
        elif len(attempts) == 1 and change == "compact":
            local.open().overwrite(local.open().scan().to_arrow())
        elif len(attempts) == 1:
            with local.open().update_schema() as schema:
                schema.add_column("theirs", LongType())
        commit(*arguments)

    monkeypatch.setattr(iceberg, "replace_files", overtaken)
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
    commit = iceberg.replace_files

    def overtaken(*arguments):
        if "sample_weight" in local.open().schema().column_names:
            with local.open().update_schema() as schema:
                schema.delete_column("sample_weight")
        commit(*arguments)

    monkeypatch.setattr(iceberg, "replace_files", overtaken)
    with pytest.raises(ConflictError, match=r"columns were added to the Iceberg table .* or dropped"):
        connector.commit(manifest, idempotency_key="two")
    assert {version.run_id for version in connector.read_log()} == {"one"}


def test_a_lost_answer_is_recognised(local, monkeypatch):
    local.create()
    commit = iceberg.replace_files

    def unanswered(*arguments):
        commit(*arguments)
        raise UnavailableError("no answer")

    monkeypatch.setattr(iceberg, "replace_files", unanswered)
    version = publish(local.connector(), "run")
    assert (version.number, version.created, len(local.open().snapshots())) == (2, True, 2)


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
    assert sum("lake-curator" in s.summary.additional_properties for s in table.open().snapshots()) == 1


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
    expected = local.rows()
    crashed = local.writer("publish", "run", when)
    crashed.communicate(timeout=60)
    assert crashed.returncode == 9
    assert (local.rows() == expected) is (when == "before")
    version = publish(local.connector(), "run")
    assert (version.number, version.created, len(local.open().snapshots())) == (2, when == "before", 2)
    assert local.weights() == {"a": 0, "b": 1, "c": 2}


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
    Path(path.removeprefix("file://")).unlink()
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


def test_a_published_version_whose_manifest_is_gone_is_read_as_it_is(local):
    local.create()
    connector = local.connector()
    publish(connector, "one")
    for info in list_objects(connector.data, prefix="_curator"):
        delete(connector.data, info.path)
    (file,) = connector.read_corpus().files
    assert file.path.startswith("curator/one-fields-4-5/")
    assert connector.current(connector.read_corpus()).files[0].published_path == file.path
    publish(connector, "two")
    assert {row["weight_run_id"] for row in local.rows()} == {"two"}


def test_the_manifest_that_a_commit_names_is_checked(local):
    local.create()
    connector = local.connector()
    version = publish(connector, "run")
    with pytest.raises(CorruptFileError, match="is not what version 2 of the Iceberg table"):
        connector.read_manifest(replace(version, manifest_hash="0" * 32))


# credentials -------------------------------------------------------------------------------------------------------


def test_credentials_are_nowhere(s3_place, tmp_path, caplog):
    table = TestTable(tmp_path, s3_place.url, s3_place.options)
    table.create()
    connector = table.connector()
    publish(connector, "run")
    store = s3_place.store()
    written = b"".join(read_bytes(store, info.path) for info in list_objects(store))
    written += (tmp_path / "catalog.db").read_bytes()
    shown = repr(connector) + repr(connector.read_corpus()) + repr(connector.read_log()) + caplog.text
    for secret in (s3_place.options["secret"], s3_place.options["key"]):
        assert secret.encode() not in written
        assert secret not in shown
    with pytest.raises(ConnectorError, match=r"demo.lake.docs") as caught:
        connect(table.url, {**s3_place.options, "secret": "unutterable-secret"})
    assert "unutterable" not in str(caught.value)
    assert s3_place.options["key"] not in str(caught.value)


def test_credentials_of_the_catalog_reach_the_files(s3_place, tmp_path):
    """As a named catalog has them in pyiceberg's configuration, and no storage options are given."""
    table = TestTable(tmp_path, s3_place.url, s3_place.options)
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


def test_diff_tells_files_gained_and_lost(local):
    local.create()
    connector = local.connector()
    first = {file.path for file in connector.read_corpus().files}
    local.append()
    both = {file.path for file in connector.read_corpus().files}
    created, appended = (snapshot.sequence_number for snapshot in local.open().snapshots())
    assert (set(connector.diff(created).added), connector.diff(created).removed) == (both - first, ())
    assert len(both - first) == 1
    before = connector.revision()
    publish(connector, "run")  # copies of ours count as their sources
    assert (connector.diff(appended).added, connector.diff(appended).removed) == ((), ())
    assert {info.path for info in connector.list_files()} == both
    assert connector.revision() == connector.revision() != before
    local.open().overwrite(local.open().scan().to_arrow())
    now = {file.path for file in connector.read_corpus().files}
    assert (set(connector.diff(appended).added), set(connector.diff(appended).removed)) == (now, both)
    with pytest.raises(NotFoundError, match="has no snapshot 99"):
        connector.diff(99)
