"""What crashed writers left in a destination: found by what no version names, removed only when it is old.

An object that a writer staged becomes part of a version later, so nothing is garbage that is younger than a grace time,
which must be longer than a publication takes. Entries of the log are never garbage: they are the history.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from connectors._local import TEMPORARY_PREFIX, remove_empty_folders
from connectors._table import COPIES
from connectors.commit import LOG_FOLDER, MANIFEST_FOLDER, read_log, read_manifest
from connectors.errors import NotFoundError
from connectors.lease import LOCK_FOLDER
from connectors.store import (
    PROBE_PREFIX,
    ObjectInfo,
    Store,
    delete,
    list_folder,
    list_objects,
    object_errors,
    stat_object,
)

DATA_FOLDER = "data"
_MANIFEST = re.compile(rf"{MANIFEST_FOLDER}/[0-9a-f]{{32}}\.json")
_TABLE_MANIFEST = re.compile(rf"{MANIFEST_FOLDER}/[0-9a-f]{{32}}-\d+\.json")


_CLOCK_SECONDS = 1.0
"""What two answers about one object's time may differ by: S3 lists milliseconds and tells seconds."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something that no version names.

    Attributes:
        kind: an object, a file that a killed process was writing, or a multipart upload that was never completed.
        path: relative to the destination.
        size_bytes: what it takes; of an upload its parts.
        modified_at: when it was written or begun, in seconds since 1970.
        upload_id: of an upload.
    """

    kind: Literal["object", "temporary", "upload"]
    path: str
    size_bytes: int
    modified_at: float
    upload_id: str = ""


def find_garbage(
    store: Store, staged: re.Pattern[str], *, grace_seconds: float, without: Collection[int] = ()
) -> list[Garbage]:
    """What may be removed: older than the grace time, ours by its name, and named by no version. Changes nothing.

    Of versions that were let go (`connectors.commit.collect`) the manifests stay and the files are garbage.

    Args:
        store: the destination.
        staged: matches the whole path of what the caller stages below `data/`; all else there is left alone.
        grace_seconds: longer than any publication takes.
        without: numbers of more versions, as if they had been let go.

    Raises:
        CorruptFileError: the log or a manifest is damaged, so that it cannot be told what is garbage.
        UnavailableError, AccessError: the storage did not answer or refused.
    """
    before = time.time() - grace_seconds
    found = [info for info in _candidates(store, staged) if info.modified_at < before]
    # Read after the listing: what was committed in between counts.
    log = read_log(store)
    named = {version.manifest_path for version in log}
    kept = [version for version in log if version.collected_by is None and version.number not in without]
    for version in {version.manifest_path: version for version in kept}.values():
        named |= {file.published_path for file in read_manifest(store, version).files}
    garbage = [_object(info) for info in found if info.path not in named]
    uploads = [
        upload
        for upload in _uploads(store, DATA_FOLDER)
        if upload.modified_at < before and staged.fullmatch(upload.path)
    ]
    return sorted([*garbage, *uploads], key=lambda item: (item.path, item.upload_id))


def find_table_garbage(
    destination: Store, table: Store, named_manifests: Callable[[], Collection[str]], *, grace_seconds: float
) -> list[tuple[Store, Garbage]]:
    """What may be removed of a table's: manifests that no commit names, and what killed writers had not finished.

    Copies that no snapshot names are not among it: only the table's own cleaning knows which snapshots are read.

    Args:
        destination: where the manifests are.
        table: the table's folder.
        named_manifests: the manifests that commits of the table name; asked after the listing.
        grace_seconds: as for `find_garbage`.

    Returns:
        Each with the store that its path is relative to.
    """
    before = time.time() - grace_seconds
    manifests = list_objects(destination, prefix=MANIFEST_FOLDER, with_temporaries=True)
    locks = list_objects(destination, prefix=LOCK_FOLDER, with_temporaries=True)
    left = [info for info in (*manifests, *locks, *list_folder(destination)) if _is_temporary(info.path)]
    staged = [info for info in list_objects(table, prefix=COPIES, with_temporaries=True) if _is_temporary(info.path)]
    named = named_manifests()
    unnamed = [info for info in manifests if _TABLE_MANIFEST.fullmatch(info.path) and info.path not in named]
    found = [(destination, _object(info)) for info in (*left, *unnamed)] + [(table, _object(info)) for info in staged]
    found += [(table, upload) for upload in _uploads(table, COPIES)]
    return [(store, item) for store, item in found if item.modified_at < before]


def remove_garbage(store: Store, item: Garbage) -> bool:
    """Removes it, unless it has gone or was written again since it was found; whether it did.

    Local folders below `data/` that it was the last file of go with it.

    Raises:
        ReadOnlyError: the destination cannot be written.
    """
    if item.kind == "upload":
        bucket, _, key = store.full_path(item.path).partition("/")
        try:
            with object_errors(store, item.path, "delete"):
                store.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=item.upload_id)
        except NotFoundError:
            return False
        return True
    try:
        if stat_object(store, item.path).modified_at > item.modified_at + _CLOCK_SECONDS:
            return False
    except NotFoundError:
        return False
    delete(store, item.path)
    if store.is_local and item.path.startswith(f"{DATA_FOLDER}/"):
        remove_empty_folders(Path(store.full_path(item.path)).parent, Path(store.full_path(DATA_FOLDER)))
    return True


def _candidates(store: Store, staged: re.Pattern[str]) -> Iterator[ObjectInfo]:
    for folder in (DATA_FOLDER, MANIFEST_FOLDER, LOG_FOLDER, LOCK_FOLDER):
        for info in list_objects(store, prefix=folder, with_temporaries=True):
            if _is_temporary(info.path) or staged.fullmatch(info.path) or _MANIFEST.fullmatch(info.path):
                yield info
    yield from (info for info in list_folder(store) if _is_temporary(info.path))


def _object(info: ObjectInfo) -> Garbage:
    return Garbage(
        kind="temporary" if _is_temporary(info.path) else "object",
        path=info.path,
        size_bytes=info.size_bytes,
        modified_at=info.modified_at,
    )


def _is_temporary(path: str) -> bool:
    """A name that nobody but us makes: 32 hexadecimal digits after the prefix."""
    name = path.rpartition("/")[2]
    return any(re.fullmatch(rf"{re.escape(prefix)}[0-9a-f]{{32}}", name) for prefix in (TEMPORARY_PREFIX, PROBE_PREFIX))


def _uploads(store: Store, folder: str) -> Iterator[Garbage]:
    """Multipart uploads below a folder that were begun and neither completed nor aborted; S3 alone has them."""
    if not hasattr(store.fs, "call_s3"):
        return
    bucket, _, root = store.full_path().partition("/")
    start = f"{root}/" if root else ""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{start}{folder}/"}
    while True:
        with object_errors(store, folder, "list"):
            answer = store.fs.call_s3("list_multipart_uploads", **request)
        for upload in answer.get("Uploads") or ():
            if upload["Key"].startswith(request["Prefix"]):
                yield Garbage(
                    kind="upload",
                    path=upload["Key"][len(start) :],
                    size_bytes=_uploaded_bytes(store, bucket, upload),
                    modified_at=upload["Initiated"].timestamp(),
                    upload_id=upload["UploadId"],
                )
        if not answer.get("IsTruncated"):
            return
        request |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def _uploaded_bytes(store: Store, bucket: str, upload: Mapping[str, Any]) -> int:
    request: dict[str, Any] = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    total: int = 0
    while True:
        try:
            with object_errors(store, upload["Key"], "list"):
                answer = store.fs.call_s3("list_parts", **request)
        except NotFoundError:  # completed or aborted since
            return total
        total += sum(int(part["Size"]) for part in answer.get("Parts") or ())
        if not answer.get("IsTruncated"):
            return total
        request["PartNumberMarker"] = answer["NextPartNumberMarker"]
