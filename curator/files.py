"""Local files and folders that appear whole or not at all, and small ones that users write by hand."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curator.errors import ConfigError


def user_folder() -> Path:
    """What holds the work folders of lakes whose destination is not on this machine: CURATOR_HOME, or in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CURATOR_HOME") or cache / "lake-curator")


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
    """Write a small local file so that readers see the old or the new one, never half; a failure leaves nothing."""
    place = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        place.write_text(text, encoding="utf-8")
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)


def write_result(path: Path, text: str, *, overwrite: bool, dry_run: bool) -> None:
    """Write a file that the user asked for, wholly or not at all; a dry run only finds out whether it could be.

    Raises:
        ConfigError: it is there already and may not be replaced, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path} is there already", hint="name another file, or allow it to be replaced (--overwrite)"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: its folder does not exist")
    if dry_run:
        return
    try:
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})", hint="name another file") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands in it twice")
    return dict(pairs)


def read_object(path: Path, kind: str, content: str) -> Mapping[str, Any]:
    """The JSON object in a file that a user wrote; `kind` and `content` say in errors what it is to be.

    Raises:
        ConfigError: it cannot be read, or is not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise ConfigError(f"{kind} file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{kind} file {path} cannot be read as JSON ({error})", hint=f"write an object {content}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{kind} file {path} holds a {type(values).__name__}", hint=f"it must be an object {content}")
    return values
