"""Kill a publication at every point where it touches the destination's disk, and look at what is left.

Run as a program: `python crash_points.py LEARNED_FOLDER SCRATCH RUN_ID kill|fail`. Each attempt works on a fresh copy,
in forked processes of its own: the first dies (or gets EIO) at its k-th open-to-write, mkdir, link, rename or remove
below `_curator`; the second reads the lake, publishes again and compares. Ends when k is past the last such point.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import curator
import curator.publish  # once here rather than in every child
from curator.errors import StorageError, TryAgainError

EVENTS = {"open", "os.link", "os.mkdir", "os.remove", "os.rename"}
UNTOUCHED, FAILED, SHRUGGED_OFF, DIED = 0, 3, 4, 77
"""How an attempt ends: past the last point, with an error, published all the same (an mkdir of what is there), dead."""

fired = False


def fault_at(k: int, kind: str) -> None:
    """From now on, the k-th write of this process below `_curator` does not happen."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in EVENTS or "_curator" not in str(arguments[0]) or "catalog" in str(arguments[0]):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        count += 1
        if count == k:
            global fired
            fired = True
            if kind == "kill":
                os._exit(DIED)
            raise OSError(errno.EIO, "Input/output error", str(arguments[0]))

    sys.addaudithook(hook)


def in_child(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def first_attempt(lake_url: str, run_id: str, k: int, kind: str) -> int:
    with curator.open_lake(lake_url) as lake:
        lake.sql("SELECT 1")
        fault_at(k, kind)
        try:
            assert lake.publish(run_id).created
        except (StorageError, TryAgainError):
            return FAILED
        return SHRUGGED_OFF if fired else UNTOUCHED


def after(lake_url: str, run_id: str, outcome: int) -> int:
    """Old or new, never half; and the same call again succeeds."""
    with curator.open_lake(lake_url) as lake:
        before = [version.version for version in lake.history()]
        assert before in ([1], [1, 2]), before
        if outcome in (UNTOUCHED, SHRUGGED_OFF):
            assert before == [1, 2]
        weighted = lake.sql("SELECT count(sample_weight), count(DISTINCT weight_run_id) FROM samples").fetchall()
        assert weighted[0][1] == 1, weighted  # all of the old version or all of the new
        again = lake.publish(run_id)
        assert (again.version, again.created) == (2, before == [1]), again
        assert [version.version for version in lake.history()] == [1, 2]
        [(total, weights)] = lake.sql("SELECT count(*), count(sample_weight) FROM samples").fetchall()
        assert total == weights == 33, (total, weights)
        left = [path.name for path in Path(lake_url, "_curator", "data").rglob("*") if path.name.startswith(".probe")]
        assert not left, left
    return 0


def main(learned: Path, scratch: Path, run_id: str, kind: str) -> None:
    for k in range(1, 1000):
        folder = scratch / str(k)
        shutil.copytree(learned, folder, copy_function=shutil.copy2)
        lake = str(folder / "lake")
        outcome = in_child(lambda lake=lake, k=k: first_attempt(lake, run_id, k, kind))
        if outcome not in (UNTOUCHED, FAILED, SHRUGGED_OFF, DIED) or in_child(
            lambda lake=lake, o=outcome: after(lake, run_id, o)
        ):
            sys.exit(f"point {k}: outcome {outcome}")
        shutil.rmtree(folder)
        if outcome == UNTOUCHED:
            print(k - 1)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
