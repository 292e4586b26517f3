"""Tables in memory, of any library that has Arrow's stream: as a target, and as a lake once they are written.

What a lake is told has to be found again by records, by a run that is resumed and by the next `refresh`. So the text
of a target is kept as a file of the work folder, named by its content; a lake, whose files versions are copies of, is
written to a folder that the user names.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from connectors.store import list_objects, open_store, write_object
from curator.errors import InputError, UsageError, one_line, translated
from curator.parts import staging, write_parts
from curator.places import make_work_folder

_FOLDER = "targets"
_MOST_BYTES = 1 << 30
"""Of text in a target: what is more is no small set of rows."""
_FOOTER = {"lake-curator": json.dumps({"schema_version": 1, "kind": "the text of a target that was in memory"})}


@runtime_checkable
class ArrowStream(Protocol):
    """What has Arrow's stream: frames of polars and of pandas from 2.2 on, pyarrow's tables, relations of DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """See the Arrow PyCapsule interface."""
        ...


def keep_target(table: ArrowStream, text: str, workdir: Path) -> Path:
    """The file of the work folder that holds the texts of a target; equal texts are one file.

    Raises:
        InputError: it has no such column of text, more than a gibibyte of it, or cannot be read.
        StorageError: the file cannot be written.
    """
    texts = _texts(table, text)
    digest = xxhash.xxh3_128(text.encode())
    try:
        for value in texts.to_pylist():
            digest.update(b"\0" if value is None else b"%d\0" % len(data := value.encode()) + data)
    except UnicodeDecodeError as error:
        raise InputError(
            f"column {text!r} of the target, {_described(table)}, is not valid UTF-8", hint="write the text as UTF-8"
        ) from error
    path = workdir / _FOLDER / f"xxh3-{digest.hexdigest()}.parquet"
    if not path.is_file():
        made = io.BytesIO()
        schema = pa.schema([pa.field(text, pa.large_string())], _FOOTER)
        pq.write_table(pa.Table.from_arrays([texts], schema=schema), made, compression="zstd")
        make_work_folder(workdir)
        write_object(open_store(str(path.parent)), path.name, made.getvalue())
    return path


def is_kept(workdir: Path, url: str) -> bool:
    """Whether `keep_target` made the file at `url`."""
    return Path(url).parent == workdir / _FOLDER


def write_corpus(
    table: ArrowStream, out: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> str:
    """Write a table in memory as Parquet that `open_lake` opens; returns the folder's address.

    A local folder appears whole or not at all; elsewhere files of a failed call are taken away again. What comes in
    batches, such as a relation of DuckDB, is never in memory as a whole.

    Args:
        table: of any library that has Arrow's stream (polars, pandas from 2.2, pyarrow, DuckDB).
        out: folder or URL, empty or not there.
        storage_options: passed to fsspec (credentials, endpoint).

    Raises:
        UsageError: `table` is none, it has no rows or a column that Parquet cannot hold, or `out` is not empty.
        InputError: the table cannot be read to its end.
        StorageError: `out` cannot be written.
    """
    if not isinstance(table, ArrowStream):
        raise UsageError(
            f"a lake cannot be written of a {type(table).__name__}",
            hint="give a table that has Arrow's stream, such as a DataFrame of polars or a pyarrow Table",
        )
    with translated():
        place = open_store(os.fspath(out), storage_options)
        if (place.is_local and Path(place.path).is_file()) or list_objects(place, with_temporaries=True):
            raise UsageError(f"{place.url} is not an empty folder", hint="name a new one, nothing is overwritten")
        reader, token = _reader(table, "the lake"), secrets.token_hex(4)
        with staging(place, token) as staged:
            try:
                schema = pa.schema(map(_with_plain_dictionary, reader.schema), reader.schema.metadata)
                rows = (_of_schema(batch, schema) for batch in _batches(reader, table))
                files = write_parts(staged, token, schema, rows, lambda *_: None)
            except pa.ArrowNotImplementedError as error:
                raise UsageError(
                    f"{_described(table)} has a column that Parquet cannot hold ({one_line(error)})",
                    hint="cast it before",
                ) from error
            if not files:
                raise UsageError(f"{_described(table)} has no rows; nothing was written")
    return place.url


def _described(table: object) -> str:
    kind = type(table)
    return f"a {kind.__name__} of {kind.__module__.partition('.')[0].lstrip('_')}"


def _reader(table: ArrowStream, what: str) -> pa.RecordBatchReader:
    try:
        return pa.RecordBatchReader.from_stream(table)
    except Exception as error:  # whatever another library raises
        raise InputError(
            f"{what}, {_described(table)}, cannot be read as a table ({one_line(error)})",
            hint="give a DataFrame, Table or relation with named columns, or the address of Parquet files",
        ) from error


def _batches(reader: pa.RecordBatchReader, table: object) -> Iterator[pa.RecordBatch]:
    try:
        for batch in reader:
            if batch.num_rows:
                yield batch
    except Exception as error:  # whatever another library raises
        raise InputError(f"{_described(table)} cannot be read to its end ({one_line(error)})") from error


def _with_plain_dictionary(field: pa.Field) -> pa.Field:
    """Arrow writes no dictionary of string_view, as polars has for categories."""
    kind = field.type
    if not pa.types.is_dictionary(kind) or not pa.types.is_string_view(kind.value_type):
        return field
    return field.with_type(pa.dictionary(kind.index_type, pa.large_string(), kind.ordered)).remove_metadata()


def _of_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        column
        if column.type == field.type
        else pa.DictionaryArray.from_arrays(
            column.indices, column.dictionary.cast(pa.large_string()), ordered=field.type.ordered
        )
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _texts(table: ArrowStream, text: str) -> pa.ChunkedArray:
    reader = _reader(table, "the target")
    names = reader.schema.names
    if names.count(text) != 1:
        found = f"{names.count(text)} columns {text!r}" if text in names else f"no column {text!r} ({', '.join(names)})"
        raise InputError(
            f"the target, {_described(table)}, has {found}", hint="name its text column with target_text, or rename it"
        )
    kind = reader.schema.field(text).type
    if not _is_text(kind):
        raise InputError(
            f"column {text!r} of the target, {_described(table)}, is {kind}; it must be text",
            hint="name its text column with target_text, or cast it",
        )
    chunks, size_bytes = [], 0
    for batch in _batches(reader, table):
        column = batch.column(batch.schema.get_field_index(text))
        if pa.types.is_dictionary(kind):  # Arrow takes no string_view by indices
            column = column.dictionary.cast(pa.large_string()).take(column.indices)
        chunks.append(column.cast(pa.large_string()))
        size_bytes += chunks[-1].nbytes
        if size_bytes > _MOST_BYTES:
            raise InputError(
                f"the target, {_described(table)}, holds more than {_MOST_BYTES >> 30} GiB of text",
                hint="take fewer rows, or write them as Parquet files and give their address",
            )
    return pa.chunked_array(chunks, pa.large_string())


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
