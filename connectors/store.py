"""Object storage. A store is a value; the operations are functions, each with its guarantee first.

Paths are relative to the store's root and use `/`. One behaviour on local folders, memory and object storage.
"""

import errno
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from connectors import _local
from connectors._failures import Action, holds_password, storage_errors
from connectors._failures import redact_url as redact_url
from connectors._filesystems import IsolatedMemoryFileSystem, build_filesystem
from connectors.errors import (
    ConflictError,
    ConnectorError,
    InputError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

PROBE_PREFIX = ".probe-"
_TIMES = ("mtime", "LastModified", "last_modified", "created")
"""What backends call the time at which an object was written."""


@dataclass(frozen=True)
class Store:
    """A place that holds objects.

    Attributes:
        url: for people and messages; never holds credentials.
        path: the root, in the filesystem's own form (`bucket/prefix`, `/home/me/lake`).
        fs: the fsspec filesystem; its options may hold credentials, so it is not in the repr.
    """

    url: str
    path: str
    fs: AbstractFileSystem = field(repr=False)

    @property
    def is_local(self) -> bool:
        """Whether the objects are files of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def is_remote(self) -> bool:
        """Whether reading costs a round trip over the network."""
        return not isinstance(self.fs, LocalFileSystem | IsolatedMemoryFileSystem)

    def describe(self, path: str = "") -> str:
        """The object's address for a message."""
        return _join(self.url, path)

    def full_path(self, path: str = "") -> str:
        """The object's address in the filesystem's own form.

        Raises:
            UnsupportedError: it leads out of the store, as no path does that was listed there or made by us.
        """
        if leads_out(path):
            raise UnsupportedError(
                f"{path!r} leads out of {self.url}, where nothing is read or written; what names it was damaged or is "
                "not ours"
            )
        return _join(self.path, path)


@dataclass(frozen=True)
class ObjectInfo:
    """One object as listed.

    Attributes:
        path: relative to the store's root.
        size_bytes: its length.
        version: changes when the content is replaced: the ETag, else modification time in ns and size.
        modified_at: when it was written, in seconds since 1970 by the storage's clock; infinity if it does not tell.
    """

    path: str
    size_bytes: int
    version: str
    modified_at: float = field(default=math.inf, compare=False)


def leads_out(path: str) -> bool:
    """Whether a relative path has a part `..`, by which a record could name any file of the machine."""
    return ".." in path.replace("\\", "/").split("/")


def open_store(url: str, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at `url`; nothing is read or created.

    Args:
        url: a local path, or `file://`, `memory://`, `s3://`, `gs://`, `abfs://` …
        storage_options: given to the fsspec backend (endpoint, credentials).

    Raises:
        InputError: credentials inside the URL.
        UnsupportedError: unknown scheme, or options its backend does not take.
        MissingExtraError: the backend is not installed.
    """
    protocol, separator, rest = url.partition("://")
    if not separator:
        protocol, rest = "file", url
    clean = redact_url(url)
    if protocol != "file" and holds_password(url):
        raise InputError(f"the address {clean} holds a password", hint="give credentials in storage_options instead")
    options = dict(storage_options or {})
    with storage_errors(clean, "read", options):
        fs = build_filesystem(protocol, options)
    if protocol == "file":
        path = os.path.abspath(os.path.expanduser(rest))  # noqa: PTH100, PTH111  # Path would follow links or drop them
        return Store(url=path, path=path, fs=fs)
    path = fs._strip_protocol(f"{protocol}://{rest}").rstrip("/")  # noqa: SLF001  # fsspec's only way to ask
    return Store(url=clean.rstrip("/"), path=path, fs=fs)


def substore(store: Store, path: str) -> Store:
    """The store rooted at a folder of `store`."""
    return replace(store, url=store.describe(path), path=store.full_path(path))


def list_objects(
    store: Store, suffix: str = "", *, prefix: str = "", with_temporaries: bool = False
) -> list[ObjectInfo]:
    """Every object below the folder `prefix` whose name ends with `suffix`, sorted by path; `[]` if there is none.

    Files that a local write has not finished are passed over unless `with_temporaries`.

    Raises:
        NotFoundError: the bucket does not exist.
        AccessError, UnavailableError: the storage refused or did not answer.
    """
    with object_errors(store, prefix, "list"):
        if store.is_local:
            root = Path(store.full_path(prefix))
            found = [_local_info(_join(prefix, path), stat) for path, stat in _walk_if_folder(root, with_temporaries)]
        else:
            listed = store.fs.find(store.full_path(prefix), detail=True)
            if not listed and "abfs" in store.fs.protocol:  # adlfs lists a container that does not exist as empty
                store.fs.info(store.path.split("/")[0])
            start = len(store.path.rstrip("/")) + 1
            found = [
                _remote_info(name[start:], info)
                for name, info in listed.items()
                if info["type"] == "file" and len(name) > start and not name.endswith("/")
            ]
    return sorted((info for info in found if info.path.endswith(suffix)), key=lambda info: info.path)


def list_folder(store: Store, prefix: str = "") -> list[ObjectInfo]:
    """The objects in the folder `prefix` itself, temporary ones too, sorted by path; `[]` if there is none."""
    try:
        with object_errors(store, prefix, "list"):
            if store.is_local:
                stats = ((entry.name, _local.file_stat(entry)) for entry in os.scandir(store.full_path(prefix)))
                found = [_local_info(_join(prefix, name), stat) for name, stat in stats if stat is not None]
            else:
                listed = store.fs.ls(store.full_path(prefix), detail=True)
                start = len(store.path.rstrip("/")) + 1
                found = [_remote_info(info["name"][start:], info) for info in listed if info["type"] == "file"]
    except NotFoundError:
        return []
    return sorted((info for info in found if info.path), key=lambda info: info.path)


def stat_object(store: Store, path: str) -> ObjectInfo:
    """Size and version of one object, as of now.

    Raises:
        NotFoundError: no such object.
    """
    with object_errors(store, path, "read"):
        if store.is_local:
            file = Path(store.full_path(path))
            if file.is_dir():
                raise IsADirectoryError(path)
            return _local_info(path, file.stat())
        info = store.fs.info(store.full_path(path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return _remote_info(path, info)


def exists(store: Store, path: str) -> bool:
    """Whether there is an object (not a folder) at `path`."""
    try:
        stat_object(store, path)
    except NotFoundError:
        return False
    return True


def read_bytes(store: Store, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes [start, end) of an object; all of it by default.

    Raises:
        NotFoundError: no such object.
    """
    with object_errors(store, path, "read"):
        return cast(bytes, store.fs.cat_file(store.full_path(path), start=start, end=end))


@contextmanager
def open_object(store: Store, path: str) -> Iterator[BinaryIO]:
    """A seekable reader of one object that fetches exactly the ranges asked for.

    Raises:
        NotFoundError: no such object.
    """
    options = {"cache_type": "none"} if store.is_remote else {}
    with object_errors(store, path, "read"), store.fs.open(store.full_path(path), "rb", **options) as source:
        if getattr(source, "details", {}).get("type") == "directory":  # s3fs opens a prefix as an empty file
            raise IsADirectoryError(path)
        yield source


def write_object(store: Store, path: str, data: bytes) -> None:
    """Atomic: readers see the whole new object or what was there before.

    Raises:
        ReadOnlyError: the destination cannot be written.
    """
    if store.is_local:
        with staged_file(store, path) as sink:
            sink.write(data)
    else:
        with object_errors(store, path, "write"):
            store.fs.pipe_file(store.full_path(path), data)


def put_if_absent(store: Store, path: str, data: bytes) -> None:
    """Atomic: creates the whole object, or changes nothing because there is one already.

    After an `UnavailableError` the answer was lost and the object may or may not exist: read it back.

    Raises:
        ConflictError: there is an object at `path`.
        ReadOnlyError: the destination cannot be written.
    """
    with object_errors(store, path, "write"):
        try:
            if store.is_local:
                with _local.staged(Path(store.full_path(path)), publish=_local.link_new) as sink:
                    sink.write(data)
            else:
                store.fs.pipe_file(store.full_path(path), data, mode="create")
        except OSError as error:
            # s3fs tells a lost condition as EINVAL (412) or EBUSY/EIO (409), which other failures share: look.
            if _may_be_lost_condition(error) and exists(store, path):
                raise ConflictError(f"{store.describe(path)} exists already; another writer was first") from error
            raise


@contextmanager
def staged_file(store: Store, path: str) -> Iterator[BinaryIO]:
    """A sink for one object, made visible whole on clean exit; an exception leaves what was there before.

    Local files are synced to disk before they appear. An OSError raised in the body counts as a failure of this
    write. On object storage a killed process may leave an unfinished multipart upload, never an object.

    Raises:
        ReadOnlyError: the destination cannot be written.
    """
    with object_errors(store, path, "write"):
        if store.is_local:
            with _local.staged(Path(store.full_path(path))) as sink:
                yield sink
        elif isinstance(store.fs, IsolatedMemoryFileSystem):
            buffer = io.BytesIO()
            yield buffer
            store.fs.pipe_file(store.full_path(path), buffer.getvalue())
        else:
            with _staged_upload(store, path) as sink:
                yield sink


def delete(store: Store, path: str) -> None:
    """Removes one object; no error if there is none.

    Raises:
        ReadOnlyError: the destination cannot be written.
    """
    with object_errors(store, path, "delete"), suppress(FileNotFoundError):
        store.fs.rm_file(store.full_path(path))


def check_put_if_absent(store: Store, prefix: str = "", *, single_writer: bool = False) -> bool:
    """Live test, leaving nothing: whether the store honours `put_if_absent`. Some S3 look-alikes silently overwrite.

    Args:
        store: where to try.
        prefix: a folder of it.
        single_writer: the caller vouches that nobody else ever writes there at the same time; then a store that
            overwrites is let pass.

    Raises:
        UnsupportedError: the second write of the same probe was accepted, and there may be more than one writer.
        ReadOnlyError: the destination cannot be written.
    """
    name = f"{PROBE_PREFIX}{uuid4().hex}"
    probe = _join(prefix, name)
    try:
        # Nobody else has this name: if it is there at the first write, that was carried out twice, and the second time
        # was refused as it should be.
        with suppress(ConflictError):
            put_if_absent(store, probe, b"first")
            put_if_absent(store, probe, b"second")
            if single_writer:
                return False
            raise UnsupportedError(
                f"{store.describe()} ignores conditional writes, so two writers could publish over each other",
                hint="publish to a local folder or to storage that honours If-None-Match; or, if only one process at "
                "a time ever writes there, say so: single_writer = true in [lake] of the settings, or "
                "open_lake(…, single_writer=True)",
            )
    except ReadOnlyError as error:  # the probe's name is nobody's business
        raise ReadOnlyError(f"{str(error).replace(f'/{name}', '')} (--destination)") from error
    finally:
        with suppress(ConnectorError):  # the failure that brought us here matters more than the probe
            delete(store, probe)
    return True


def object_errors(store: Store, path: str, action: Action) -> AbstractContextManager[None]:
    """Within it, what a storage library raises leaves as a `ConnectorError` about the object."""
    return storage_errors(store.describe(path), action, getattr(store.fs, "storage_options", {}))


@contextmanager
def _staged_upload(store: Store, path: str) -> Iterator[BinaryIO]:
    sink = store.fs.open(store.full_path(path), "wb", autocommit=False)
    try:
        yield sink
        sink.close()  # uploads what is left; nothing is visible yet
        sink.commit()
    except BaseException:
        with suppress(Exception):  # whatever the backend raises here must not hide what went wrong
            sink.discard()
        sink.closed = True  # else the garbage collector would close it, which uploads
        raise


def _may_be_lost_condition(error: OSError) -> bool:
    return isinstance(error, FileExistsError) or error.errno in (errno.EINVAL, errno.EEXIST, errno.EBUSY, errno.EIO)


def _walk_if_folder(root: Path, with_temporaries: bool) -> Iterator[tuple[str, os.stat_result]]:
    return _local.walk(root, with_temporaries) if root.is_dir() else iter(())


def _local_info(path: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}", stat.st_mtime)


def _remote_info(path: str, info: Mapping[str, Any]) -> ObjectInfo:
    size = int(info["size"])
    changed = next((info[name] for name in _TIMES if info.get(name)), None)
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed or 0)
    tag = info.get("ETag") or info.get("etag")
    version = str(tag).strip('"') if tag else f"{int(seconds * 1e9)}-{size}"
    return ObjectInfo(path, size, version, seconds or math.inf)


def _join(root: str, path: str) -> str:
    if not root or not path:
        return root or path
    return f"{root.rstrip('/')}/{path}"
