"""Durable, atomic files on a local disk."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from connectors.errors import UnsupportedError

TEMPORARY_PREFIX = ".tmp-"
_FOLDER_RACE_SECONDS = 10.0


@contextmanager
def staged(target: Path, publish: Callable[[Path, Path], object] = os.replace) -> Iterator[BinaryIO]:
    """Atomic and durable: on clean exit `target` is the whole new file, else it is untouched and nothing is left.

    A process killed in between may leave one `.tmp-…` file, which every listing here passes over.

    Args:
        target: where the file appears; its folder is created.
        publish: `os.replace` overwrites, `link_new` refuses an existing target.
    """
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid4().hex}"
    try:
        with _created(temporary) as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def remove_empty_folders(folder: Path, root: Path) -> None:
    """Removes `folder` and the folders above it that are empty then, up to but not including `root`."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone already
            return
        folder = folder.parent


def link_new(temporary: Path, target: Path) -> None:
    """Atomic: gives `target` the content of `temporary`, or fails with FileExistsError because it exists.

    Raises:
        UnsupportedError: the disk has no hard links (exFAT, some network mounts).
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        raise UnsupportedError(
            f"{target.parent} is on a disk without hard links, so a version cannot be published safely there",
            hint="choose a destination on another disk",
        ) from error


def walk(root: Path, with_temporaries: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """(path relative to `root`, stat) of every file below it, links followed; a folder is visited once."""
    pending, seen = [root], set[tuple[int, int]]()
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            scanned = os.scandir(folder)
        except FileNotFoundError:
            if folder == root:
                raise
            continue  # it was empty, and a collector took it
        with scanned as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(folder / entry.name)
                    continue
                found = file_stat(entry) if with_temporaries or not entry.name.startswith(TEMPORARY_PREFIX) else None
                if found is not None:
                    yield (folder / entry.name).relative_to(root).as_posix(), found


def file_stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of a file in a folder that is listed; None if it is none, or has gone since."""
    try:
        return entry.stat() if entry.is_file() else None
    except FileNotFoundError:
        return None


def _created(path: Path) -> BinaryIO:
    """The new file, its folder made; another process may remove that as an empty one before the file is in it.

    Such a race can be lost many times in a row, since the remover waits for the same lock of the file system.
    """
    give_up_at = time.monotonic() + _FOLDER_RACE_SECONDS
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except (FileNotFoundError, FileExistsError) as error:  # mkdir tells of a folder that goes while it looks as one
            no_folder = isinstance(error, FileExistsError) and os.path.lexists(path.parent) and not path.parent.is_dir()
            if no_folder or time.monotonic() > give_up_at:
                raise


def _sync_folder(folder: Path) -> None:
    # Without it a power cut may forget the new name although the file's bytes are on disk.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
