"""Answers to queries as CSV, JSON or Parquet, written from Arrow as its batches come: the SQL itself writes nothing.

| format | NULL | bytes | lists, structs, maps | decimals |
|---|---|---|---|---|
| csv | nothing, where an empty text is `""` | as DuckDB spells a BLOB, `\\xAA` | JSON | their digits |
| json | null, also for NaN and infinities | so, too | JSON, a map as pairs | text if they have a fraction |
| parquet | NULL | bytes | as they are | decimals |

json is an array of objects, a row on every line.
"""

from __future__ import annotations

import decimal
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from connectors.store import Store, exists, staged_file, stat_object
from curator.errors import ConfigError, UsageError
from curator.places import real_path, would_be_file_of_lake

if TYPE_CHECKING:
    from curator.lake import Lake

Format = Literal["csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
BATCH_ROWS = 8192
_GROUP_BYTES = 64 << 20
"""Size in memory at which a row group of Parquet is finished."""


class Sink(Protocol):
    """What text formats are written to."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A query's answer that was written to a file."""

    location: str
    format: Format
    num_rows: int
    size_bytes: int


def format_of(out: str, given: str | None) -> Format:
    """The format that a file is to have: that asked for, else what the file's name ends with.

    Raises:
        ConfigError: it is none, or the name does not tell.
    """
    name = given if given is not None else out.rpartition(".")[2].lower()
    if name in FORMATS:
        return name
    hint = f"pass --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if given is None:
        raise ConfigError(f"the name of the file {out} does not tell its format", hint=hint)
    raise ConfigError(f"no file can be written in format {given!r}", hint=hint)


def shown_format(given: str | None, out: str | None, *, as_json: bool) -> Format | None:
    """What a command writes: a format, or None for a table or for the one object of `--json`.

    Raises:
        ConfigError: the options do not go together.
    """
    if out is not None:
        return format_of(out, given)
    if given == "parquet":
        raise ConfigError("Parquet is not written to the terminal or a pipe", hint="pass --out FILE")
    if given not in (None, "table", *FORMATS):
        raise ConfigError(f"format {given!r} is unknown", hint=f"pass --format table, {', '.join(FORMATS)}")
    if as_json and given is not None:
        raise ConfigError(
            "--json prints one object about the call, and --format the answer",
            hint="leave one of them out, or write the answer with --out FILE",
        )
    return None if given in (None, "table") else cast(Format, given)


def check_place(lake: Lake, place: Store, *, overwrite: bool) -> None:
    """Find out before the query runs whether its answer can go to the file that `place` is.

    Raises:
        ConfigError: something is there that may not be replaced, or it has no folder.
        UsageError: it is a file of the lake, or would be read as one.
    """
    local = Path(place.path) if place.is_local else None
    inside = {real_path(lake.corpus.store, file.path) for file in lake.corpus.files}
    if real_path(place) in inside or would_be_file_of_lake(lake.config.url, place):
        raise UsageError(
            f"{place.url} is a file of the lake {lake.url}, or would be read as one",
            hint="name a file elsewhere",
        )
    if local and local.exists() and not local.is_file():
        raise ConfigError(f"{place.url} is there already and no file", hint="name another file")
    if not overwrite and (local.exists() if local else exists(place, "")):
        raise ConfigError(
            f"{place.url} is there already", hint="name another file, or allow it to be replaced (--overwrite)"
        )
    if local and not local.parent.is_dir():
        raise ConfigError(f"{place.url} cannot be written: its folder does not exist")


def save(reader: pa.RecordBatchReader, place: Store, format: Format) -> Saved:  # noqa: A002 - the word that users say
    """Write an answer to the file that `place` is, wholly or not at all."""
    with staged_file(place, "") as sink:
        num_rows = write(reader, format, sink)
    return Saved(location=place.url, format=format, num_rows=num_rows, size_bytes=stat_object(place, "").size_bytes)


def write(reader: pa.RecordBatchReader, format: Format, sink: Sink) -> int:  # noqa: A002
    """Write an answer, one batch of it in memory (of Parquet one row group); returns how many rows it had.

    Raises:
        UsageError: a column has a type that the format has no place for, or the name of another one.
    """
    _check_columns(reader.schema, format)
    writers = {"csv": _write_csv, "json": _write_json, "parquet": _write_parquet}
    return writers[format](reader, sink)


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """As Python has them; times with nanoseconds, which it has not, as text, also where pandas would have some."""
    kind = column.type
    try:
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            column = column.cast(pa.timestamp("us", kind.tz))
        elif kind in (pa.duration("ns"), pa.time64("ns")):
            column = column.cast(pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us"))
        return cast("list[Any]", column.to_pylist())
    except ValueError:
        return cast("list[Any]", column.cast(pa.string()).to_pylist())


def _check_columns(schema: pa.Schema, format: Format) -> None:  # noqa: A002
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two columns of the answer are named {twice!r}", hint="tell them apart with AS in the query")
    for field in schema:
        if isinstance(field.type, pa.OpaqueType) or (format == "parquet" and not _is_kept_by_parquet(field)):
            kind = field.type.type_name if isinstance(field.type, pa.OpaqueType) else field.type
            raise UsageError(
                f"column {field.name!r} of the answer is a {kind}, which {format} has no place for",
                hint="cast it in the query, such as to VARCHAR",
            )


def _is_kept_by_parquet(field: pa.Field) -> bool:
    try:
        with pq.ParquetWriter(io.BytesIO(), pa.schema([field])):
            return True
    except pa.ArrowException:
        return False


def _write_csv(batches: pa.RecordBatchReader, sink: Sink) -> int:
    """As RFC 4180 has it but for the line ends, which are \\n; every text is quoted."""
    num_rows = 0
    header = io.BytesIO()
    pc.write_csv(pa.schema([pa.field(name, pa.string()) for name in batches.schema.names]).empty_table(), header)
    sink.write(header.getvalue())
    for batch in batches:
        columns = [_as_csv(column) for column in batch.columns]
        piece = io.BytesIO()
        table = pa.table(columns, names=batch.schema.names)
        pc.write_csv(table, piece, pc.WriteOptions(include_header=False))
        sink.write(piece.getvalue())
        num_rows += batch.num_rows
    return num_rows


def _as_csv(column: pa.Array) -> pa.Array:
    """A column that Arrow writes as CSV: what is no single number, time or text becomes text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _as_csv(column.dictionary_decode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([None if value is None else _spelled(value) for value in column.to_pylist()], pa.string())
    if pa.types.is_nested(kind):
        return pa.array([None if v is None else _json_of(v) for v in python_values(column)], pa.string())
    if pa.types.is_interval(kind) or pa.types.is_duration(kind):
        return pa.array([None if v is None else str(v) for v in python_values(column)], pa.string())
    return column


def _write_json(batches: pa.RecordBatchReader, sink: Sink) -> int:
    num_rows = 0
    names = batches.schema.names
    sink.write(b"[")
    for batch in batches:
        rows = zip(*map(python_values, batch.columns), strict=True)
        lines = (_json_of(dict(zip(names, row, strict=True))) for row in rows)
        if batch.num_rows:
            sink.write(((",\n" if num_rows else "\n") + ",\n".join(lines)).encode())
        num_rows += batch.num_rows
    sink.write(b"\n]\n")
    return num_rows


def _json_of(value: Any) -> str:
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that JSON has not
        return json.dumps(_finite(value), default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return _spelled(value)
    if isinstance(value, decimal.Decimal) and value == value.to_integral_value() and value.as_tuple().exponent == 0:
        return int(value)
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _spelled(value: bytes) -> str:
    """As DuckDB writes a BLOB and reads it: every byte but printable ASCII as \\xAA."""
    return "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\"'\\" else f"\\x{b:02X}" for b in value)


def _write_parquet(batches: pa.RecordBatchReader, sink: Sink) -> int:
    num_rows = 0
    with pq.ParquetWriter(sink, batches.schema, compression="zstd") as writer:
        for group in _groups(batches):
            writer.write_table(pa.Table.from_batches(group, batches.schema), row_group_size=1 << 30)
            num_rows += sum(batch.num_rows for batch in group)
    return num_rows


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    size_bytes = 0
    for batch in batches:
        group.append(batch)
        size_bytes += batch.nbytes
        if size_bytes >= _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group
