"""A lake of two files on any storage with a published version and a second run, and what must hold of it afterwards."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import curator
from connectors.commit import read_log
from connectors.store import Store, list_objects, open_store, read_bytes, write_object

OLD = "20260101T000000-000000"
NEW = "20260102T000000-000000"
NUM_ROWS = 72


def add_runs(learned: Any, *run_ids: str) -> None:
    """Runs of other names beside the one that was learned, which then goes."""
    runs = learned.state / "runs"
    record = json.loads((runs / learned.run_id / "run.json").read_text())
    for number, run_id in enumerate(run_ids):
        (runs / run_id).mkdir()
        shutil.copy2(runs / learned.run_id / "weights.parquet", runs / run_id)
        changed = record | {"run_id": run_id, "created_at": f"2026-01-01T00:00:{number:02}+00:00"}
        (runs / run_id / "run.json").write_text(json.dumps(changed))
    shutil.rmtree(runs / learned.run_id)


def two_files(learned: Any, *run_ids: str) -> Path:
    """The lake with two of its domains in one file, and with these runs instead of its own."""
    names = [learned.lake / f"{name}.parquet" for name in ("east", "south")]
    merged = pa.concat_tables([pq.read_table(name) for name in names], promote_options="permissive")
    for name in names:
        name.unlink()
    pq.write_table(merged, learned.lake / "more.parquet", row_group_size=10)
    add_runs(learned, *run_ids)
    return learned.lake


@dataclass(frozen=True)
class Template:
    """What the objects of a lake were; copies of it are lakes of their own."""

    objects: dict[str, bytes]

    def copy_to(self, url: str, options: dict[str, Any] | None) -> str:
        store = open_store(url, options)
        if store.is_remote:
            store.fs.pipe({store.full_path(path): data for path, data in self.objects.items()})
        else:
            for path, data in self.objects.items():
                write_object(store, path, data)
        return url


def template_of(store: Store) -> Template:
    """The lake as it is now."""
    return Template({info.path: read_bytes(store, info.path) for info in list_objects(store)})


def open_copy(url: str, options: dict[str, Any] | None) -> curator.Lake:
    return curator.open_lake(url, text="text", domain="domain", storage_options=options)


def check_no_orphans(lake: curator.Lake) -> None:
    """A collection leaves exactly what the versions name, and nothing of an upload or a probe."""
    lake.gc("0s")
    store = lake.destination
    named = set()
    for version in read_log(store):
        named |= {f"log/{version.number:020d}.json", version.manifest_path}
        named |= {file.published_path for file in lake.connector.read_manifest(version).files}
    there = {info.path for info in list_objects(store, with_temporaries=True)}
    assert {path for path in there if path.startswith((".", "log/", "manifests/", "data/"))} == named
    if hasattr(store.fs, "call_s3"):
        bucket, _, root = store.full_path().partition("/")
        assert not store.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{root}/").get("Uploads")


def check_after_failure(url: str, options: dict[str, Any] | None) -> bool:
    """The old version or the new one, never half; the same call again ends with it, once. Whether it was the new one.

    Run in a process of its own, this is what another machine sees: nothing is left of the session that failed.
    """
    with open_copy(url, options) as lake:
        lake.ingest()
        before = [version.run_id for version in lake.history()]
        assert before in ([OLD], [OLD, NEW]), before
        assert weights_seen(lake) == (NUM_ROWS, NUM_ROWS, before[-1], 1)
        again = lake.publish(NEW)
        assert (again.version, again.created) == (2, before == [OLD]), again
        assert [version.run_id for version in lake.history()] == [OLD, NEW]
        assert weights_seen(lake) == (NUM_ROWS, NUM_ROWS, NEW, 1)
        check_no_orphans(lake)
        assert lake.verify(1).is_sound  # a note says that the lake was copied since
        assert lake.verify(2).findings == ()
    return before == [OLD, NEW]


def weights_seen(lake: curator.Lake) -> tuple[Any, ...]:
    """Rows, rows with a weight, the run of the weights and how many there are, as a reader finds them."""
    frame = lake.scan().collect()
    runs = frame["weight_run_id"].unique().to_list()
    return len(frame), frame["sample_weight"].count(), runs[0], len(runs)
