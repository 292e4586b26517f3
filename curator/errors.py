"""Everything the SDK raises on purpose.

CuratorError                exit code 1
├── UsageError              2   a value that was passed in cannot be used
│   ├── ConfigError         2   a configuration file, key or value
│   └── InputError          2   the lake, the target or the model as they are cannot be used
├── MissingExtraError       2   a package of an extra is not installed
├── StorageError            1   object storage refused or failed
├── LearningError           1   a run failed
├── NotFoundError           2   a run or version that this lake does not have
├── InterruptedRunError     1   stopped by the user
└── TryAgainError           75  somebody else was first, or holds the catalog; the same call may succeed later

Errors of the packages below (`ConnectorError`, `OptimError`, DuckDB's, the disk's) never reach a caller of the SDK:
`translated()` turns each into one of these, with the original as its cause. A message is one sentence on one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from connectors import errors as connector_errors


class CuratorError(connector_errors.Hinted):
    """Base of the tree. `code` is stable and stands in `--json` output; `exit_code` is the process's.

    What is wrong is its `message`, what to do its `hint`, and as text it is both.
    """

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1


class UsageError(CuratorError):
    """A value that was passed in cannot be used."""

    code = "usage"
    exit_code = 2


class ConfigError(UsageError):
    """A configuration file, key or value cannot be used."""

    code = "config"


class InputError(UsageError):
    """The lake, the target or the model cannot be used as they are."""

    code = "input"


class MissingExtraError(CuratorError):
    """A package of an extra is not installed."""

    code = "missing_extra"
    exit_code = 2


class NotFoundError(CuratorError):
    """This lake has no such run or version."""

    code = "not_found"
    exit_code = 2


class StorageError(CuratorError):
    """Object storage refused or failed."""

    code = "storage"


class LearningError(CuratorError):
    """A learning run failed."""

    code = "learning"


class InterruptedRunError(CuratorError):
    """The user stopped the work."""

    code = "interrupted"


class TryAgainError(CuratorError):
    """Somebody else was first, or holds the catalog; the same call may succeed later."""

    code = "try_again"
    exit_code = 75


STOPPED = "interrupted; nothing was published, the same command may be run again"


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of `connectors`, `optim`, DuckDB and the disk from within as members of this tree."""
    try:
        yield
    except connector_errors.ConnectorError as error:
        raise _of_connectors(error)(" ".join(error.message.split()), hint=error.hint) from error
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        said = error.strerror or one_line(error)
        raise StorageError(f"{place}{said}", hint="free or mend the disk and try again") from error
    except Exception as error:
        ours = _of_optim(error)
        if ours is not None:
            raise ours from error
        if is_of_duckdb(error):
            raise StorageError(f"DuckDB failed: {one_line(error)}") from error
        if isinstance(error, RuntimeError) and str(error) == "Query interrupted":  # what DuckDB makes of Ctrl-C
            raise InterruptedRunError(STOPPED) from error
        raise


def one_line(error: Exception) -> str:
    """What an error says, without line breaks, DuckDB's excerpt of the query and its marker left out."""
    return " ".join(str(error).partition("\n\nLINE ")[0].split())


def is_of_duckdb(error: Exception) -> bool:
    """Whether DuckDB raised it; told by name, since this module is imported where DuckDB need not be."""
    return any(base.__module__ in ("duckdb", "_duckdb") and base.__name__ == "Error" for base in type(error).__mro__)


def _of_connectors(error: connector_errors.ConnectorError) -> type[CuratorError]:
    table: dict[type[connector_errors.ConnectorError], type[CuratorError]] = {
        connector_errors.MissingExtraError: MissingExtraError,
        connector_errors.NotFoundError: InputError,
        connector_errors.InputError: InputError,
        connector_errors.UnsupportedError: InputError,
        connector_errors.ConflictError: TryAgainError,
        connector_errors.BusyError: TryAgainError,
    }
    return next((kind for base, kind in table.items() if isinstance(error, base)), StorageError)


def _of_optim(error: Exception) -> CuratorError | None:
    """What an error of `optim` becomes; it is imported only where torch is, so classes are compared by name."""
    table: dict[str, type[CuratorError]] = {
        "LayoutError": InputError,
        "ModelError": InputError,
        "MissingExtraError": MissingExtraError,
        "StoppedError": InterruptedRunError,
        "OptimError": LearningError,
    }
    names = [base.__name__ for base in type(error).__mro__ if base.__module__ == "optim.errors"]
    kind = next((table[name] for name in names if name in table), None)
    if kind is None:
        return None
    said = vars(error)  # every OptimError has both
    return kind(" ".join(said["message"].split()), hint=said["hint"])
