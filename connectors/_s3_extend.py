"""An S3 object that begins with the first bytes of another, copied by the server (UploadPartCopy)."""

import errno
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from connectors.errors import ConflictError
from connectors.store import ObjectInfo, Store, stat_object

# S3 takes parts of 5 MiB to 5 GiB, at most 10 000 of them; copies get half of the numbers, new bytes the other half.
_COPY_PART_BYTES = 64 * 1024 * 1024
_MAX_COPY_PARTS = 5000
_NEW_PART_BYTES = 16 * 1024 * 1024
_NUM_REQUESTS = 4
_NOT_OFFERED = {errno.ENOSYS, errno.ENOTSUP}


def is_same_s3(source: Store, target: Store) -> bool:
    """Whether both are reached on one S3 service with the same credentials, so that it can copy between them."""
    protocol = getattr(source.fs, "protocol", ())
    return (
        "s3" in ((protocol,) if isinstance(protocol, str) else protocol)
        and type(source.fs) is type(target.fs)
        and source.fs.storage_args == target.fs.storage_args
        and source.fs.storage_options == target.fs.storage_options
    )


@contextmanager
def s3_extension(
    source_store: Store, source: ObjectInfo, num_bytes: int, target_store: Store, target_path: str
) -> Iterator[BinaryIO | None]:
    """A sink behind the first `num_bytes` (5 MiB or more) of `source`, visible whole on clean exit.

    None if the service does not offer UploadPartCopy. An exception aborts the upload; a killed process leaves it
    unfinished, which is no object.

    Raises:
        ConflictError: the source is not the listed object any more.
    """
    upload = _Upload(target_store, target_path)
    try:
        offered = upload.copy(source_store, source, num_bytes)
        sink = _Parts(upload)
        yield cast(BinaryIO, sink) if offered else None
        if offered:
            sink.upload_pending()
            upload.complete()
    except BaseException:
        upload.abort()
        raise
    if not offered:
        upload.abort()


class _Upload:
    """One multipart upload, through s3fs' own client."""

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = store.full_path(path)
        bucket, key, _ = store.fs.split_path(self._path)
        self._address = {"Bucket": bucket, "Key": key}
        self._address["UploadId"] = store.fs.call_s3("create_multipart_upload", **self._address)["UploadId"]
        self._parts: list[dict[str, Any]] = []

    def copy(self, source_store: Store, source: ObjectInfo, num_bytes: int) -> bool:
        """Copies the first `num_bytes` of `source` as parts of 64 to 128 MiB; False if the service cannot."""
        bucket, key, _ = source_store.fs.split_path(source_store.full_path(source.path))
        num_parts = min(max(1, num_bytes // _COPY_PART_BYTES), _MAX_COPY_PARTS)
        bounds = [number * num_bytes // num_parts for number in range(num_parts + 1)]

        def copy_part(number: int) -> dict[str, Any]:
            answer = self._store.fs.call_s3(
                "upload_part_copy",
                **self._address,
                PartNumber=number,
                CopySource={"Bucket": bucket, "Key": key},
                CopySourceRange=f"bytes={bounds[number - 1]}-{bounds[number] - 1}",
                CopySourceIfMatch=f'"{source.version}"',
            )
            return _part(number, answer["CopyPartResult"])

        try:
            with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
                self._parts = list(pool.map(copy_part, range(1, num_parts + 1)))
        except OSError as error:
            if error.errno in _NOT_OFFERED:
                return False
            # A lost condition is EINVAL in s3fs, which other failures share: look.
            if stat_object(source_store, source.path).version != source.version:
                place = source_store.describe(source.path)
                raise ConflictError(f"{place} has changed since it was listed", hint="list the lake again") from error
            raise
        return True

    def add(self, data: bytes) -> None:
        """Uploads one more part; all but the last must have 5 MiB."""
        number = len(self._parts) + 1
        answer = self._store.fs.call_s3("upload_part", **self._address, PartNumber=number, Body=data)
        self._parts.append(_part(number, answer))

    def complete(self) -> None:
        """Atomic: the object is there, whole."""
        self._store.fs.call_s3("complete_multipart_upload", **self._address, MultipartUpload={"Parts": self._parts})
        self._store.fs.invalidate_cache(self._path)

    def abort(self) -> None:
        """Frees what was uploaded. Never fails, so as not to hide why it is called."""
        with suppress(Exception):
            self._store.fs.call_s3("abort_multipart_upload", **self._address)


class _Parts(io.RawIOBase):
    """A sink that uploads what it has got whenever that is large enough for a part."""

    def __init__(self, upload: _Upload) -> None:
        self._upload = upload
        self._pending = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pending += data
        if len(self._pending) >= _NEW_PART_BYTES:
            self.upload_pending()
        return len(data)

    def upload_pending(self) -> None:
        """Uploads the last part, of any size."""
        if self._pending:
            self._upload.add(bytes(self._pending))
            self._pending.clear()


def _part(number: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    # A checksum that S3 chose to make of a part has to be named again when the upload is completed.
    checksums = {k: v for k, v in answer.items() if k.startswith("Checksum") and k != "ChecksumType"}
    return {"PartNumber": number, "ETag": cast(str, answer["ETag"]), **checksums}
