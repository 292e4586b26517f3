import errno
import json
import random
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from lake_cases import sentences, tree, write_rows

import curator
from connectors._filesystems import IsolatedMemoryFileSystem
from curator.errors import InputError, NotFoundError, StorageError, TryAgainError
from curator.weights import WeightIdentityError

WEIGHTS = ["sample_weight", "domain_weight", "weight_run_id"]


def publish(learned, **options):
    with curator.open_lake(str(learned.lake)) as lake:
        return lake.publish(learned.run_id, **options)


def forget_the_versions(learned):
    """As if nothing had been published, but the second time is another run's: a copy of the run under a new id."""
    record = json.loads((learned.state / "runs" / learned.run_id / "run.json").read_text())
    other = f"{learned.run_id}-again"
    shutil.copytree(learned.state / "runs" / learned.run_id, learned.state / "runs" / other)
    (learned.state / "runs" / other / "run.json").write_text(json.dumps(record | {"run_id": other}))
    return other


def published_files(publication):
    return sorted(Path(publication.location).rglob("*.parquet"))


def weights_by_id(lake):
    rows = lake.sql("SELECT sample_id, sample_weight, domain_weight, weight_run_id FROM samples").fetchall()
    return {row[0]: row[1:] for row in rows}


# what a version is ------------------------------------------------------------------------------------------------


def test_source_files_stay_as_they_are(learned):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in learned.lake.glob("*.parquet")}
    publish(learned)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in learned.lake.glob("*.parquet")} == before


def test_copies_keep_rows_row_groups_types_and_metadata_and_have_three_columns_more(learned):
    publication = publish(learned)
    copies = published_files(publication)
    assert [copy.name for copy in copies] == sorted(path.name for path in learned.lake.glob("*.parquet"))
    for copy in copies:
        old, new = pq.ParquetFile(learned.lake / copy.name), pq.ParquetFile(copy)
        assert new.schema_arrow.names == [*old.schema_arrow.names, *WEIGHTS]
        for name in old.schema_arrow.names:
            assert new.schema_arrow.field(name).equals(old.schema_arrow.field(name), check_metadata=True)
        assert [new.schema_arrow.field(name).type for name in WEIGHTS] == ["float", "float", "string"]
        sizes = [[f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] for f in (old, new)]
        assert sizes == [[10, 10, 4]] * 2
        assert new.read(columns=old.schema_arrow.names).equals(old.read())
        kept = {k: v for k, v in old.metadata.metadata.items() if k != b"ARROW:schema"}
        assert kept[b"owner"] == f"team {copy.stem}".encode()
        assert kept.items() <= new.metadata.metadata.items()
        assert json.loads(new.metadata.metadata[b"lake-curator"])["run_id"] == learned.run_id
        data = (learned.lake / copy.name).read_bytes()
        pages = data[: -8 - int.from_bytes(data[-8:-4], "little")]
        assert copy.read_bytes().startswith(pages)


def test_the_columns_hold_the_weights_of_the_run(learned):
    publication = publish(learned)
    with curator.open_lake(str(learned.lake)) as lake:
        run = lake.run(learned.run_id)
        expected = {row["sample_id"]: row["sample_weight"] for row in run.samples().to_pylist()}
        found = weights_by_id(lake)
        shares = {row["domain"]: row["domain_weight"] for row in run.record["domains"]}
        by_domain = lake.sql("SELECT DISTINCT domain, domain_weight FROM samples").fetchall()
    assert {sample_id: row[0] for sample_id, row in found.items()} == expected
    assert {row[2] for row in found.values()} == {learned.run_id}
    assert dict(by_domain) == pytest.approx(shares, rel=1e-6)
    assert (publication.num_rows, publication.num_files, publication.num_unweighted) == (72, 3, 0)
    assert publication.size_bytes == sum(path.stat().st_size for path in published_files(publication))


def test_weights_follow_the_id_of_a_row_not_its_place(learned):
    publish(learned)
    with curator.open_lake(str(learned.lake)) as lake:
        before = weights_by_id(lake)
    # the rows of all files, mixed and spread anew
    rows = [row for path in sorted(learned.lake.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    random.Random(1).shuffle(rows)
    schema = pq.read_schema(learned.lake / "north.parquet")
    for path in learned.lake.glob("*.parquet"):
        path.unlink()
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows[:50], schema), learned.lake / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[50:], schema), learned.lake / "b.parquet")
    with curator.open_lake(str(learned.lake)) as lake:
        publication = lake.publish(learned.run_id)
        assert (publication.version, publication.num_unweighted) == (2, 0)
        assert weights_by_id(lake) == before
        in_copy = pq.read_table(Path(publication.location) / "a.parquet").to_pylist()
        ids = lake.sql("SELECT text, sample_id FROM samples").fetchall()
    assert len({row["sample_weight"] for row in in_copy}) == 3  # the three domains, in the shuffled order
    by_text = dict(ids)
    assert [row["sample_weight"] for row in in_copy] == [before[by_text[row["text"]]][0] for row in in_copy]


def test_identical_rows_each_have_their_weight(learned):
    extra = write_rows(learned.lake / "zz.parquet", text=sentences("north", 3) * 2, domain=["north"] * 6)
    with curator.open_lake(str(learned.lake)) as lake:
        publication = lake.publish(learned.run_id)
        ids = [row[0] for row in lake.sql("SELECT sample_id FROM samples").fetchall()]
        weighted = lake.sql(
            "SELECT count(*), count(DISTINCT sample_id), count(sample_weight) FROM samples WHERE domain = 'north'"
        ).fetchall()
    # one of three identical rows was there when the run learned; the run knows no weight for the other two
    assert len(set(ids)) == len(ids) == 78
    assert weighted == [(30, 30, 24)]
    assert publication.num_unweighted == 6
    assert extra.exists()


# versions ---------------------------------------------------------------------------------------------------------


def test_the_same_run_published_twice_is_one_version(learned):
    first, files = publish(learned), None
    files = tree(learned.lake)
    second = publish(learned)
    assert (first.version, first.created, second.version, second.created) == (1, True, 1, False)
    assert replace(second, created=True) == first
    assert tree(learned.lake) == files
    with curator.open_lake(str(learned.lake)) as lake:
        assert [(v.version, v.run_id, v.num_files, v.num_rows) for v in lake.history()] == [(1, learned.run_id, 3, 72)]


def test_a_file_that_came_after_the_run_has_null_weights_and_is_counted(learned):
    write_rows(learned.lake / "late.parquet", text=sentences("east", 5, seed=9), domain=["east"] * 5)
    publication = publish(learned)
    assert (publication.num_files, publication.num_rows, publication.num_unweighted) == (4, 77, 5)
    late = pq.read_table(Path(publication.location) / "late.parquet")
    assert [late[name].null_count for name in WEIGHTS] == [5, 5, 5]


def test_rows_left_out_as_bad_have_null_weights(learned):
    write_rows(learned.lake / "late.parquet", text=[None, "", " ", "fine words"], domain=["east"] * 4)
    with curator.open_lake(str(learned.lake), skip_bad_rows=True) as lake:
        assert lake.publish(learned.run_id).num_unweighted == 4
        assert lake.sql("SELECT count(*) FROM samples WHERE NOT usable").fetchall() == [(3,)]


def test_a_run_of_a_lake_that_has_no_row_left_is_refused(learned):
    for path in learned.lake.glob("*.parquet"):
        path.unlink()
    write_rows(learned.lake / "new.parquet", text=sentences("pqr", 20), domain=["a", "b"] * 10)
    with pytest.raises(InputError, match=r"has no weight for any row .* learn again"):
        publish(learned)
    assert not (learned.state / "data").exists()


@pytest.mark.parametrize("column", ["domain", "text", "key"])
def test_a_run_is_not_published_over_rows_that_are_read_by_other_columns(learned, column):
    for path in learned.lake.glob("*.parquet"):
        table = pq.read_table(path)
        table = table.append_column("other", table["text"] if column != "domain" else table["domain"])
        pq.write_table(table, path)
    with (
        curator.open_lake(str(learned.lake), **{column: "other"}) as lake,
        pytest.raises(InputError, match=rf"with {column}=.*'other' now; `curator ingest` it with --{column}"),
    ):
        lake.publish(learned.run_id)
    assert not (learned.state / "log").exists()


@pytest.mark.parametrize("name", ["sample_weight", "Domain_Weight", "weight_run_id"])
def test_a_column_of_our_name_is_never_overwritten(learned, name):
    path = learned.lake / "north.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, table["score"]), path)
    with pytest.raises(InputError, match=rf"has a column '{name}' already; rename it"):
        publish(learned)
    assert not (learned.state / "log").exists()
    assert not (learned.state / "data").exists()
    with curator.open_lake(str(learned.lake)) as lake:  # SQL shows both
        lake.ingest()
        names = lake.sql("SELECT * FROM samples").columns
    assert {f"original_{name}", "sample_weight", "domain_weight", "weight_run_id"} <= set(names)


def test_a_dry_run_counts_and_writes_nothing(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
    before = tree(learned.lake)
    publication = publish(learned, dry_run=True)
    assert (publication.version, publication.created, publication.num_rows) == (None, False, 72)
    assert publication.size_bytes == 0
    assert tree(learned.lake) == before
    assert publish(learned).location == publication.location


def test_an_unknown_run_names_the_nearest(learned):
    with curator.open_lake(str(learned.lake)) as lake:
        with pytest.raises(NotFoundError, match=f"has no run 'x{learned.run_id}'; the nearest is '{learned.run_id}'"):
            lake.publish(f"x{learned.run_id}")
        assert lake.run("latest").run_id == learned.run_id
        begun = lake.workdir / "runs" / "20260101T000000-abcdef"
        begun.mkdir(parents=True)
        (begun / "job.json").touch()
        with pytest.raises(NotFoundError, match=r"has no run '2026.*'; one of that name was begun and has not ended: "):
            lake.publish("20260101T000000-abcdef")


def test_weights_that_were_tampered_with_are_not_published(learned):
    path = learned.state / "runs" / learned.run_id / "weights.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("sample_weight")
    doubled = table.set_column(place, table.schema.field(place), [table["sample_weight"].to_numpy()[::-1] * 2])
    pq.write_table(doubled, path)
    with pytest.raises(WeightIdentityError, match="the mean sample_weight is 2"):
        publish(learned)
    assert not (learned.state / "log").exists()


def test_a_source_that_changes_while_it_is_copied_is_noticed(learned):
    for number in range(4):  # before the others: some files are copied at once
        write_rows(learned.lake / f"a{number}.parquet", text=[f"new {number}"], domain=["north"])

    def change_the_last_file(state):
        if state.stage == "publish" and state.detail == "a0.parquet":
            pq.write_table(pq.read_table(learned.lake / "south.parquet").slice(1), learned.lake / "south.parquet")

    with pytest.raises(TryAgainError, match=r"south\.parquet has changed since it was listed"):
        publish(learned, on_progress=change_the_last_file)
    assert not (learned.state / "log").exists()
    publication = publish(learned)
    assert (publication.version, publication.num_rows, publication.num_unweighted) == (1, 75, 4)


# failures of the storage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kill", pytest.param("fail", marks=pytest.mark.slow)])
def test_a_crash_at_any_point_leaves_the_old_version_and_the_next_call_succeeds(learned, tmp_path, kind):
    publish(learned)
    other = forget_the_versions(learned)
    for name in ("east", "north"):  # a smaller lake, a changed snapshot
        (learned.lake / f"{name}.parquet").unlink()
    write_rows(learned.lake / "north.parquet", text=sentences("north", 9), domain=["north"] * 9)
    with curator.open_lake(str(learned.lake)) as lake:
        lake.ingest()
    program = [sys.executable, str(Path(__file__).with_name("crash_points.py"))]
    done = subprocess.run(
        [*program, str(learned.folder), str(tmp_path / "scratch"), other, kind],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 15  # probe, two copies, manifest, entry: several steps each


def memory_lake(learned):
    """The lake in memory, its run known; (url, options)."""
    url = f"memory://{uuid.uuid4().hex}"
    memory = fsspec.filesystem("memory")
    for path in sorted(learned.lake.rglob("*")):
        if path.is_file() and path.suffix in (".parquet", ".json") and "tokens" not in path.parts:
            memory.pipe_file(f"{url}/{path.relative_to(learned.lake).as_posix()}", path.read_bytes())
    return url


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_that_fails_in_memory_leaves_the_old_version(learned, monkeypatch, when):
    """`after`: the object is there, but the answer was lost."""
    write, faults = IsolatedMemoryFileSystem.pipe_file, {"left": 0}

    def failing(self, path, value, mode="overwrite", **options):
        faults["left"] -= 1
        if faults["left"] == 0 and when == "before":
            raise OSError(errno.EIO, "lost")
        write(self, path, value, mode=mode, **options)
        if faults["left"] == 0:
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(IsolatedMemoryFileSystem, "pipe_file", failing)
    for k in range(1, 100):
        url = memory_lake(learned)
        faults["left"] = k
        with curator.open_lake(url, text="text", domain="domain") as lake:
            try:
                created = lake.publish(learned.run_id).created
            except (StorageError, TryAgainError):
                created = False
            survived = faults["left"] > 0
            faults["left"] = 0
            assert len(lake.history()) == int(created), k
            again = lake.publish(learned.run_id)
            assert (again.version, again.created) == (1, not created)
            assert lake.sql("SELECT count(sample_weight) FROM samples").fetchall() == [(72,)]
        if survived:
            break
    assert k == 8  # two probes, three copies, a manifest and an entry before


def test_a_lake_in_memory_is_published_scanned_and_asked(learned):
    url = memory_lake(learned)
    with curator.open_lake(url, text="text", domain="domain") as lake:
        assert lake.publish(learned.run_id).version == 1
        frame = lake.scan().collect()
        assert frame.columns == ["text", "domain", "score", *WEIGHTS]
        assert frame["sample_weight"].mean() == pytest.approx(1, abs=1e-5)
        assert lake.sql("SELECT avg(sample_weight) FROM samples").fetchall()[0][0] == pytest.approx(1, abs=1e-5)


def test_a_destination_that_cannot_be_written_is_refused_before_anything_is(learned):
    """The `data` folder's place is taken by a file: even root cannot write below it."""
    (learned.state / "data").write_text("in the way")
    before = tree(learned.lake)
    with pytest.raises(StorageError, match=r"destination .*_curator cannot be written .*choose another --destination"):
        publish(learned)
    assert tree(learned.lake) == before
    (learned.state / "data").unlink()
    assert publish(learned).version == 1


@pytest.mark.parametrize("place", ["/sys/nowhere", "file"])
def test_a_run_is_not_started_for_a_destination_that_cannot_be_written(learned, tmp_path, place):
    (tmp_path / "file").write_text("a regular file")
    destination = place if place.startswith("/") else str(tmp_path / "file" / "below")
    before = tree(learned.folder)
    with (
        curator.open_lake(str(learned.lake), text="text", domain="domain", destination=destination) as lake,
        pytest.raises(StorageError, match=r"cannot be written|cannot write") as caught,
    ):
        lake.learn(str(learned.target), steps=100_000)
    assert caught.value.exit_code == 1
    assert destination in str(caught.value)
    assert tree(learned.folder) == before


def test_a_destination_elsewhere_holds_everything_and_the_lake_nothing(learned, tmp_path):
    shutil.copytree(learned.state, tmp_path / "curated", copy_function=shutil.copy2)
    shutil.rmtree(learned.state)
    before = tree(learned.lake)
    with curator.open_lake(str(learned.lake), destination=str(tmp_path / "curated")) as lake:
        publication = lake.publish("latest")
        assert publication.location.startswith(str(tmp_path / "curated" / "data"))
        assert len(lake.scan().collect()) == 72
    assert tree(learned.lake) == before
    assert not learned.state.exists()


def test_rows_that_left_the_lake_since_the_run_are_counted(learned):
    """Without them the mean weight is not 1 any more, which publishing has to say."""
    smallest = min(learned.lake.glob("*.parquet"))
    lost = pq.read_metadata(smallest).num_rows
    assert publish(learned, dry_run=True).num_gone == 0
    smallest.unlink()
    assert publish(learned).num_gone == lost


@pytest.mark.parametrize(
    ("damage", "said"), [(Path.unlink, "is gone although"), (lambda p: p.write_bytes(b"x"), "was changed after")]
)
def test_a_version_whose_file_is_damaged_is_not_called_published(learned, damage, said):
    damaged = published_files(publish(learned))[0]
    damage(damaged)
    with pytest.raises(StorageError, match=rf"{damaged.name} {said} .*learn again"):
        publish(learned)
