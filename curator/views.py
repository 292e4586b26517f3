"""Views that last: a small DuckDB file that answers about the newest version without this package.

`samples` is a view that names every Parquet file of the version; `domain_weights`, `runs` and `versions` are tables;
the macros of `curator.macros` select rows. A file, and not a script of SQL, because a reader opens it with no further
step, read-only, from any language; it is replaced as a whole, so that readers see the old one or the new.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from connectors import duck
from connectors.store import exists
from curator import catalog, macros
from curator.errors import StorageError, UsageError
from curator.places import VIEWS
from curator.sidecar import CANNOT_SHOW, is_sidecar
from curator.versions import find_version

if TYPE_CHECKING:
    from curator.lake import Lake


def write_views(lake: Lake, out: Path) -> int:
    """Write the views of the newest version to `out`, replacing it as a whole; returns the version's number.

    Raises:
        NotFoundError: nothing was published yet.
        UsageError: it is a sidecar version.
        StorageError: the file cannot be written, or a published file is gone.
    """
    version = find_version(lake)
    manifest = lake.connector.read_manifest(version)
    if is_sidecar(manifest):
        raise UsageError(f"views cannot show version {version.number}, {CANNOT_SHOW}", hint="publish copies of it")
    catalog.check_published_files(lake.connector.data, manifest)
    if not out.absolute().parent.is_dir():
        raise StorageError(
            f"{out} cannot be written: there is no folder {out.parent}", hint="create it or choose another"
        )
    made = out.absolute().with_name(f".{out.name}-{secrets.token_hex(4)}")
    try:
        with duck.attached(made) as connection:
            catalog.create_run_tables(connection, catalog.read_run_records(lake.destination), temporary=False)
            catalog.create_versions_table(connection, lake.connector, temporary=False)
            duck.register_store(connection, lake.connector.data)
            rows = duck.version_rows(
                connection,
                lake.connector.data,
                [(file.published_path, file.source_path) for file in manifest.files],
                columns=catalog.WEIGHT_COLUMNS,
                domain=lake.config.domain,
                key=lake.config.key,
            )
            connection.execute(f"CREATE VIEW samples AS {rows}")
            _create_macros(connection, lake, manifest.run_id, manifest.snapshot_id)
        made.replace(out)
    finally:
        made.unlink(missing_ok=True)
    return version.number


def _create_macros(connection: duck.Connection, lake: Lake, run_id: str, snapshot_id: str) -> None:
    """The selections of `curator.macros`, in the file.

    Ids that are no column of the files are made of their content anew, and not those of the lake; without the lake's
    ids the tokens that a run counted cannot be found, and no macro counts them.
    """
    has_ids = lake.config.key is not None
    path = catalog.tokens_path(lake.destination, run_id, snapshot_id)
    has_tokens = has_ids and exists(lake.destination, path)
    if has_tokens:
        duck.register_store(connection, lake.destination)
        tokens = catalog.tokens_query(lake.destination, path)
        connection.execute(f"CREATE VIEW {macros.TOKENS} AS {tokens}")
    content = f"md5(s.domain || chr(0) || s.{duck.quote_identifier(lake.text_name)})"
    sample_id = "s.sample_id" if has_ids else content
    macros.create_macros(connection, sample_id=sample_id, temporary=False, count_tokens=has_tokens)


def renew_views(lake: Lake) -> None:
    """Bring the views in the work folder up to date, if there are any."""
    place = lake.workdir / VIEWS
    if place.exists():
        write_views(lake, place)
