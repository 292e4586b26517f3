"""A GCS object that begins with the whole of another, joined by the service (compose)."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO
from uuid import uuid4

from connectors._local import TEMPORARY_PREFIX
from connectors.errors import ConflictError, ConnectorError, NotFoundError
from connectors.store import ObjectInfo, Store, delete, object_errors, staged_file, stat_object


def is_same_gcs(source: Store, target: Store) -> bool:
    """Whether both are in one bucket of GCS, reached with the same credentials, so that it can join their objects."""
    protocol = getattr(source.fs, "protocol", ())
    return (
        "gs" in ((protocol,) if isinstance(protocol, str) else protocol)
        and type(source.fs) is type(target.fs)
        and source.fs.storage_options == target.fs.storage_options
        and source.fs.split_path(source.full_path())[0] == target.fs.split_path(target.full_path())[0]
    )


@contextmanager
def gcs_extension(source_store: Store, source: ObjectInfo, target_store: Store, target_path: str) -> Iterator[BinaryIO]:
    """A sink behind all of `source`, visible whole on clean exit.

    What goes into it is an object of its own beside the target until then; a killed process may leave that, by a name
    that `connectors.garbage` knows.

    Raises:
        ConflictError: the source is not the listed object any more.
    """
    from gcsfs.retry import HttpError

    fs = target_store.fs
    folder, slash, _ = target_path.rpartition("/")
    rest = f"{folder}{slash}{TEMPORARY_PREFIX}{uuid4().hex}"
    with object_errors(source_store, source.path, "read"):
        info = fs.info(source_store.full_path(source.path))
    if str(info["etag"]).strip('"') != source.version:
        raise _changed(source_store, source)
    try:
        with staged_file(target_store, rest) as sink:
            yield sink
        bucket, key, _ = fs.split_path(target_store.full_path(target_path))
        first = {
            "name": fs.split_path(source_store.full_path(source.path))[1],
            "generation": info["generation"],
            "objectPreconditions": {"ifGenerationMatch": info["generation"]},
        }
        parts = [first, {"name": fs.split_path(target_store.full_path(rest))[1]}]
        with object_errors(target_store, target_path, "write"):
            try:
                fs.call(
                    "POST",
                    "b/{}/o/{}/compose",
                    bucket,
                    key,
                    headers={"Content-Type": "application/json"},
                    json={"kind": "storage#composeRequest", "sourceObjects": parts, "destination": {}},
                )
            except (OSError, HttpError) as error:  # a lost condition is told in several ways, which others share: look
                if _is_unchanged(source_store, source):
                    raise
                raise _changed(source_store, source) from error
    finally:
        with suppress(ConnectorError):  # what brought us here matters more
            delete(target_store, rest)


def _is_unchanged(store: Store, source: ObjectInfo) -> bool:
    try:
        return stat_object(store, source.path).version == source.version
    except NotFoundError:
        return False


def _changed(store: Store, source: ObjectInfo) -> ConflictError:
    return ConflictError(f"{store.describe(source.path)} has changed since it was listed", hint="list the lake again")
