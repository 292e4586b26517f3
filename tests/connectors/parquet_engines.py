"""Programs that write and read Parquet, each by one call of the same form; an engine that is not installed skips."""

import operator

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMPARISONS = {"<": operator.lt, "==": operator.eq}


def engine(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: it is of the dependency group dev")


# Writers take an Arrow table, a path, and the rows of a row group.


def write_by_polars(table, path, group_rows, **options):
    pl.from_arrow(table).write_parquet(path, row_group_size=group_rows, **options)


def write_by_duckdb(table, path, group_rows, version="v1", compression="snappy"):
    """Row groups have 2048 rows at least."""
    rows = table  # noqa: F841  # DuckDB finds it by its name
    duckdb.sql(
        f"COPY rows TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {group_rows}, PARQUET_VERSION {version}, "
        f"COMPRESSION {compression}, KV_METADATA {{own: 'x'}}, FIELD_IDS 'auto')"
    )


def write_by_datasets(table, path, group_rows, **options):
    datasets = engine("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset(table).to_parquet(path, batch_size=group_rows, **options)


def write_by_fastparquet(table, path, group_rows, **options):
    starts = list(range(0, len(table), group_rows))
    engine("fastparquet").write(str(path), table.to_pandas(), row_group_offsets=starts, **options)


# Readers give the columns of these names as Arrow, of the rows for which `where` holds: (column, "<" or "==", value).


def read_by_pyarrow(path, names, where=None):
    return pq.read_table(path, columns=names, filters=where and [where])


def read_by_duckdb(path, names, where=None):
    query = f"SELECT {', '.join(map(quoted, names))} FROM '{path}'"
    if where is None:
        return duckdb.sql(query).to_arrow_table()
    column, comparison, value = where
    return duckdb.sql(f"{query} WHERE {quoted(column)} {comparison} ?", params=[value.as_py()]).to_arrow_table()


def read_by_polars(path, names, where=None):
    rows = pl.scan_parquet(path)
    if where is not None:
        column, comparison, value = where
        (literal,) = pl.from_arrow(pa.array([value.as_py()], value.type))
        rows = rows.filter(COMPARISONS[comparison](pl.col(column), pl.lit(literal)))
    return rows.select(names).collect().to_arrow()


def read_by_datafusion(path, names, where=None):
    datafusion = engine("datafusion")
    context = datafusion.SessionContext(datafusion.SessionConfig().with_target_partitions(1))  # rows in their order
    rows = context.read_parquet(path)
    if where is not None:
        column, comparison, value = where
        rows = rows.filter(COMPARISONS[comparison](datafusion.col(quoted(column)), datafusion.lit(value)))
    return rows.select(*map(quoted, names)).to_arrow_table()


def read_by_fastparquet(path, names, where=None):
    options = {}
    if where is not None:
        column, comparison, value = where
        options = {"filters": [(column, comparison, value.as_py())], "row_filter": True}
    with path.open("rb") as source:  # it would leave a file open that it opened itself
        frame = engine("fastparquet").ParquetFile(source).to_pandas(columns=names, **options)
    return pa.Table.from_pandas(frame, preserve_index=False)


READERS = {
    "pyarrow": read_by_pyarrow,
    "duckdb": read_by_duckdb,
    "polars": read_by_polars,
    "datafusion": read_by_datafusion,
    "fastparquet": read_by_fastparquet,
}


def quoted(name):
    return '"' + name.replace('"', '""') + '"'
