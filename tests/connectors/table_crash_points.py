"""Publish into tables on S3 while requests of any library fail, get lost or end the process; look at what is left.

Run as a program: `python table_crash_points.py FORMAT FOLDER URL OPTIONS STEP KIND...`. Every attempt is a forked
process that makes a table and publishes in it, whose k-th request to S3, of ours, of deltalake's or of Arrow's, befalls
KIND (see `s3_proxy`); of the ks every STEP-th, until a publication has no k-th. Of an Iceberg table also the commit of
the SQL catalog: "catalog:exits before", "catalog:exits after", "catalog:refused" and "catalog:lost". What holds
afterwards is checked in another process. Prints how many attempts were disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from s3_proxy import Proxy, proxy_of
from storage_faults import EXITED, OTHER_FAILURE
from table_cases import ROWS, case_class, connect, publish

from connectors.errors import ConnectorError
from connectors.garbage import find_table_garbage, remove_garbage
from connectors.store import list_objects, open_store, substore

REFUSED = 3
WEIGHTS = {"a": 0, "b": 1, "c": 2}


def forked(work: Callable[[], None], tell: Callable[[int], None] = lambda _: None) -> int:
    """The exit code of a process that does it after `tell` has heard its number; `EXITED` if it was killed."""
    ready, go = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork beside the proxy's threads
        pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        code = OTHER_FAILURE
        try:
            work()
            code = 0
        except ConnectorError as error:
            print(f"refused: {error}", file=sys.stderr)
            code = REFUSED
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    tell(pid)
    os.write(go, b"x")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(ready)
    os.close(go)
    return EXITED if status == -signal.SIGKILL else status


def disturb_catalog(kind: str) -> None:
    """Let the next commit of a SQL catalog befall `kind`."""
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.orm import Session

    commit, failure = Session.commit, OperationalError("COMMIT", None, Exception("disk I/O error"))

    def disturbed(self: Any) -> None:
        Session.commit = commit  # type: ignore[method-assign]
        if kind == "exits before":
            os._exit(EXITED)
        if kind == "refused":
            raise failure
        commit(self)
        if kind == "exits after":
            os._exit(EXITED)
        if kind == "lost":
            raise failure

    Session.commit = disturbed  # type: ignore[method-assign]


def look(table: Any, was_published: bool) -> None:
    """A reader sees the old snapshot or the new one; the same call again makes it the new one, by one commit of ours.

    A collection of garbage leaves those of our files alone that the newest snapshot or its commit names; what Arrow had
    begun of pyiceberg's own metadata is not ours.
    """
    ours, rows = table.num_ours(), table.rows()
    if ours:
        assert {row["text"]: row["sample_weight"] for row in rows} == WEIGHTS, rows
        assert {row["weight_run_id"] for row in rows} == {"run"}
    else:
        assert not was_published
        assert rows == ROWS.to_pylist(), rows
    before = table.number() - ours
    version = publish(table.connector(), "run")
    assert (version.number, version.created, table.number()) == (before + 1, not ours, before + 1), version
    assert table.num_ours() == 1
    assert table.weights() == WEIGHTS
    connector = table.connector()
    root, destination = connector.data, substore(connector.data, "_curator")
    for store, item in find_table_garbage(destination, root, connector.named_manifests, grace_seconds=-5):
        assert remove_garbage(store, item)
    assert {info.path for info in list_objects(root, prefix="curator")} == set(table.paths())
    assert {info.path for info in list_objects(destination)} == {version.manifest_path}
    for folder in ("curator", "_curator"):
        bucket, _, key = root.full_path(folder).partition("/")
        assert not root.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/").get("Uploads")


def tried(case: Any, place: Any, folder: Path, proxy: Proxy, number: int, kind: Any) -> int | None:
    """How the attempt ended; None if it was not disturbed, since a publication has fewer requests."""
    name = f"{kind.replace(' ', '-').replace(':', '-')}-{number}"
    (folder / name).mkdir(parents=True)
    table = case(folder / name, SimpleNamespace(url=f"{place.url}/{name}", options=place.options))
    of_catalog = kind.startswith("catalog:")

    def attempt() -> None:
        table.create()
        if of_catalog:
            disturb_catalog(kind.removeprefix("catalog:"))
        publish(connect(table.url, {**place.options, "endpoint_url": proxy.endpoint}), "run")

    code = forked(attempt, lambda pid: proxy.begin(pid, number, None if of_catalog else kind))
    where = f"{kind}, request {number} of {len(proxy.names)}: {proxy.names[number - 1 : number]}"
    assert code in (0, EXITED, REFUSED), f"{where}: {code}"
    if not of_catalog and len(proxy.names) < number:
        assert code == 0
        return None
    assert forked(lambda: look(table, code == 0)) == 0, f"after {where}"
    return code


def main(format_name: str, folder: Path, url: str, options: dict[str, Any], step: int, kinds: list[str]) -> None:
    case, place = case_class(format_name), SimpleNamespace(url=url, options=options)
    open_store(url, options)
    num_tried = 0
    with proxy_of(options["endpoint_url"]) as proxy:
        for kind in kinds:
            number = step
            while (code := tried(case, place, folder, proxy, number, kind)) is not None:
                num_tried += 1
                number += step
                if kind.startswith("catalog:") or (code == 0 and number > len(proxy.names)):
                    break
    print(num_tried)


if __name__ == "__main__":
    format_name, folder, url, options, step, *kinds = sys.argv[1:]
    main(format_name, Path(folder), url, json.loads(options), int(step), kinds)
