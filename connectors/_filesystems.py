"""URL → fsspec filesystem, configured so that nothing is cached behind our back."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from connectors.errors import MissingExtraError, UnsupportedError

# protocol → the extra that brings its backend; None needs none
PROTOCOLS: Mapping[str, str | None] = {
    "file": None,
    "memory": None,
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}


class IsolatedMemoryFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's memory filesystem, safe for threads: readers do not share a position, `create` is atomic.

    The stock one hands every reader the same buffer, so two DuckDB threads would move each other's position.
    It sees the same objects as `fsspec.filesystem("memory")`.
    """

    protocol = "memory"

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            return MemoryFile(None, None, self.cat_file(path))
        return super()._open(path, mode=mode, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Set the whole object at once; with `mode="create"` only if there is none."""
        key = self._strip_protocol(path)
        created = MemoryFile(self, key, value)
        if mode != "create":
            self.store[key] = created
        elif self.store.setdefault(key, created) is not created:
            raise FileExistsError(key)


def build_filesystem(protocol: str, options: Mapping[str, Any]) -> AbstractFileSystem:
    """The filesystem for `protocol`: listings are never cached, reads fetch only what is asked for.

    Raises:
        UnsupportedError: unknown protocol, or options that its backend does not take.
        MissingExtraError: the backend is not installed.
    """
    if protocol not in PROTOCOLS:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise UnsupportedError(f"unknown storage {protocol}://", hint=f"a lake may be a local path or one of {known}")
    if protocol == "file":
        return LocalFileSystem()
    if protocol == "memory":
        return IsolatedMemoryFileSystem(use_listings_cache=False)
    try:
        backend = get_filesystem_class(protocol)
    except ImportError as error:
        extra = PROTOCOLS[protocol]
        raise MissingExtraError(
            f"{protocol}:// needs an optional dependency: pip install 'lake-curator[{extra}]'"
        ) from error
    settings = {"use_listings_cache": False, **options}
    if PROTOCOLS[protocol] == "s3":
        # s3fs' default cache reads ahead: 8 times the bytes of a text scan, ~1900 times those of a narrow column.
        settings.setdefault("default_cache_type", "none")
    else:
        backend = _without_read_cache(backend)
    try:
        return backend(**settings)
    except TypeError as error:
        names = ", ".join(sorted(options)) or "none"
        raise UnsupportedError(
            f"{protocol}:// does not take these storage_options (given: {names})", hint=f"see {backend.__name__}"
        ) from error


@cache
def _without_read_cache(backend: type[AbstractFileSystem]) -> type[AbstractFileSystem]:
    """`backend` whose files have no cache unless one is asked for: adlfs and gcsfs have no setting that they look at.

    adlfs' default reads 4 times the bytes of a file for a narrow column; gcsfs' leaves a task behind for every file.
    """

    class Uncached(backend):  # type: ignore[misc]  # fsspec has no types
        def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
            return super()._open(path, mode=mode, **{"cache_type": "none", **kwargs})

        def __reduce__(self) -> tuple[Any, ...]:
            return _unpickle, (backend, self.storage_args, self.storage_options)

    Uncached.__name__ = Uncached.__qualname__ = backend.__name__
    return Uncached


def _unpickle(backend: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    return _without_read_cache(backend)(*args, **options)
