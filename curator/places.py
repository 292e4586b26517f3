"""Where the things of a lake lie, and the columns it was last used with."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from connectors.connector import is_table
from connectors.plain import SUFFIXES
from connectors.store import Store, open_store
from curator import catalog
from curator.config import LakeConfig
from curator.errors import StorageError
from curator.files import user_folder, write_atomically

_STATE_FOLDER = "_curator"
_LONGEST_NAME = 100
JOB = "job.json"
"""In a run folder: what its workers are to do."""
RESULT = "result.json"
"""In a run folder: what its workers found."""
CHECKPOINTS = "checkpoints"
"""In a run folder, until the run is finished."""
PAIRS = "pairs"
"""Likewise: `pair-K.safetensors`, the copies of each pair at its end."""
VIEWS = "curator.duckdb"
"""In the work folder, if it was asked for: `curator.views`, renewed whenever a version is made."""
_SETTINGS = "lake.json"
_OF_ANY_COLUMNS = ("id_hash", "mode")
_REMEMBERED = ("text", "domain", "key", "skip_bad_rows", *_OF_ANY_COLUMNS)


def state_folder(part: str) -> str:
    """What the default destination is called: "_curator" for a whole folder (""), its own name for a part of one.

    Because lakes that are different files of one folder must not take each other's runs and versions for theirs.
    """
    if not part:
        return _STATE_FOLDER
    name = re.sub(r"[^\w.-]+", "-", part)[:_LONGEST_NAME]
    told_apart = "" if name == part else f"-{hashlib.blake2b(part.encode(), digest_size=4).hexdigest()}"
    return f"{_STATE_FOLDER}_{name}{told_apart}"


def would_be_read_as_lake(root: Store, url: str, place: Store) -> bool:
    """Whether Parquet files below `place` would be listed as files of the lake at `url`."""
    if is_table(url):
        return False  # its log lists its files
    local = Path(url.removeprefix("file://")).expanduser().resolve()
    is_folder = local.is_dir() if root.is_local else not url.endswith(SUFFIXES) and not set(url) & set("*?[")
    base = (str(local) if root.is_local and is_folder else real_path(root)).rstrip("/") + "/"
    path = real_path(place)
    if type(place.fs) is not type(root.fs) or not (path + "/").startswith(base):
        return False
    parts = path[len(base) :].split("/")
    if any(part.startswith(("_", ".")) for part in parts):
        return False
    return is_folder or "**" in url  # else a single file, or a glob that stays in its folders


def would_be_file_of_lake(url: str, place: Store) -> bool:
    """Whether `place`, a Parquet file by its name, would be listed as one by the glob that the lake at `url` is."""
    if is_table(url) or not set(url) & set("*?[") or not place.path.endswith(SUFFIXES):
        return False
    glob = open_store(url, {}) if "://" not in url else None
    pattern = glob.path if glob else url.partition("://")[2]
    if place.is_local != (glob is not None or url.startswith("file://")):
        return False
    if place.is_local:
        pattern = os.path.realpath(pattern)
    return re.match(glob_translate(pattern.strip("/")), real_path(place).strip("/")) is not None


def real_path(store: Store, path: str = "") -> str:
    """The path of an object; on this machine without links and "..", by which a file has more names than one."""
    return os.path.realpath(store.full_path(path)) if store.is_local else store.full_path(path)


def remembered_columns(workdir: Path, destination: Store) -> dict[str, Any]:
    """The columns that the lake was last used with, and how: on this machine, else in its newest run."""
    values = _remembered(workdir)
    if values is None:
        records = catalog.read_run_records(destination)
        values = records[-1]["lake"] if records else {}
    return {key: values[key] for key in _REMEMBERED if values.get(key) is not None}


def remembered_ways(workdir: Path) -> dict[str, Any]:
    """How the lake was last used on this machine, whatever its columns are."""
    values = _remembered(workdir) or {}
    return {key: values[key] for key in _OF_ANY_COLUMNS if values.get(key) is not None}


def _remembered(workdir: Path) -> dict[str, Any] | None:
    try:
        values = json.loads((workdir / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def remember_columns(workdir: Path, config: LakeConfig) -> None:
    """Keep the columns for calls that do not name them."""
    write_atomically(workdir / _SETTINGS, json.dumps(config.model_dump(include=set(_REMEMBERED))))


def work_folder(destination: Store) -> Path:
    """Where the catalog, token caches and run folders go.

    The destination if it is a folder of this machine that can be written, else one in the user's cache.
    """
    if destination.is_local:
        path = Path(destination.path)
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        if nearest.is_dir() and os.access(nearest, os.W_OK):
            return path
    return user_folder() / hashlib.blake2b(destination.url.encode(), digest_size=8).hexdigest()


def make_work_folder(folder: Path) -> None:
    """Create the work folder, if it is not there.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the work folder {folder} cannot be created ({error.strerror})",
            hint="choose a --destination that can be written, or set CURATOR_HOME to a folder that can",
        ) from error
