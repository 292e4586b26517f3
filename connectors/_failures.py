"""What leaves the storage libraries becomes a `ConnectorError` here, without credentials in the message."""

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from connectors.errors import (
    AccessError,
    ConflictError,
    ConnectorError,
    InputError,
    NotFoundError,
    ReadOnlyError,
    UnavailableError,
)

Action = Literal["list", "read", "write", "delete"]

# Backends let these libraries' exceptions through; an exception from anywhere else is a bug and stays as it is.
_STORAGE_LIBRARIES = frozenset(
    {"adlfs", "aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "gcsfs", "google", "s3fs", "urllib3"}
)
# What Azure appends to its sentence: the request's id and the same again in XML.
_AZURE_DETAILS = re.compile(r"\s*RequestId:.*", re.S)
_SECRET_OPTION = re.compile(r"secret|password|passwd|token|key|sas|credential|connection_string|auth|user", re.I)
# After http:// a colon is mostly that of a port, and in an ARN of S3 it is part of the name.
_LOGIN = re.compile(r"(?:(?<=http)|(?<=https))://[^/@\s]*:[^/@\s]*@|(?<!http)(?<!https)://(?!arn:)[^/@\s]*:\S*@")
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_RETRYABLE = frozenset({errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET}) | {
    getattr(errno, "EREMOTEIO", errno.EIO)
}


def redact_url(url: str) -> str:
    """`url` without user, password and query; a glob's `?` is kept, since no `key=value` follows it.

    Secrets of S3 have slashes, so a password may go on over several parts of what looks like the path.
    """
    url = _LOGIN.sub("://", url)
    return re.sub(r"\?[^/]*=.*$", "", url)


def holds_password(url: str) -> bool:
    """Whether a user and a password stand before the address."""
    return _LOGIN.search(url) is not None


def scrub(message: str, options: Mapping[str, Any]) -> str:
    """`message` on one line, with every secret value of `options` replaced by `***` and URLs redacted."""
    line = " ".join(_AZURE_DETAILS.sub("", message).split())
    for secret in sorted(_secret_values(options), key=len, reverse=True):
        line = line.replace(secret, "***")
    return re.sub(r"\S+://\S+", lambda match: redact_url(match.group()), line)[:300]


def _secret_values(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secret_values(value)
        elif isinstance(value, str) and _SECRET_OPTION.search(name):
            yield from (line for line in value.splitlines() if len(line) > 3)  # messages are put on one line
            if name == "connection_string":  # of Azure: NAME=VALUE;…
                parts = dict(part.partition("=")[::2] for part in value.split(";"))
                yield from _secret_values(parts)


@contextmanager
def storage_errors(place: str, action: Action, options: Mapping[str, Any]) -> Iterator[None]:
    """Within it, what a storage library raises leaves as a `ConnectorError` about `place`; the rest is untouched."""
    try:
        yield
    except ConnectorError:
        raise
    except Exception as error:  # each backend has its own exception classes; those of others are re-raised below
        told = _unwrapped(error)
        if not _is_storage_error(told):
            raise
        raise _translate(told, place, action, options) from error


def _unwrapped(error: Exception) -> Exception:
    """What adlfs raises while a file is uploaded is a RuntimeError around Azure's own."""
    cause = error.__cause__
    return cause if type(error) is RuntimeError and isinstance(cause, Exception) else error


def _is_storage_error(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _STORAGE_LIBRARIES


def _translate(error: Exception, place: str, action: Action, options: Mapping[str, Any]) -> ConnectorError:
    said = (scrub(str(error), options) or type(error).__name__).rstrip(".")
    number = getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError | NotADirectoryError) or type(error).__name__ == "ResourceNotFoundError":
        return NotFoundError(f"cannot {action} {place}: it does not exist", hint="check the address")
    if isinstance(error, IsADirectoryError):
        return NotFoundError(f"cannot {action} {place}: it is a folder", hint="name an object in it")
    if type(error).__name__ == "FileExpired":  # s3fs: If-Match failed in the middle of a read
        return ConflictError(f"{place} changed while it was read", hint="list the lake again")
    if _was_refused(error) and "://" not in place:
        said = getattr(error, "strerror", None) or said  # which does not say the path again
        if action in ("write", "delete"):
            return ReadOnlyError(
                f"cannot {action} {place}: {said}", hint="let this user write there, or choose another place"
            )
        return AccessError(
            f"cannot {action} {place}: {said}",
            hint="let this user read it and open its folders, or work as its owner: "
            "`ls -l` shows owner and permissions",
        )
    if _was_refused(error):
        if action in ("write", "delete"):
            return ReadOnlyError(f"cannot {action} {place}: {said}", hint="choose a destination that you may write")
        return AccessError(
            f"cannot {action} {place}: {said}",
            hint="set the credentials in the environment or storage_options, "
            "`curator doctor` says which were found and what to set",
        )
    # botocore's and Azure's: such as a bucket name that cannot be
    if type(error).__name__ == "ParamValidationError" or getattr(error, "error_code", "") == "InvalidResourceName":
        return InputError(f"cannot {action} {place}: {said}")
    if number == errno.ENOSPC:
        return ReadOnlyError(f"cannot {action} {place}: the device is full", hint="free some space")
    if isinstance(error, TimeoutError | ConnectionError) or number in _RETRYABLE or number is None:
        return UnavailableError(f"cannot {action} {place}: {said}", hint="try again, or check the endpoint and network")
    return ConnectorError(f"cannot {action} {place}: {said}")


def _was_refused(error: Exception) -> bool:
    """Whether the storage knew what was asked and said no; each backend says it in its own way."""
    if isinstance(error, PermissionError) or getattr(error, "errno", None) in _REFUSED:
        return True
    status = getattr(error, "code", None) or getattr(error, "status_code", None)  # gcsfs, azure
    named = type(error).__name__ in ("NoCredentialsError", "ClientAuthenticationError")
    return named or str(status) in ("401", "403") or str(error).startswith("Forbidden")
