"""A crash at any point of staging and committing: a reader sees the old version or the new, never half."""

import itertools

import pytest
from mortal import KilledError, MortalMemory, MortalS3, die_at

from connectors.commit import commit, latest, read_log, read_manifest
from connectors.manifest import Manifest, PublishedFile, manifest_to_json
from connectors.store import Store, list_objects, open_store, read_bytes, staged_file, write_object

OLD, NEW = b"old content", b"new content" * 1000


def manifest(key, path):
    file = PublishedFile(
        source_path="a.parquet",
        source_size_bytes=3,
        source_version="v",
        published_path=path,
        size_bytes=5,
        num_rows=2,
    )
    return Manifest(run_id=key, snapshot_id="snapshot", columns=("w",), files=(file,))


def publish(store, content, key):
    path = f"data/{key}"
    with staged_file(store, path) as sink:
        sink.write(content)
    return commit(store, manifest(key, path), idempotency_key=key)


def newest_content(store):
    """What a reader sees: the content of every file of the newest version."""
    (file,) = read_manifest(store, latest(store)).files
    return read_bytes(store, file.published_path)


def check_after_crash(store):
    """The old or the new, never half; and the same work done again finishes it, once. Returns whether it was new."""
    seen = newest_content(store)
    assert seen in (OLD, NEW)
    publish(store, NEW, "new")
    assert newest_content(store) == NEW
    assert [version.idempotency_key for version in read_log(store)] == ["old", "new"]
    assert all(read_bytes(store, info.path) in (OLD, NEW) for info in list_objects(store, prefix="data"))
    return seen == NEW


def test_a_local_process_killed_at_any_file_operation_leaves_the_old_or_the_new(tmp_path):
    outcomes = []
    for k in itertools.count(1):
        root = tmp_path / str(k)
        store = open_store(str(root))
        publish(store, OLD, "old")
        died = die_at(k, root, lambda store=store: publish(store, NEW, "new"))
        outcomes.append(check_after_crash(store))
        if not died:
            break
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)
def test_a_client_killed_at_any_request_leaves_the_old_or_the_new(place, after):
    mortal = MortalMemory if place.url.startswith("memory") else MortalS3
    outcomes = []
    for k in itertools.count(1):
        store = open_store(f"{place.url}/{k}", place.options)
        publish(store, OLD, "old")
        options = dict(place.options or {}, use_listings_cache=False)
        doomed = Store(store.url, store.path, mortal(k, after, **options))
        try:
            publish(doomed, NEW, "new")
            died = False
        except KilledError:
            died = True
        outcomes.append(check_after_crash(store))
        if not died:
            break
    assert len(outcomes) >= 4
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]


def test_what_a_crash_leaves_is_not_mistaken_for_a_version(store):
    publish(store, OLD, "old")
    write_object(store, "manifests/orphan.json", manifest_to_json(manifest("orphan", "data/none")))
    write_object(store, "log/notes.json", b"not an entry")
    assert [version.run_id for version in read_log(store)] == ["old"]
