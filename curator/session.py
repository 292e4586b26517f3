"""What one process has open of a lake: the files as listed, the catalog's DuckDB session, and the views that SQL asks.

All of it is made on first use, found out to be old by listings, and made again then.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from connectors import duck
from connectors.connector import Connector
from connectors.parquet import OnProgress
from connectors.plain import Corpus
from connectors.store import Store
from curator import catalog
from curator.config import LakeConfig
from curator.errors import InputError

if TYPE_CHECKING:
    from curator.lake import Lake


class Session:
    """Of one lake; `Lake` is what its users see of it.

    Args:
        config: the lake's.
        connector: reads its files and versions.
        destination: where its records are.
        workdir: of the catalog, which in mode "view" is in a temporary folder instead.
        names: the lake's URL, and what commands name it by.
    """

    def __init__(
        self, config: LakeConfig, connector: Connector, destination: Store, workdir: Path, names: tuple[str, str]
    ) -> None:
        self._config = config
        self._connector = connector
        self._destination = destination
        self._workdir = workdir
        self._url, self._address = names
        self._corpus: Corpus | None = None
        self._connection: duck.Connection | None = None
        self._has_views = False
        self._seen: tuple[object, ...] = ()
        self._is_confined = False
        self._past: dict[int, duck.Connection] = {}
        self._folder: Path | None = None
        self._is_outdated = False
        self._drop_folder: weakref.finalize[..., Session] | None = None

    # files --------------------------------------------------------------------------------------------------------

    @property
    def corpus(self) -> Corpus:
        """The lake's files as last listed; listed now if they were not yet."""
        if self._corpus is None:
            self._corpus = self._connector.read_corpus()
        return self._corpus

    def list_again(self, on_progress: OnProgress) -> Corpus:
        """The lake's files as of now, which are to be ingested: whoever has the catalog open lets go of it."""
        self.release()
        self._corpus = self._connector.read_corpus(on_progress)
        return self._corpus

    # the catalog --------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where the catalog's file is or will be; in mode "view" a temporary one, until `close`."""
        if self._config.mode != "view":
            return catalog.catalog_path(self._workdir)
        if self._folder is None or not self._folder.exists():
            self._folder = Path(mkdtemp(prefix="curator-"))
            self._drop_folder = weakref.finalize(self, _remove_folder, self._folder, os.getpid())
        return catalog.catalog_path(self._folder)

    @contextmanager
    def writing(self) -> Iterator[duck.Connection]:
        """The catalog to write; one that was made for this and then failed is taken away again."""
        path = self.path
        is_new, is_ours = not path.exists(), False
        try:
            with duck.writing(path) as connection:
                is_ours = is_new
                yield connection
        except BaseException:
            if is_ours:
                _remove_catalog(path)
            raise
        self._is_outdated = False
        if self._config.mode == "view":
            _remove_catalog(catalog.catalog_path(self._workdir))  # of another mode, before

    @property
    def is_to_be_ingested(self) -> bool:
        """Whether mode "view" has nothing to ask: it keeps no catalog between sessions."""
        return self._config.mode == "view" and (self._is_outdated or not self.path.exists())

    @property
    def connection(self) -> duck.Connection:
        """A read-only session of the catalog: the row index, and `lake_rows` over the text; opened on first use.

        Raises:
            InputError: the lake has not been ingested, or its files changed since.
            connectors.BusyError: another process writes the catalog.
        """
        if self._connection is None:
            path = self.path
            not_yet = InputError(
                f"{self._url} has not been ingested yet",
                hint=f"run `curator ingest {self._address} --text COLUMN --domain COLUMN`",
            )
            if not path.exists():
                raise not_yet
            self._connection = duck.connect(path, read_only=True)
            try:
                if not duck.has_index(self._connection):
                    raise not_yet
                self._check_unchanged(self._connection)
                names = {name: getattr(self._config, name) for name in ("text", "domain", "key")}
                duck.create_samples_view(self._connection, self.corpus, **names)
            except BaseException:
                self.release()
                raise
        return self._connection

    def _check_unchanged(self, connection: duck.Connection) -> None:
        changed = duck.changed_files(connection, self.corpus)
        if changed:
            raise InputError(
                f"{len(changed)} file(s) of {self._url} changed since the last ingest, first {changed[0]!r}",
                hint=f"run `curator ingest {self._address}`",
            )

    # what SQL asks ------------------------------------------------------------------------------------------------

    def let_go_of_the_old(self) -> None:
        """Find out by listings what changed since the session was made; what it knows of that is made again.

        Of other files than before the whole session is closed, so that another process can ingest them.
        """
        if self._corpus is not None:
            listed = sorted((info.path, info.size_bytes, info.version) for info in self._connector.list_files())
            if listed != [(file.path, file.size_bytes, file.version) for file in self._corpus.files]:
                self.release()
                self._is_outdated = True
                self._corpus = None
        seen = (self._connector.revision(), *catalog.list_records(self._destination))
        if seen != self._seen:
            self.forget_views()
            self._seen = seen

    def with_views(self) -> duck.Connection:
        """The session with everything that SQL can ask for: rows, weights, runs and versions.

        Only queries need them: a lake whose versions are damaged can still be learned on.
        """
        from curator.versions import drop_versions

        connection = self.connection
        if not self._has_views:
            drop_versions(connection)
            self._register_records(connection)
            catalog.create_samples(connection, self.corpus, self._connector, self._destination)
            self._has_views = True
        return connection

    def at_version(self, lake: Lake, version: int | None, as_of: str | datetime | None) -> duck.Connection:
        """A session of its own, in which `samples` are the rows of a version; relations of others stay as they are."""
        from curator.versions import create_samples_at, find_version

        found = find_version(lake, version, as_of)
        if found.number not in self._past:
            session = self.connection.cursor()
            self._register_records(session)
            create_samples_at(session, lake, found)
            catalog.create_selections(session, self._destination, (found.run_id, found.snapshot_id))
            self._past[found.number] = session
        return self._past[found.number]

    def _register_records(self, connection: duck.Connection) -> None:
        catalog.register_records(connection, self._destination, self._connector)
        duck.create_duplicates_view(connection, key=self._config.key)

    def confine(self, connection: duck.Connection) -> None:
        """Let this session's queries see nothing but the lake; it stays so until `release`."""
        if not self._is_confined:
            files = [(self.corpus.store, file.path) for file in self.corpus.files]
            duck.confine(connection, files, [self._destination, self._connector.data])
            self._is_confined = True

    # letting go ---------------------------------------------------------------------------------------------------

    def forget_views(self) -> None:
        """Let the next query see the runs and versions that are there then."""
        self._has_views = False
        self._past.clear()

    def release(self) -> None:
        """Close the catalog so that other processes can write it; it opens again by itself."""
        if self._connection is not None:
            for session in (*self._past.values(), self._connection):
                session.close()
            self._connection = None
        self._is_confined = False
        self.forget_views()

    def close(self) -> None:
        """`release`, and take away the catalog of mode "view"; it is made again if it is needed."""
        self.release()
        if self._drop_folder is not None:
            self._drop_folder()
            self._folder = self._drop_folder = None


def _remove_catalog(path: Path) -> None:
    for left in (path, path.with_name(f"{path.name}.wal")):
        left.unlink(missing_ok=True)


def _remove_folder(folder: Path, pid: int) -> None:
    """In the process that made it: a forked one must not take it from the other."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
