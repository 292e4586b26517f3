"""Temporary views over the lake's Parquet files, each row with what the index knows about it."""

from collections.abc import Mapping, Sequence

from connectors._database import Connection, database_errors, duck_path, quote_identifier, quote_literal, register_store
from connectors._index import CONTENT, changed_files
from connectors._parquet_file import parse_partition
from connectors._rows import Columns
from connectors._sources import FILE_COLUMNS, check_names, has_whole_copy, rows_of_copy, rows_of_files
from connectors.errors import ConflictError, SchemaError, suggest
from connectors.plain import Corpus
from connectors.store import Store

# What `lake_rows` takes from the index; a column of the source with such a name appears as `original_…`.
_INDEX_COLUMNS = ("sample_id", "domain", "file_id", "row", "usable")


def create_samples_view(
    connection: Connection,
    corpus: Corpus,
    *,
    text: str,
    domain: str,
    key: str | None = None,
    name: str = "lake_rows",
) -> None:
    """Makes the temporary view `name`: every row of the lake with its index entry and all columns of the source.

    Columns: sample_id, domain, file_id, row, usable, then the source's, Hive partitions last. A source column with
    one of the first five names appears as `original_…`, unless it is the configured domain or key itself. The view
    lists the corpus's files, so it is made again after every `ingest`. The store is registered here. If the catalog
    has a copy of the rows, that is read instead of the files.

    Raises:
        ConflictError: `corpus` is not what was ingested last.
        UnsupportedError: a source column has a name that DuckDB needs for itself.
    """
    _check_ingested(connection, corpus)
    register_store(connection, corpus.store)
    paths = {file.path: file.path for file in corpus.files}
    physical = corpus.schema.names
    check_names(corpus.schema)
    folded = {column.casefold() for column in physical}
    partitions = sorted({key for file in corpus.files for key in file.partition if key.casefold() not in folded})
    exposed = _exposed_names([*physical, *partitions], Columns(text=text, domain=domain, key=key))
    selected = [f"i.{column}" for column in _INDEX_COLUMNS]
    selected += [f"p.{quote_identifier(c)} AS {quote_identifier(exposed[c])}" for c in physical if c in exposed]
    selected += [f"f.{quote_identifier(c)} AS {quote_identifier(exposed[c])}" for c in partitions if c in exposed]
    partition_values = {file.path: [file.partition.get(key) for key in partitions] for file in corpus.files}
    by_name = any(not file.schema.equals(corpus.schema) for file in corpus.files)
    with database_errors("the catalog"):
        values = (partitions, partition_values)
        if has_whole_copy(connection):
            source = rows_of_copy(connection, list(paths), values)
        else:
            source = rows_of_files(connection, corpus.store, paths, values, by_name=by_name)
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {quote_identifier(name)} AS SELECT {', '.join(selected)} FROM {source} "
            "JOIN sample_index AS i ON i.file_id = f.lake_file_id AND i.row = p.file_row_number"
        )


def create_duplicates_view(connection: Connection, *, key: str | None, name: str = "duplicates") -> None:
    """Makes the temporary view `name`: every text that usable rows of one domain have more than once.

    Columns: sample_id (of the first, in order of path and row), domain, num_rows, num_files. Where a key identifies
    rows nobody has compared their texts, and the view fails when it is read, with a sentence that says so.
    """
    content = CONTENT.format("sample_id")
    rows = (
        f"SELECT {content} AS sample_id, any_value(domain) AS domain, count(*) AS num_rows, "
        f"count(DISTINCT file_id) AS num_files FROM sample_index WHERE usable GROUP BY {content} HAVING count(*) > 1"
    )
    if key is not None:
        reason = (
            f"rows are identified by column {key!r}, so that their texts were not compared; configure no key to find "
            "duplicates"
        )
        rows = (
            f"SELECT CAST(error({quote_literal(reason)}) AS VARCHAR) AS sample_id, CAST(NULL AS VARCHAR) AS domain, "
            "CAST(NULL AS BIGINT) AS num_rows, CAST(NULL AS BIGINT) AS num_files"
        )
    with database_errors("the catalog"):
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {quote_identifier(name)} AS {rows}")


def create_published_view(
    connection: Connection, name: str, store: Store, published: Mapping[str, str], columns: Sequence[str]
) -> None:
    """Makes the temporary view `name`: (file_id, row, `columns`) of published copies of the lake's files.

    Args:
        connection: with an index.
        name: of the view.
        store: where the copies are; registered here.
        published: path of a file in the lake → path of its copy; at least one.
        columns: names of columns that every copy has.

    Raises:
        ConflictError: the index does not know one of the files.
    """
    register_store(connection, store)
    selected = ", ".join(["f.lake_file_id AS file_id", "p.file_row_number AS row", *map(_from_file, columns)])
    with database_errors("the catalog"):
        source = rows_of_files(connection, store, published, by_name=False)
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {quote_identifier(name)} AS SELECT {selected} FROM {source}")


def create_version_view(
    connection: Connection,
    store: Store,
    files: Sequence[tuple[str, str, bool]],
    *,
    columns: Sequence[str],
    domain: str,
    key: str | None = None,
    sidecars: tuple[Store, Sequence[str]] | None = None,
    name: str = "samples",
) -> None:
    """Makes the temporary view `name`: every row of published copies, whatever has become of the lake since.

    Columns: sample_id, domain, usable, then the source's, Hive partitions last, then `columns`; names as in
    `create_samples_view`. sample_id and usable are NULL for files that the index does not know as they were.

    Args:
        connection: with an index.
        store: where the copies are; registered here.
        files: (path of the copy, path in the lake, whether the file in the lake is unchanged); at least one.
        columns: names of the columns that were added.
        domain: column or Hive partition of the copies that names the domain.
        key: the column that is the sample id, if there is one.
        sidecars: where `columns` and sample_id are, if not in the copies: as for `version_rows`.
        name: of the view.

    Raises:
        SchemaError: the copies have no column `domain`.
    """
    register_store(connection, store)
    if sidecars:
        register_store(connection, sidecars[0])
    with database_errors("the catalog"):
        file_ids = dict(connection.execute("SELECT path, file_id FROM files").fetchall())
        known = [file_ids.get(path) if unchanged else None for _, path, unchanged in files]
        rows = version_rows(
            connection,
            store,
            [file[:2] for file in files],
            columns=columns,
            domain=domain,
            key=key,
            file_ids=known,
            sidecars=sidecars,
        )
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {quote_identifier(name)} AS {rows}")


def version_rows(
    connection: Connection,
    store: Store,
    files: Sequence[tuple[str, str]],
    *,
    columns: Sequence[str],
    domain: str,
    key: str | None = None,
    file_ids: Sequence[int | None] = (),
    sidecars: tuple[Store, Sequence[str]] | None = None,
) -> str:
    """A SELECT of every row of published copies, which names every file; see `create_version_view`.

    Args:
        connection: asked for the columns of the copies; `store` is registered with it.
        store: where the copies are.
        files: (path of the copy, path in the lake); at least one.
        columns: names of the columns that were added.
        domain: column or Hive partition of the copies that names the domain.
        key: the column that is the sample id, if there is one.
        file_ids: of each file, its id in the index if that knows it as it was; without them no index is needed, there
            is no column `usable`, and `sample_id` only where there is a key.
        sidecars: a store and, for each of `files`, the path in it of a file with `columns` and sample_id for its rows,
            in their order.

    Raises:
        SchemaError: the copies have no column `domain`.
    """
    listed = ", ".join(quote_literal(duck_path(store, copy)) for copy, _ in files)
    source = f"read_parquet([{listed}], hive_partitioning = false, union_by_name = true)"
    physical = [c for c in connection.sql(f"SELECT * FROM {source} LIMIT 0").columns if c not in columns]
    values = [parse_partition(path) for _, path in files]
    folded = {column.casefold() for column in physical}
    partitions = sorted({key for each in values for key in each if key.casefold() not in folded})
    if domain not in {*physical, *partitions}:
        raise SchemaError(
            f"the published files have no column {domain!r}, which is to be the domain"
            f"{suggest(domain, [*physical, *partitions])}"
        )
    own_domain = f"CAST({'p' if domain in physical else 'f'}.{quote_identifier(domain)} AS VARCHAR)"
    weights = "w" if sidecars else "p"
    own_id = f"CAST(p.{quote_identifier(key)} AS VARCHAR)" if key is not None and key in physical else "NULL"
    own_id = "w.sample_id" if sidecars else own_id
    if file_ids:
        selected = [
            f"coalesce(i.sample_id, {own_id}) AS sample_id",
            f"coalesce(i.domain, {own_domain}) AS domain",
            "i.usable",
        ]
    else:
        selected = [f"{own_id} AS sample_id"] if own_id != "NULL" else []
        selected.append(f"{own_domain} AS domain")
    exposed = _exposed_names([*physical, *partitions], Columns(text="", domain=domain, key=key))
    selected += [f"p.{quote_identifier(c)} AS {quote_identifier(exposed[c])}" for c in physical if c in exposed]
    selected += [f"f.{quote_identifier(c)} AS {quote_identifier(exposed[c])}" for c in partitions if c in exposed]
    selected += [f"{weights}.{quote_identifier(column)}" for column in columns]
    entries = ", ".join(
        f"({', '.join([str(index), str(file_id) if file_id is not None else 'NULL::BIGINT', *literals])})"
        for index, (file_id, value) in enumerate(zip(file_ids or [None] * len(files), values, strict=True))
        for literals in [[quote_literal(value.get(name)) for name in partitions]]
    )
    header = ", ".join(["copy_index", "lake_file_id", *map(quote_identifier, partitions)])
    rows = (
        f"SELECT {', '.join(selected)} FROM (SELECT *, {', '.join(FILE_COLUMNS)} FROM {source}) AS p "
        f"JOIN (VALUES {entries}) AS f({header}) ON p.file_index = f.copy_index"
    )
    if sidecars:
        beside = ", ".join(quote_literal(duck_path(sidecars[0], path)) for path in sidecars[1])
        rows += (
            f" JOIN (SELECT *, {', '.join(FILE_COLUMNS)} FROM read_parquet([{beside}], hive_partitioning = false)) "
            "AS w ON w.file_index = p.file_index AND w.file_row_number = p.file_row_number"
        )
    index = " LEFT JOIN sample_index AS i ON i.file_id = f.lake_file_id AND i.row = p.file_row_number"
    return rows + index if file_ids else rows


def _exposed_names(names: Sequence[str], columns: Columns) -> dict[str, str]:
    """Column of the source → its name in the view; those that the index shows already are left out."""
    taken = {name.casefold() for name in names}
    exposed = {}
    for name in names:
        if (name.casefold(), name) in (("domain", columns.domain), ("sample_id", columns.key)):
            continue
        exposed[name] = name
        if name.casefold() in _INDEX_COLUMNS:
            exposed[name] = f"original_{name}"
            while exposed[name].casefold() in taken:
                exposed[name] = f"original_{exposed[name]}"
    return exposed


def _check_ingested(connection: Connection, corpus: Corpus) -> None:
    changed = changed_files(connection, corpus)
    if changed:
        raise ConflictError(
            f"{len(changed)} file(s) of {corpus.store.describe()} are not as they were ingested, first {changed[0]}",
            hint="ingest the lake again",
        )


def _from_file(column: str) -> str:
    return f"p.{quote_identifier(column)}"
