"""The log of versions: numbered, exactly once, and readable as old or new after a crash at any point."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error
from storage_faults import requests_of

from connectors._filesystems import IsolatedMemoryFileSystem
from connectors.commit import (
    beyond,
    collect,
    commit,
    latest,
    read_log,
    read_manifest,
    read_version,
    restore,
    restored_number,
)
from connectors.errors import (
    ConflictError,
    CorruptFileError,
    NotFoundError,
    ReadOnlyError,
    UnavailableError,
    UnsupportedError,
)
from connectors.manifest import Manifest, PublishedFile, manifest_to_json
from connectors.store import (
    delete,
    list_objects,
    open_store,
    put_if_absent,
    read_bytes,
    write_object,
)


def manifest(run_id="run", path="data/1.parquet"):
    file = PublishedFile(
        source_path="a.parquet",
        source_size_bytes=3,
        source_version="v",
        published_path=path,
        size_bytes=5,
        num_rows=2,
    )
    return Manifest(
        run_id=run_id, snapshot_id="snapshot", columns=("w",), files=(file,), extra={"domains": [1, {"x": None}]}
    )


# the log --------------------------------------------------------------------------------------------------------


def test_nothing_published_is_an_empty_log(store):
    assert read_log(store) == []
    assert latest(store) is None
    with pytest.raises(NotFoundError, match="has no version 1; nothing was published there yet"):
        read_version(store, 1)


def test_versions_are_numbered_and_read_back(store):
    wrote = [manifest(f"run {number}") for number in range(3)]
    versions = [commit(store, each, idempotency_key=each.run_id) for each in wrote]
    assert [version.number for version in versions] == [1, 2, 3]
    assert all(version.created for version in versions)
    assert read_log(store) == versions
    assert latest(store) == versions[-1]
    assert read_version(store, 2) == versions[1]
    assert [read_manifest(store, version) for version in versions] == wrote
    with pytest.raises(NotFoundError, match="has no version 4; the newest is 3"):
        read_version(store, 4)


def test_the_log_lies_where_the_contract_says(store):
    version = commit(store, manifest(), idempotency_key="key")
    paths = [info.path for info in list_objects(store)]
    assert paths == ["log/00000000000000000001.json", f"manifests/{version.commit_id}.json"]


def test_the_same_key_is_committed_once(store):
    first = commit(store, manifest(), idempotency_key="key")
    commit(store, manifest("other"), idempotency_key="other")
    again = commit(store, manifest("ignored"), idempotency_key="key")
    assert (again.number, again.created) == (1, False)
    assert again == first
    assert len(read_log(store)) == 2
    assert len(list_objects(store, prefix="manifests")) == 2


def test_an_old_version_can_be_made_the_newest_again(store):
    first = commit(store, manifest("good"), idempotency_key="1")
    commit(store, manifest("bad"), idempotency_key="2")
    commit(store, read_manifest(store, first), idempotency_key="rollback of 2")
    assert read_manifest(store, latest(store)) == read_manifest(store, first)
    assert [version.run_id for version in read_log(store)] == ["good", "bad", "good"]


def test_old_versions_are_let_go_by_one_more_entry(store):
    versions = [commit(store, manifest(f"run {number}"), idempotency_key=str(number)) for number in range(4)]
    restore(store, 2)  # has the files of version 2, which is the newest but one different version then
    assert beyond(read_log(store), 2) == (1, 3)
    assert collect(store, 2) == (1, 3)
    log = read_log(store)
    assert [version.collected_by for version in log] == [6, None, 6, None, None, None]
    assert (log[-1].manifest_path, log[-1].collects, log[-1].schema_version) == (versions[1].manifest_path, (1, 3), 2)
    assert [version.schema_version for version in log[:-1]] == [1] * 5
    assert restored_number(log, log[-1]) is None
    # again: nothing is left to be let go, and nothing is written
    assert collect(store, 2) == ()
    assert len(read_log(store)) == 6
    assert [read_manifest(store, version).run_id for version in log[:4]] == [f"run {number}" for number in range(4)]
    gone = r"version 1 of .* cannot be read any more: its files were let go by version 6 .*can be read are 2, 4, 5, 6"
    with pytest.raises(NotFoundError, match=gone):
        restore(store, 1)
    assert restore(store, 4).collects == ()
    assert collect(store, 1) == (2, 5, 6)
    assert [version.number for version in read_log(store) if version.collected_by is None] == [4, 7, 8]


def test_a_version_that_was_published_while_others_were_let_go_is_not_hidden(url, monkeypatch):
    store = open_store(url)
    for number in range(3):
        commit(store, manifest(f"run {number}"), idempotency_key=str(number))

    class Racing(IsolatedMemoryFileSystem):
        """Another writer is first, once."""

        def pipe_file(self, path, value, mode="overwrite", **options):
            if mode == "create" and not raced:
                raced.append(path)
                commit(store, manifest("racer"), idempotency_key="racer")
            super().pipe_file(path, value, mode=mode, **options)

    raced = []
    with pytest.raises(ConflictError, match=r"version 4 was published to .* meanwhile; try again"):
        collect(replace(store, fs=Racing()), 1)
    assert [version.collected_by for version in read_log(store)] == [None] * 4
    assert collect(store, 1) == (1, 2, 3)


@pytest.mark.parametrize("numbers", ["1", [True], ["1"], {"1": 1}])
def test_an_entry_that_lets_go_what_is_no_number_is_damaged(url, numbers):
    store = open_store(url)
    for number in range(2):
        commit(store, manifest(f"run {number}"), idempotency_key=str(number))
    collect(store, 1)
    path = "log/00000000000000000003.json"
    write_object(store, path, json.dumps(json.loads(read_bytes(store, path)) | {"collects": numbers}).encode())
    with pytest.raises(CorruptFileError, match="entry 'collects' of a Version is"):
        read_log(store)


def test_a_refused_destination_is_read_only_at_once(s3_place):
    store = open_store(s3_place.url, {**s3_place.options, "secret": "not-the-secret"})
    with pytest.raises(Exception, match="credentials") as caught:
        commit(store, manifest(), idempotency_key="key")
    assert not isinstance(caught.value, UnavailableError)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda data: b"{", CorruptFileError, "is not JSON"),
        (lambda data: b"[]", CorruptFileError, "no schema_version"),
        (lambda data: data.replace(b'"number": 1', b'"number": 7'), CorruptFileError, "says that it is version 7"),
        (lambda data: data.replace(b'"run_id"', b'"run"'), CorruptFileError, "missing or unknown entry 'run'"),
        (lambda data: data.replace(b'"number": 1', b'"number": "1"'), CorruptFileError, "entry 'number' .* is '1'"),
        (
            lambda data: data.replace(b'"schema_version": 1', b'"schema_version": 3'),
            UnsupportedError,
            "schema_version 3, this lake-curator reads 1 to 2",
        ),
    ],
)
def test_a_damaged_entry_is_named(store, damage, error, message):
    commit(store, manifest(), idempotency_key="key")
    path = "log/00000000000000000001.json"
    write_object(store, path, damage(read_bytes(store, path)))
    with pytest.raises(error, match=f"00001.json.*{message}"):
        read_log(store)


def test_a_missing_entry_is_named(store):
    for number in range(3):
        commit(store, manifest(), idempotency_key=str(number))
    delete(store, "log/00000000000000000002.json")
    with pytest.raises(CorruptFileError, match=r"0002\.json is missing from the log, which goes on to 3"):
        read_log(store)


def test_a_manifest_that_is_not_the_committed_one_is_named(store):
    version = commit(store, manifest(), idempotency_key="key")
    write_object(store, version.manifest_path, manifest_to_json(manifest("forged")))
    with pytest.raises(CorruptFileError, match="is not the manifest that version 1 committed"):
        read_manifest(store, version)
    delete(store, version.manifest_path)
    with pytest.raises(CorruptFileError, match=r"was removed; .* deleting .*log/0+1\.json if it is the newest"):
        read_manifest(store, version)


# several writers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_processes_that_commit_at_once_each_commit_exactly_once(kind, request, tmp_path):
    place = request.getfixturevalue("s3_place") if kind == "s3" else None
    url, options = (place.url, place.options) if place else (str(tmp_path), None)
    shared = [f"shared {number}" for number in range(3)]
    work = {name: [f"{name} 0", *shared, f"{name} 1", f"{name} 0"] for name in ("p", "q", "r")}
    script = Path(__file__).with_name("committer.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, url, json.dumps(options), name, json.dumps(keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, keys in work.items()
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    log = read_log(open_store(url, options))
    numbers = {version.idempotency_key: version.number for version in log}
    assert Counter(version.idempotency_key for version in log) == Counter(
        {key for keys in work.values() for key in keys}
    )
    assert all(numbers[key] == number for answer in answers for key, (number, _) in answer.items())
    for key in shared:
        assert sum(answer[key][1] for answer in answers) == 1


class AnswersLost(IsolatedMemoryFileSystem):
    """Writes, and then says that it timed out, every second time."""

    calls = 0

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode=mode)
        self.calls += 1
        if self.calls % 2 == 0:
            raise TimeoutError("no answer")


class AnswersLostS3(S3FileSystem):
    """As AnswersLost."""

    calls = 0

    async def _pipe_file(self, path, data, **kwargs):
        await super()._pipe_file(path, data, **kwargs)
        self.calls += 1
        if self.calls % 2 == 0:
            raise TimeoutError("no answer")


@pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)
def test_a_lost_answer_is_recognised_as_our_own_commit(place):
    store = place.store()
    fs = AnswersLost() if place.url.startswith("memory") else AnswersLostS3(**place.options, use_listings_cache=False)
    forgetful = replace(store, fs=fs)
    versions = [commit(forgetful, manifest(), idempotency_key=str(number)) for number in range(3)]
    assert [(version.number, version.created) for version in versions] == [(1, True), (2, True), (3, True)]
    assert read_log(store) == versions


class AlwaysSecond(IsolatedMemoryFileSystem):
    """Somebody else always commits first."""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create":
            entry = json.loads(value) | {"commit_id": "theirs", "idempotency_key": f"their {path}"}
            super().pipe_file(path, json.dumps(entry).encode())
        super().pipe_file(path, value, mode=mode)


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
def test_a_store_that_is_busy_with_the_entry_is_asked_again(s3_place, code):
    """S3 may answer 409 where two write one key at once, whether or not either of them did."""
    store, num_refused = s3_place.store(), 0

    def refuse(name):
        nonlocal num_refused
        if name.startswith("put_object") and "/log/" in name and num_refused < 3:
            num_refused += 1
            answer = {"Error": {"Code": code, "Message": "try again"}, "ResponseMetadata": {"HTTPStatusCode": 409}}
            raise translate_boto_error(ClientError(answer, "PutObject"))

    with requests_of("s3") as requests:
        requests.answers = refuse
        version = commit(store, manifest(), idempotency_key="a")
    assert num_refused == 3
    assert (version.number, version.created) == (1, True)
    assert [each.number for each in read_log(store)] == [1]


def test_losing_every_race_is_a_conflict_in_the_end():
    store = replace(open_store("memory://second"), fs=AlwaysSecond())
    with pytest.raises(ConflictError, match="another writer was first"):
        commit(store, manifest(), idempotency_key="ours", max_attempts=3)
    assert [version.idempotency_key[:5] for version in read_log(store)] == ["their"] * 3


def test_put_if_absent_on_a_read_only_store_is_read_only():
    class Refusing(IsolatedMemoryFileSystem):
        def pipe_file(self, path, value, mode="overwrite", **kwargs):
            raise PermissionError(13, "Permission denied")

    store = replace(open_store("memory://refusing"), fs=Refusing())
    with pytest.raises(ReadOnlyError, match="cannot write memory://refusing"):
        put_if_absent(store, "log/1", b"x")
    with pytest.raises(ReadOnlyError):
        commit(store, manifest(), idempotency_key="key")
