"""Garbage: what no version names and is old goes; all else stays, also when the collector dies."""

import itertools
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from mortal import KilledError, MortalS3, die_at
from s3fs import S3FileSystem

from connectors.commit import commit, read_log, restore
from connectors.errors import CorruptFileError
from connectors.garbage import find_garbage, remove_garbage
from connectors.manifest import Manifest, PublishedFile
from connectors.store import delete, exists, list_objects, open_store, read_bytes, stat_object, substore, write_object

STAGED = re.compile(r"data/run-\d/.+")
ALL = -5.0  # a grace time that lets everything be old
ORPHANS = ["data/run-1/left.parquet", "data/run-3/a/b #1%.parquet", f"manifests/{'0' * 32}.json"]


def manifest(*paths):
    files = tuple(
        PublishedFile(
            source_path=path, source_size_bytes=3, source_version="v", published_path=path, size_bytes=1, num_rows=2
        )
        for path in paths
    )
    return Manifest(run_id="run", snapshot_id="snapshot", columns=("w",), files=files)


def fill(store):
    """Two versions, three orphans, and things that are not ours; the paths that must stay."""
    for key in ("run-1", "run-2"):
        write_object(store, f"data/{key}/a.parquet", b"x")
        commit(store, manifest(f"data/{key}/a.parquet"), idempotency_key=key)
    for path in (
        "runs/run-1/weights.parquet",
        "data/mine/a.parquet",
        "data/notes.txt",
        "manifests/notes.json",
        "log/x",
    ):
        write_object(store, path, b"theirs")
    kept = {info.path for info in list_objects(store)}
    for path in ORPHANS:
        write_object(store, path, b"1234567")
    return kept


def collect(store, grace=ALL):
    return [item for item in find_garbage(store, STAGED, grace_seconds=grace) if remove_garbage(store, item)]


def test_only_what_no_version_names_goes(store):
    kept = fill(store)
    found = find_garbage(store, STAGED, grace_seconds=ALL)
    assert [(item.kind, item.path, item.size_bytes) for item in found] == [("object", path, 7) for path in ORPHANS]
    assert {info.path for info in list_objects(store)} == kept | set(ORPHANS)
    assert collect(store) == found
    assert {info.path for info in list_objects(store)} == kept
    assert collect(store) == []


def test_nothing_outside_the_destination_goes(store):
    inner = substore(store, "lake/_curator")
    fill(store)
    before = {info.path for info in list_objects(store)}
    fill(inner)
    assert len(collect(inner)) == len(ORPHANS)
    assert {info.path for info in list_objects(store) if not info.path.startswith("lake/")} == before


def test_what_is_younger_than_the_grace_time_stays(store):
    fill(store)
    assert collect(store, grace=60.0) == []
    assert 0 <= time.time() - stat_object(store, ORPHANS[0]).modified_at < 60


def test_a_restored_version_keeps_its_files(store):
    kept = fill(store)
    restore(store, 1)
    collect(store)
    assert kept < {info.path for info in list_objects(store)}  # and the entry of the log


def test_a_destination_without_versions_has_garbage_too(store):
    write_object(store, ORPHANS[0], b"x")
    assert [item.path for item in collect(store)] == [ORPHANS[0]]
    assert collect(store) == []


def test_a_damaged_log_or_manifest_removes_nothing(store):
    fill(store)
    gone = read_log(store)[0].manifest_path
    delete(store, gone)
    with pytest.raises(CorruptFileError, match="was removed"):
        collect(store)
    delete(store, "log/00000000000000000001.json")
    with pytest.raises(CorruptFileError, match="is missing from the log"):
        collect(store)
    assert all(exists(store, path) for path in ORPHANS)


def test_temporary_files_of_killed_processes_go_and_others_stay(tmp_path):
    store = open_store(str(tmp_path))
    kept = fill(store)
    ours = ["data/run-1/.tmp-" + "a" * 32, "log/.tmp-" + "b" * 32, ".tmp-" + "c" * 32, ".probe-" + "d" * 32]
    theirs = ["data/mine/.tmp-notes", ".tmp-x", "runs/.tmp-" + "e" * 32]
    for path in ours + theirs:
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_bytes(b"x")
    found = collect(store)
    assert sorted(item.path for item in found if item.kind == "temporary") == sorted(ours)
    assert kept | set(theirs) == {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}


def test_what_was_written_again_since_it_was_found_stays(tmp_path):
    store = open_store(str(tmp_path))
    fill(store)
    for path in ORPHANS:
        os.utime(tmp_path / path, (1, 1))
    found = find_garbage(store, STAGED, grace_seconds=3600)
    assert len(found) == 3
    write_object(store, ORPHANS[0], b"a publisher's")
    delete(store, ORPHANS[1])
    assert [remove_garbage(store, item) for item in found] == [False, False, True]
    assert exists(store, ORPHANS[0])


@pytest.fixture
def uploads(s3_place):
    """A function that begins a multipart upload at a path and lists those there are, as (path, size) pairs."""
    fs = S3FileSystem(**s3_place.options, use_listings_cache=False)
    bucket, _, root = s3_place.url.removeprefix("s3://").partition("/")

    def begin(path, *parts):
        begun = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{root}/{path}")
        for number, part in enumerate(parts, start=1):
            where = {"Bucket": bucket, "Key": f"{root}/{path}", "UploadId": begun["UploadId"]}
            fs.call_s3("upload_part", **where, PartNumber=number, Body=part)

    def there():
        listed = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{root}/").get("Uploads") or ()
        return sorted(upload["Key"][len(root) + 1 :] for upload in listed)

    return begin, there


def test_unfinished_uploads_below_the_destination_are_aborted_when_they_are_old(s3_place, uploads):
    begin, there = uploads
    store = open_store(f"{s3_place.url}/_curator", s3_place.options)
    fill(store)
    begin("_curator/data/run-1/big #1.parquet", b"x" * 5 * 2**20, b"end")
    begin("_curator/data/run-1/big #1.parquet", b"again")
    begin("_curator/data/mine/a.parquet", b"x")
    begin("_curator/runs/run-1/a", b"x")
    begin("a.parquet", b"x")
    assert [item for item in find_garbage(store, STAGED, grace_seconds=60) if item.kind == "upload"] == []
    removed = [(item.path, item.size_bytes) for item in collect(store) if item.kind == "upload"]
    assert sorted(removed) == [("data/run-1/big #1.parquet", 5), ("data/run-1/big #1.parquet", 5 * 2**20 + 3)]
    assert there() == ["_curator/data/mine/a.parquet", "_curator/runs/run-1/a", "a.parquet"]
    assert collect(store) == []


def test_an_upload_that_a_crash_left_is_found(s3_place, uploads):
    store = s3_place.store()
    sink = store.fs.open(store.full_path("data/run-1/a.parquet"), "wb", autocommit=False, block_size=5 * 2**20)
    sink.write(b"x" * 11 * 2**20)
    sink.flush()
    sink.closed = True  # as if the process had died
    assert uploads[1]() == ["data/run-1/a.parquet"]
    (item,) = collect(store)
    assert (item.kind, item.path) == ("upload", "data/run-1/a.parquet")
    assert uploads[1]() == []


# a collector that dies ------------------------------------------------------------------------------------------


def fill_briefly(store):
    """One version and two orphans; the paths that must stay."""
    write_object(store, "data/run-1/a.parquet", b"x")
    commit(store, manifest("data/run-1/a.parquet"), idempotency_key="key")
    kept = {info.path for info in list_objects(store)}
    for path in ORPHANS[1:]:
        write_object(store, path, b"1234567")
    return kept


def check_after_crash(store, kept):
    assert kept <= {info.path for info in list_objects(store)}
    assert len(read_log(store)) == 1
    collect(store)
    assert {info.path for info in list_objects(store)} == kept


def test_a_local_collector_killed_at_any_file_operation_removes_no_more_than_garbage(tmp_path):
    for k in itertools.count(1):
        root = tmp_path / str(k)
        store = open_store(str(root))
        kept = fill_briefly(store)
        died = die_at(k, root, lambda store=store: collect(store))
        check_after_crash(store, kept)
        if not died:
            break
    assert k > 8


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before", "after"])
def test_a_client_killed_at_any_request_removes_no_more_than_garbage(s3_place, uploads, after):
    for k in itertools.count(1):
        store = open_store(f"{s3_place.url}/{k}", s3_place.options)
        kept = fill_briefly(store)
        uploads[0](f"{k}/data/run-1/big", b"part")
        doomed = replace(store, fs=MortalS3(k, after, **s3_place.options, use_listings_cache=False))
        try:
            collect(doomed)
            died = False
        except KilledError:
            died = True
        check_after_crash(store, kept)
        assert uploads[1]() == []
        if not died:
            break
    assert k > 10


def test_local_folders_that_are_empty_then_go_with_the_garbage(tmp_path):
    store = open_store(str(tmp_path))
    for path in ("data/run-1/a/b/left.parquet", "data/run-2/a/left.parquet", "data/run-2/kept.txt"):
        write_object(store, path, b"x")
    (tmp_path / "data" / "run-9" / "of others").mkdir(parents=True)
    for item in find_garbage(store, re.compile(r"data/run-\d/.+\.parquet"), grace_seconds=ALL):
        assert remove_garbage(store, item)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "data",
        "data/run-2",
        "data/run-2/kept.txt",
        "data/run-9",
        "data/run-9/of others",
    ]


def test_a_writer_beside_a_collector_of_empty_folders_never_fails(tmp_path):
    """One process takes away the folder that another one writes into, as fast as it can."""
    collector = (
        "import sys, pathlib\n"
        "from connectors._local import remove_empty_folders\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "print(flush=True)\n"
        "while not (root / 'end').exists():\n"
        "    remove_empty_folders(root / 'data' / 'run-1', root / 'data')\n"
    )
    store = open_store(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", collector, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            for number in range(100):
                write_object(store, "data/run-1/a.parquet", str(number).encode())
                assert read_bytes(store, "data/run-1/a.parquet") == str(number).encode()
                delete(store, "data/run-1/a.parquet")
        finally:
            (tmp_path / "end").touch()
    assert process.returncode == 0
