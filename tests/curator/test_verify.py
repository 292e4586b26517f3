"""`Lake.verify`: every way in which a version can be not what was published is found and named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator
from connectors.commit import commit, read_log, read_manifest
from curator.errors import InputError, NotFoundError


@pytest.fixture
def lake(learned):
    with curator.open_lake(str(learned.lake)) as opened:
        opened.publish(learned.run_id)
        yield opened


def errors(found):
    return [(finding.path.rpartition("/")[2], finding.said) for finding in found.findings if finding.level == "error"]


def copies(lake):
    return sorted(Path(lake.history()[0].location).glob("*.parquet"))


def commit_edited(lake, edit, **changes):
    """A second version whose first file was put through `edit`, its size recorded as it is."""
    manifest = read_manifest(lake.destination, read_log(lake.destination)[0])
    first = manifest.files[0]
    source = Path(lake.destination.full_path(first.published_path))
    place = source.with_name("edited.parquet")
    pq.write_table(edit(pq.read_table(source)), place)
    path = first.published_path.rpartition("/")[0] + "/edited.parquet"
    edited = replace(first, published_path=path, size_bytes=place.stat().st_size)
    commit(
        lake.destination, replace(manifest, files=(edited, *manifest.files[1:]), **changes), idempotency_key="edited"
    )


def with_column(name, values):
    def edit(table):
        index = table.schema.get_field_index(name)
        made = values(table[name].to_numpy().copy())
        return table.set_column(index, table.schema.field(name), pa.array(made, table.schema.field(name).type))

    return edit


def test_a_version_that_is_sound(lake, learned):
    told = []
    for deep in (False, True):
        found = lake.verify(deep=deep, on_progress=told.append)
        assert (found.version, found.run_id, found.num_files, found.num_rows) == (1, learned.run_id, 3, 72)
        assert (found.findings, found.is_sound, found.deep) == ((), True, deep)
    assert [state.done for state in told] == [24, 48, 72] * 2


def test_objects_that_are_gone_or_of_another_size_are_all_named(lake):
    east, north, south = copies(lake)
    east.unlink()
    north.write_bytes(north.read_bytes()[:-9])
    found = lake.verify()
    assert not found.is_sound
    assert errors(found) == [
        ("east.parquet", "is gone"),
        ("north.parquet", f"has {north.stat().st_size:,} bytes, {north.stat().st_size + 9:,} were published"),
    ]
    assert south.exists()


def test_a_footer_that_cannot_be_read(lake):
    (east, *_) = copies(lake)
    data = east.read_bytes()
    east.write_bytes(data[:-4] + b"XXXX")
    ((name, said),) = errors(lake.verify())
    assert name == "east.parquet"
    assert "is not a Parquet file or was cut short" in said


@pytest.mark.parametrize(("column", "found_by_weights"), [("sample_weight", True), ("text", False)])
def test_pages_that_cannot_be_decoded_are_found_where_they_are_read(lake, column, found_by_weights):
    """A shallow check reads the weights, a deep one every column."""
    (east, *_) = copies(lake)
    index = pq.read_schema(east).get_field_index(column)
    chunk = pq.read_metadata(east).row_group(0).column(index)
    data = bytearray(east.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    east.write_bytes(data)
    assert bool(errors(lake.verify())) == found_by_weights
    ((name, said),) = errors(lake.verify(deep=True))
    assert name == "east.parquet"
    assert "damaged" in said


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda table: table.slice(1), "has 23 rows, 24 were published"),
        (lambda table: table.drop_columns(["domain_weight"]), "has no column 'domain_weight'"),
        (
            lambda table: table.set_column(3, "sample_weight", table["sample_weight"].cast("double")),
            "has a column 'sample_weight' of type double, float was published",
        ),
        (
            with_column("sample_weight", lambda w: np.where(np.arange(24) == 5, np.nan, w)),
            "has a sample_weight that is negative or not a finite number",
        ),
        (
            with_column("sample_weight", lambda w: -w),
            "has a sample_weight that is negative or not a finite number",
        ),
        (
            with_column("domain_weight", lambda w: np.where(np.arange(24) == 5, np.inf, w)),
            "has a domain_weight that is negative or not a finite number",
        ),
        (
            with_column("weight_run_id", lambda ids: np.where(np.arange(24) == 5, "other", ids)),
            "has weights of run 'other', the version is of 'RUN'",
        ),
        (
            with_column("weight_run_id", lambda ids: [None, *ids[1:]]),
            "has rows in which some of the three weight columns are null and others are not",
        ),
    ],
)
def test_rows_that_are_not_what_was_published(lake, learned, edit, said):
    commit_edited(lake, edit)
    assert ("edited.parquet", said.replace("RUN", learned.run_id)) in errors(lake.verify())
    assert lake.verify(1).is_sound


def test_weights_that_do_not_add_up(lake):
    commit_edited(lake, with_column("sample_weight", lambda w: w * 2))
    ((_, said),) = errors(lake.verify())
    assert said.startswith("the mean sample_weight is ")
    assert said.endswith(", not 1")


def test_a_domain_weight_that_no_domain_has(lake):
    commit_edited(lake, with_column("domain_weight", lambda w: w / 2))
    ((_, said),) = errors(lake.verify())
    assert said.startswith("1 values of domain_weight, first ")


def test_domain_weights_that_do_not_sum_to_one(lake):
    manifest = read_manifest(lake.destination, read_log(lake.destination)[0])
    domains = [{**row, "domain_weight": row["domain_weight"] * 1.5} for row in manifest.extra["domains"]]
    commit_edited(lake, lambda table: table, extra={**manifest.extra, "domains": domains})
    said = [sentence for _, sentence in errors(lake.verify())]
    assert said[0] == "the domain weights sum to 1.500000, not to 1"


def test_a_manifest_that_was_changed(lake, learned):
    (manifest,) = (learned.state / "manifests").glob("*.json")
    manifest.write_text(manifest.read_text().replace("72", "73") + " ")
    ((name, said),) = errors(lake.verify())
    assert name == manifest.name
    assert "is not the manifest that version 1 committed" in said


def test_sources_that_changed_since_are_notes(lake, learned):
    (learned.lake / "east.parquet").unlink()
    pq.write_table(pq.read_table(learned.lake / "north.parquet").slice(1), learned.lake / "north.parquet")
    with curator.open_lake(str(learned.lake)) as again:
        found = again.verify()
    assert found.is_sound
    assert [(finding.level, finding.path, finding.said) for finding in found.findings] == [
        ("note", "east.parquet", "the source is gone since the version was made"),
        ("note", "north.parquet", "the source has changed since the version was made"),
    ]
    for path in learned.lake.glob("*.parquet"):
        path.unlink()
    with curator.open_lake(str(learned.lake)) as again:
        (note,) = again.verify().findings
        assert (note.level, note.said[:26]) == ("note", "the lake cannot be listed:")


def test_rows_that_had_left_the_lake_are_a_note(learned):
    (learned.lake / "east.parquet").unlink()
    with curator.open_lake(str(learned.lake)) as lake:
        lake.publish(learned.run_id)
        found = lake.verify()
    assert found.is_sound
    (note,) = found.findings
    assert note.said.startswith("24 rows of the run were not in the lake any more; the mean sample_weight is ")


def test_versions_that_are_not_there_and_a_log_that_is_damaged(lake, learned):
    with pytest.raises(NotFoundError, match="has no version 9"):
        lake.verify(9)
    next((learned.state / "log").glob("*.json")).write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        lake.verify()
