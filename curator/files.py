"""Local files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete; a parallel maker of the same one may win."""
    place = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    place.mkdir(parents=True)
    try:
        yield place
        try:
            place.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small local file so that readers see the old or the new one, never half."""
    place = path.with_name(f".{path.name}-{os.getpid()}")
    place.write_text(text, encoding="utf-8")
    place.replace(path)
