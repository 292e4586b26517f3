"""Every failure that leaves this package is a `ConnectorError`; no fsspec, botocore, Arrow or DuckDB exception leaks.

ConnectorError
├── NotFoundError            no such object, folder or version; or a folder without Parquet files
├── InputError               the data, or an argument, is not usable as it is
│   ├── SchemaError          a column is missing, mistyped, or differs between files
│   ├── CorruptFileError     an object is not readable as what it should be (Parquet, JSON, a DuckDB catalog)
│   └── BadRowsError         rows without text or domain, invalid UTF-8, missing or repeated keys
├── AccessError              the storage refused these credentials
│   └── ReadOnlyError        the destination cannot be written
├── UnavailableError         the storage did not answer; trying again may help
├── ConflictError            a conditional write lost, or an object changed since it was listed
├── UnsupportedError         well formed, but beyond what this version reads or writes
├── MissingExtraError        an optional dependency is not installed
└── BusyError                another process holds the catalog

A message is one sentence: what is wrong, where (file, column, row), what is allowed, what to do. It never
contains credentials.
"""

import difflib
from collections.abc import Iterable


class Hinted(Exception):  # noqa: N818 - what errors are made of, and none itself
    """As text the whole sentence: what is wrong, and after a semicolon the `hint`.

    Args:
        message: what is wrong and where.
        hint: what to do about it, where the message does not say so already.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}; {hint}")
        self.message = message
        self.hint = hint


class ConnectorError(Hinted):
    """Base of every failure of this package."""


class NotFoundError(ConnectorError):
    """No such object, folder or version, or a folder without Parquet files."""


class InputError(ConnectorError):
    """The data, or an argument, is not usable as it is."""


class SchemaError(InputError):
    """A column is missing, has a type that cannot be used, or differs between files."""


class CorruptFileError(InputError):
    """An object is not readable as what it should be."""


class BadRowsError(InputError):
    """Rows without text or domain, with invalid UTF-8, or with missing or repeated keys."""


class AccessError(ConnectorError):
    """The storage refused these credentials."""


class ReadOnlyError(AccessError):
    """The destination cannot be written."""


class UnavailableError(ConnectorError):
    """The storage did not answer; trying again may help."""


class ConflictError(ConnectorError):
    """A conditional write lost against another writer, or an object changed since it was listed."""


class UnsupportedError(ConnectorError):
    """Well formed, but beyond what this version reads or writes."""


class MissingExtraError(ConnectorError):
    """An optional dependency is not installed; the message ends with the command that installs it."""


class BusyError(ConnectorError):
    """Another process holds the catalog."""


def suggest(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the candidate nearest to `name`, else the candidates themselves, for a message."""
    candidates = sorted(candidates)
    nearest = difflib.get_close_matches(name, candidates, n=1)
    if not nearest:
        nearest = [c for c in candidates if c.casefold() == name.casefold()][:1]
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    shown = ", ".join(repr(c) for c in candidates[:8]) + (", …" if len(candidates) > 8 else "")
    return f"; there is {shown}: name one of these" if shown else "; there is no column at all"
