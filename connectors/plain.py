"""Plain Parquet: a file, a folder, Hive partitions or a glob → an explicit, sorted list of files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from fsspec.utils import glob_translate

from connectors._failures import redact_url
from connectors._parquet_file import SUFFIXES as SUFFIXES
from connectors._parquet_file import OnProgress, ParquetFile, read_parquet_infos, untold
from connectors._schemas import union_schema
from connectors.commit import Version, commit, newest_number, read_log, read_manifest, restore
from connectors.errors import ConflictError, InputError, NotFoundError
from connectors.manifest import Manifest
from connectors.store import (
    ObjectInfo,
    Store,
    check_put_if_absent,
    exists,
    list_objects,
    open_store,
    stat_object,
)


@dataclass(frozen=True)
class Corpus:
    """The Parquet files of a lake as they were at one moment, sorted by path.

    Attributes:
        store: rooted at the folder, or at the fixed prefix of a glob; the files' paths are relative to it.
        files: at least one.
        schema: all columns of all files.
    """

    store: Store
    files: tuple[ParquetFile, ...]
    schema: pa.Schema = field(repr=False)

    @cached_property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(file.num_rows for file in self.files)

    @cached_property
    def size_bytes(self) -> int:
        """Length of all files, compressed."""
        return sum(file.size_bytes for file in self.files)

    def __repr__(self) -> str:
        plural = "" if len(self.files) == 1 else "s"
        return (
            f"Corpus({self.store.url!r}: {len(self.files)} file{plural}, {self.num_rows:,} rows, "
            f"{self.size_bytes / 1e6:,.1f} MB)"
        )


class PlainConnector:
    """Plain Parquet files, listed; versions are copies in a destination, and the log of `connectors.commit`."""

    replaceable: frozenset[str] = frozenset()
    owns_log = True

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None, destination: Store) -> None:
        self.data = destination
        self._url = url
        self._storage_options = storage_options

    def read_corpus(self, on_progress: OnProgress = untold) -> Corpus:
        """See `list_parquet`."""
        return list_parquet(self._url, self._storage_options, on_progress)

    def list_files(self) -> list[ObjectInfo]:
        """By one listing."""
        return _resolve(self._url, self._storage_options)[1]

    def revision(self) -> str:
        """The number of the newest entry, by one listing of the log."""
        return str(newest_number(self.data))

    def folder(self, name: str) -> str:
        """A folder of the destination."""
        return f"data/{name}"

    def published_path(self, folder: str, file: ParquetFile) -> str:
        """The source's own path, below the folder."""
        return f"{folder}/{file.path}"

    def staged_schema(self, folder: str, file: ParquetFile, columns: pa.Schema) -> pa.Schema:  # noqa: ARG002
        """The columns as they are."""
        return columns

    def check_writable(self, *, single_writer: bool = False) -> None:
        """See `check_put_if_absent`."""
        check_put_if_absent(self.data, single_writer=single_writer)

    def read_log(self) -> list[Version]:
        """See `connectors.commit.read_log`."""
        return read_log(self.data)

    def read_manifest(self, version: Version) -> Manifest:
        """See `connectors.commit.read_manifest`."""
        return read_manifest(self.data, version)

    def named_manifests(self) -> frozenset[str]:
        """Of every entry of the log."""
        return frozenset(version.manifest_path for version in self.read_log())

    def current(self, corpus: Corpus) -> Manifest | None:  # noqa: ARG002  # of the protocol
        """The newest version's manifest, also if files of the lake have changed since."""
        log = self.read_log()
        return self.read_manifest(log[-1]) if log else None

    def commit(self, manifest: Manifest, *, idempotency_key: str) -> Version:
        """See `connectors.commit.commit`."""
        return commit(self.data, manifest, idempotency_key=idempotency_key)

    def restore(self, number: int) -> Version:
        """See `connectors.commit.restore`."""
        return restore(self.data, number)


def list_parquet(
    url: str, storage_options: Mapping[str, Any] | None = None, on_progress: OnProgress = untold
) -> Corpus:
    """The Parquet files at `url`, their footers read and their schemas compared.

    A folder is taken with everything below it, `key=value` folders as Hive partitions; parts of the path that
    start with `_` or `.` are passed over (Hive's convention; what we publish lives in `_curator/`). In a glob
    `*` stays inside a folder and `**` does not. A name that exists is taken literally even if it has wildcards.

    Args:
        url: what to list.
        storage_options: as for `open_store`.
        on_progress: called with (footers read so far, files).

    Raises:
        NotFoundError: nothing there, or nothing that is Parquet; the message says what is there.
        CorruptFileError: a file is not Parquet, or cut short.
        SchemaError: a column's type differs between files.
    """
    store, listed = _resolve(url, storage_options)
    for info in listed:
        _check_name(store, info.path)
    files = tuple(read_parquet_infos(store, listed, on_progress))
    return Corpus(store=store, files=files, schema=union_schema(files))


def check_corpus_unchanged(corpus: Corpus) -> None:
    """Check, by one listing, that every file is still the one that was listed.

    Raises:
        ConflictError: naming the first that has gone or is another one now.
    """
    now = {info.path: info.version for info in list_objects(corpus.store)}
    changed = [file.path for file in corpus.files if now.get(file.path) != file.version]
    if changed:
        what = "has changed" if changed[0] in now else "has gone"
        raise ConflictError(
            f"{corpus.store.describe(changed[0])} {what} since it was listed", hint="list the lake again"
        )


def lake_place(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Store, str]:
    """The store that `list_parquet(url)` would give, and what of it; nothing is listed, one object may be looked up.

    The store is the folder itself, of which "" is meant; the folder of a single file; or the fixed prefix of a glob.
    `key=value` folders at its end belong to the files' paths, since they are partitions.
    """
    store, _, path = _locate(url, storage_options)
    return store, path


def _resolve(url: str, options: Mapping[str, Any] | None) -> tuple[Store, list[ObjectInfo]]:
    store, kind, path = _locate(url, options)
    if kind == "file":
        return store, [stat_object(store, path)]
    if kind == "folder":
        seen = _visible(list_objects(store, prefix=path))
        chosen = [info for info in seen if info.path.endswith(SUFFIXES)]
    else:
        seen = _visible(list_objects(store))
        matcher = re.compile(glob_translate(path))
        chosen = [info for info in seen if info.path.endswith(SUFFIXES) and matcher.match(info.path)]
    if not chosen:
        raise _nothing_found(store, path if kind == "folder" else "", redact_url(url), seen)
    return store, chosen


def _locate(url: str, options: Mapping[str, Any] | None) -> tuple[Store, Literal["file", "folder", "glob"], str]:
    """What `url` means: the root, the kind, and the file, folder or glob relative to the root."""
    url = url if url.endswith("://") else url.rstrip("/") or "/"
    store = open_store(url, options)
    head, _, name = url.rpartition("/")
    if name and exists(store, ""):
        root, path = _anchor(head or ("/" if url.startswith("/") else "."), name, options)
        return root, "file", path
    pattern = _split_glob(url)
    if pattern is None or (store.is_local and Path(store.path).is_dir()):
        root, path = _anchor(url, "", options)
        return root, "folder", path
    root, path = _anchor(*pattern, options)
    return root, "glob", path


def _anchor(folder: str, rest: str, options: Mapping[str, Any] | None) -> tuple[Store, str]:
    """The store at `folder` and `rest` below it; trailing `key=value` folders move into `rest`, to be partitions."""
    head, _, last = folder.rpartition("/")
    while "=" in last and head and not head.endswith(":/"):
        folder, rest = head, f"{last}/{rest}" if rest else last
        head, _, last = folder.rpartition("/")
    if folder.endswith(":/"):  # the root of memory://
        folder += "/"
    return open_store(folder, options), rest


def _split_glob(url: str) -> tuple[str, str] | None:
    """(fixed prefix, glob relative to it), or None if `url` has no wildcard."""
    if not re.search(r"[*?\[]", url):
        return None
    parts = url.split("/")
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))
    glob = "/".join(parts[first:])
    if any("**" in part and part != "**" for part in parts):
        raise InputError(f"in {redact_url(url)} `**` must be a whole part of the path, as in lake/**/*.parquet")
    return "/".join(parts[:first]) or ("/" if url.startswith("/") else "."), glob


def _visible(infos: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    return [info for info in infos if not any(part.startswith(("_", ".")) for part in info.path.split("/"))]


def _nothing_found(store: Store, folder: str, url: str, seen: Sequence[ObjectInfo]) -> NotFoundError:
    if store.is_local and not Path(store.full_path(folder)).exists():
        return NotFoundError(f"{url} does not exist", hint="give a folder, file or glob of Parquet files")
    if not seen:
        return NotFoundError(
            f"there is nothing at {url}",
            hint="names starting with '_' or '.' are passed over: give a folder of Parquet files",
        )
    examples = ", ".join(info.path for info in seen[:3]) + (", …" if len(seen) > 3 else "")
    return NotFoundError(
        f"no Parquet file matches {url}",
        hint=f"of the {len(seen)} objects there ({examples}) none is meant, since only "
        f"names ending with {', '.join(SUFFIXES)} are taken: write the rows as Parquet",
    )


def _check_name(store: Store, path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the file name {path!a} in {store.describe()} is not valid UTF-8", hint="rename it"
        ) from error
