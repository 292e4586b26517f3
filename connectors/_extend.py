"""An object that begins with the first bytes of another one, which the storage itself copies where it can."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from connectors._gcs_extend import gcs_extension, is_same_gcs
from connectors._s3_extend import is_same_s3, s3_extension
from connectors.errors import ConflictError
from connectors.store import ObjectInfo, Store, object_errors, open_object, read_bytes, staged_file, stat_object

_BLOCK_BYTES = 16 * 1024 * 1024
# Below S3's smallest part there is nothing to gain by copying there.
_MIN_COPY_BYTES = 5 * 1024 * 1024
_NOT_COPIED_BY_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


def num_kept_bytes(source_store: Store, source: ObjectInfo, needed: int, target_store: Store) -> int:
    """How many of the source's first bytes `extended_file` is best asked for, if the first `needed` are: GCS joins
    whole objects alone.
    """
    return source.size_bytes if needed >= _MIN_COPY_BYTES and is_same_gcs(source_store, target_store) else needed


@contextmanager
def extended_file(
    source_store: Store, source: ObjectInfo, num_bytes: int, target_store: Store, target_path: str
) -> Iterator[BinaryIO]:
    """A sink that holds the first `num_bytes` of `source` already, made visible whole on clean exit.

    As `staged_file`, which it is wherever the bytes have to pass through this process. Between local files the
    kernel copies them, on one S3 service the service does, as on GCS if they are all of `source`. Memory: 16 MiB; on S3
    at most two parts of 16 MiB.

    Raises:
        ConflictError: the source is not the listed object any more, or is shorter; nothing was written.
        ReadOnlyError: the target cannot be written.
    """
    if num_bytes == source.size_bytes >= _MIN_COPY_BYTES and is_same_gcs(source_store, target_store):
        with gcs_extension(source_store, source, target_store, target_path) as joined:
            yield joined
        return
    if num_bytes >= _MIN_COPY_BYTES and is_same_s3(source_store, target_store):
        with (
            object_errors(target_store, target_path, "write"),
            s3_extension(source_store, source, num_bytes, target_store, target_path) as sink,
        ):
            if sink is not None:
                yield sink
                return
    with staged_file(target_store, target_path) as staged:
        if source_store.is_local and target_store.is_local:
            _copy_locally(source_store, source, num_bytes, staged)
        else:
            _copy_blocks(source_store, source, num_bytes, staged)
        yield staged


def _copy_locally(store: Store, source: ObjectInfo, num_bytes: int, sink: BinaryIO) -> None:
    with open_object(store, source.path) as opened:
        sink.flush()
        copied = _copy_in_kernel(opened.fileno(), sink.fileno(), num_bytes)
        sink.seek(copied)
        opened.seek(copied)
        while copied < num_bytes:
            block = opened.read(min(_BLOCK_BYTES, num_bytes - copied))
            if not block:
                raise _shorter(store, source)
            sink.write(block)
            copied += len(block)


def _copy_in_kernel(source: int, target: int, num_bytes: int) -> int:
    """How many of the first bytes it copied: all of them, or fewer where the file systems do not take part."""
    copied = 0
    if not hasattr(os, "copy_file_range"):  # Linux only
        return copied
    while copied < num_bytes:
        try:
            done = os.copy_file_range(source, target, num_bytes - copied, copied, copied)
        except OSError as error:
            if error.errno not in _NOT_COPIED_BY_KERNEL:
                raise
            break
        if not done:
            break
        copied += done
    return copied


def _copy_blocks(store: Store, source: ObjectInfo, num_bytes: int, sink: BinaryIO) -> None:
    for start in range(0, num_bytes, _BLOCK_BYTES):
        end = min(start + _BLOCK_BYTES, num_bytes)
        block = read_bytes(store, source.path, start, end)
        if len(block) < end - start:
            raise _shorter(store, source)
        sink.write(block)


def _shorter(store: Store, source: ObjectInfo) -> ConflictError:
    size = stat_object(store, source.path).size_bytes
    return ConflictError(
        f"{store.describe(source.path)} has {size} bytes instead of {source.size_bytes} since it was listed",
        hint="list the lake again",
    )
