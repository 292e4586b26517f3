"""What a kind of lake has to be able to do: the seam between the SDK and plain Parquet or a table format."""

from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa

from connectors import plain
from connectors.commit import Version
from connectors.manifest import Manifest
from connectors.parquet import OnProgress, ParquetFile
from connectors.plain import Corpus, PlainConnector
from connectors.store import ObjectInfo, Store, open_store

DELTA = "delta:"
ICEBERG = "iceberg:"


class Connector(Protocol):
    """One lake: its files as they are now, and its versions with added columns.

    Attributes:
        data: what `published_path`s in manifests are relative to.
        replaceable: names of columns that a source may have and that publishing replaces.
        owns_log: whether its versions are entries of the destination's log and of nothing else; only then can they be
            sidecars, and what no version names be collected.
    """

    data: Store
    replaceable: frozenset[str]
    owns_log: bool

    def read_corpus(self, on_progress: OnProgress = ...) -> Corpus:
        """The lake's files as of now, without columns that were published; the sources of the next version.

        `on_progress` is called with (footers read so far, files).
        """
        ...

    def list_files(self) -> list[ObjectInfo]:
        """Path, size and version of the files that `read_corpus` would give, without a look into them."""
        ...

    def revision(self) -> str:
        """Names the newest state of the log; another one as soon as `read_log` or `current` may answer differently."""
        ...

    def folder(self, name: str) -> str:
        """Where files of one publication are staged, relative to `data`; `name` is unique to it."""
        ...

    def published_path(self, folder: str, file: ParquetFile) -> str:
        """Where in `folder` the copy of a source goes."""
        ...

    def staged_schema(self, folder: str, file: ParquetFile, columns: pa.Schema) -> pa.Schema:
        """`columns` as the copy of `file` in `folder` is to have them: a table may number its columns."""
        ...

    def check_writable(self, *, single_writer: bool = False) -> None:
        """Live test that `commit` can work; for a `single_writer` also where two would overwrite each other.

        Raises:
            UnsupportedError: it cannot, on this storage or in this table.
            ReadOnlyError: the destination cannot be written.
        """
        ...

    def read_log(self) -> list[Version]:
        """Every version that was published, oldest first."""
        ...

    def read_manifest(self, version: Version) -> Manifest:
        """What a version consists of."""
        ...

    def named_manifests(self) -> frozenset[str]:
        """Paths of the manifests that must stay: those of every version that can be read or become the newest again."""
        ...

    def current(self, corpus: Corpus) -> Manifest | None:
        """The files that hold the lake's published columns now; None if there are none."""
        ...

    def commit(self, manifest: Manifest, *, idempotency_key: str) -> Version:
        """Atomic and exactly once: one version with this key, seen by every reader at once.

        Raises:
            ConflictError: somebody changed what the manifest was made from, or kept winning.
            UnavailableError: the storage did not answer; calling again with the same key is safe.
            ReadOnlyError: the destination cannot be written.
        """
        ...

    def restore(self, number: int) -> Version:
        """Atomic: make the content of version `number` of the log the newest again, by one more version.

        Returns:
            The newest version; `created` is False if it had that content already.

        Raises:
            NotFoundError: there is no such version, or its files are gone.
            ConflictError: another writer was first; look at what it did, then try again.
        """
        ...


def is_table(url: str) -> bool:
    """Whether `url` names a table, whose files its own log lists, rather than Parquet files to be listed."""
    return url.startswith((DELTA, ICEBERG))


def lake_place(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Store, str]:
    """The store that the paths of the lake's files are relative to, and the file, folder or glob in it that is meant.

    "" is all of it. At most one object or catalog is looked up.
    """
    if url.startswith(DELTA):
        return open_store(url.removeprefix(DELTA), storage_options), ""
    if url.startswith(ICEBERG):
        from connectors.iceberg import table_root

        return table_root(url, storage_options), ""
    return plain.lake_place(url, storage_options)


def open_connector(
    url: str, storage_options: Mapping[str, Any] | None, *, destination: Store, columns: tuple[str, ...]
) -> Connector:
    """The connector of the lake at `url`; nothing is read yet but where an Iceberg table lies.

    Args:
        url: of Parquet files, `delta:` and the path or URL of a Delta table, or `iceberg:` and the name of a table in
            a catalog (`iceberg:[URI#]CATALOG.NAMESPACE.TABLE`).
        storage_options: as for `open_store`.
        destination: where manifests go, and for plain Parquet the published files.
        columns: names of the columns that are published.

    Raises:
        MissingExtraError: a package of the format's extra is not installed.
        UnsupportedError: the format cannot be read on this storage.
    """
    if url.startswith(DELTA):
        from connectors.delta import DeltaConnector

        return DeltaConnector(lake_place(url, storage_options)[0], destination, columns)
    if url.startswith(ICEBERG):
        from connectors.iceberg import IcebergConnector

        return IcebergConnector(url, storage_options, destination, columns)
    return PlainConnector(url, storage_options, destination)


def read_corpus(url: str, storage_options: Mapping[str, Any] | None = None) -> Corpus:
    """The files of a lake that is only read; errors are those of `Connector.read_corpus`."""
    root, _ = lake_place(url, storage_options)
    return open_connector(url, storage_options, destination=root, columns=()).read_corpus()
