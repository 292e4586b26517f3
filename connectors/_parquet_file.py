"""Reading one Parquet object: its footer in one request, its columns in bounded memory."""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from connectors._batch_rows import choose_batch_rows, leaves_below
from connectors._chunks import check_chunks
from connectors._thrift import ThriftError, list_length
from connectors.errors import (
    BadRowsError,
    ConflictError,
    CorruptFileError,
    NotFoundError,
    SchemaError,
    UnsupportedError,
    suggest,
)
from connectors.store import ObjectInfo, Store, object_errors, open_object, read_bytes, stat_object
from connectors.threads import in_threads, num_threads

SUFFIXES = (".parquet", ".parq", ".pq")
# What Hive and Spark write in a path for a row whose partition column is null.
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Enough for the footer of most files, so that it costs one request; a longer footer costs a second one.
_TAIL_BYTES = 64 * 1024
_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
_MIN_FILE_BYTES = 12  # magic, footer length, magic
# Arrow takes up to thirty times a footer's bytes, and about a kilobyte for a column.
_MAX_FOOTER_BYTES = 128 * 1024 * 1024
_MAX_SCHEMA_ELEMENTS = 100_000
_SCHEMA_FIELD = 2  # of parquet.thrift's FileMetaData
_SMALL_BYTES = 2 * 1024 * 1024

OnProgress = Callable[[int, int], None]
"""Told how many of how many are done."""


def untold(done: int, total: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class ParquetFile:
    """What the footer and the path of one Parquet object say.

    Attributes:
        path: relative to the store's root.
        size_bytes: length of the object.
        version: as listed; changes when the content is replaced.
        num_rows: rows in the file.
        num_row_groups: row groups in the file, empty ones included.
        schema: as Arrow reads it, with field ids and metadata.
        footer_hash: xxh3_128 of the footer, in hex: tells apart what was replaced within one tick of a storage's clock.
        partition: `key=value` parts of the path, decoded; None is Hive's null.
    """

    path: str
    size_bytes: int
    version: str
    num_rows: int
    num_row_groups: int
    schema: pa.Schema = field(repr=False)
    footer_hash: str
    partition: Mapping[str, str | None] = field(default_factory=dict)


def read_parquet_info(store: Store, listed: ObjectInfo) -> ParquetFile:
    """The footer of a listed object, in one ranged read (two if the footer is over 64 KiB).

    Raises:
        CorruptFileError: not Parquet, or cut short.
        UnsupportedError: an encrypted footer.
        NotFoundError: it has gone since it was listed.
    """
    footer = read_footer(store, listed)
    with decoding_errors(store, listed.path):
        metadata = parse_footer(footer)
    try:
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnsupportedError(f"{store.describe(listed.path)}: Arrow cannot read its schema ({error})") from error
    return ParquetFile(
        path=listed.path,
        size_bytes=listed.size_bytes,
        version=listed.version,
        num_rows=metadata.num_rows,
        num_row_groups=metadata.num_row_groups,
        schema=schema,
        footer_hash=xxhash.xxh3_128_hexdigest(footer),
        partition=parse_partition(listed.path),
    )


def read_parquet_infos(
    store: Store, listed: Sequence[ObjectInfo], on_progress: OnProgress = untold
) -> list[ParquetFile]:
    """The footers of listed objects, in their order, several at a time where each is a round trip.

    Memory: a few hundred bytes a file, and every schema once, since equal ones are shared.

    Args:
        store: where they are.
        listed: the objects.
        on_progress: called with (footers read so far, objects).

    Raises:
        CorruptFileError, UnsupportedError, NotFoundError: of the first that cannot be read, as `read_parquet_info`.
    """
    files: list[ParquetFile] = []
    schemas: dict[bytes, pa.Schema] = {}
    for file in in_threads(lambda info: read_parquet_info(store, info), listed, num_threads(store)):
        schema = schemas.setdefault(file.schema.serialize().to_pybytes(), file.schema)
        files.append(replace(file, schema=schema))
        on_progress(len(files), len(listed))
    return files


def parse_partition(path: str) -> dict[str, str | None]:
    """The Hive partition values in the folders of `path`: `lang=en/day=1%2F2/x.parquet` → `{lang: en, day: 1/2}`."""
    parts = (folder.partition("=") for folder in path.split("/")[:-1])
    return {
        unquote(key): None if value == HIVE_NULL else unquote(value) for key, equals, value in parts if equals and key
    }


def iter_batches(
    store: Store, file: ParquetFile, columns: Sequence[str], *, batch_rows: int = 4096
) -> Iterator[pa.RecordBatch]:
    """The named top-level columns in file order, at most `batch_rows` rows at a time; an end means all were read.

    Memory: what is stored of the named columns of one row group, or a small file; and a batch, of about 12 MB where
    rows are long, of 256 MB or one row at most. The order of `columns` is kept.

    Raises:
        SchemaError: the file has no such column.
        ConflictError: the object is not the listed one any more (checked first and last; a small one, once read).
        CorruptFileError: the pages cannot be decoded.
    """
    for name in columns:
        if name not in file.schema.names:
            raise SchemaError(f"{store.describe(file.path)} has no column {name!r}{suggest(name, file.schema.names)}")
    if not is_small(store, file):
        check_unchanged(store, file)
    with _open_source(store, file) as source, _open_arrow(store, file, source) as opened:
        # Row group by row group: pre-buffering would otherwise hold the columns of the whole file. Without threads:
        # nearly all the work is in the one column of text, and handing it over took 8 % of the CPU.
        leaves = leaves_below(opened, columns)
        for group in range(opened.num_row_groups):
            rows = choose_batch_rows(opened, source, group, leaves, batch_rows)
            for batch in opened.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False):
                if batch.num_rows:
                    yield batch.select(list(columns))
    if not is_small(store, file):
        check_unchanged(store, file)


def is_small(store: Store, file: ParquetFile) -> bool:
    """Whether a file is read by one request for all of it, since round trips cost more than its bytes."""
    return store.is_remote and file.size_bytes <= _SMALL_BYTES


def check_unchanged(store: Store, file: ParquetFile) -> None:
    """Raises ConflictError unless the object is still the one that was listed."""
    try:
        now = stat_object(store, file.path)
    except NotFoundError as error:
        raise ConflictError(
            f"{store.describe(file.path)} has gone since it was listed", hint="list the lake again"
        ) from error
    if now.version != file.version:
        raise ConflictError(f"{store.describe(file.path)} has changed since it was listed", hint="list the lake again")


@contextmanager
def open_parquet(store: Store, file: ParquetFile) -> Iterator[tuple[pq.ParquetFile, pa.NativeFile]]:
    """The object opened, and what it is read from; failures to decode it, also in the body, leave as CorruptFileError.

    If it is not the listed one any more, they are a ConflictError instead: not every storage tells in the middle. A
    small file is known to be the listed one.
    """
    with _open_source(store, file) as source, _open_arrow(store, file, source) as opened:
        yield opened, source


@contextmanager
def _open_source(store: Store, file: ParquetFile) -> Iterator[pa.NativeFile]:
    try:
        if is_small(store, file):
            with decoding_errors(store, file.path):
                yield _read_whole(store, file)
            return
        with open_object(store, file.path) as handle, decoding_errors(store, file.path):
            # A local file is read by Arrow without the interpreter.
            path = store.full_path(file.path)
            with pa.OSFile(path) if store.is_local else pa.PythonFile(handle, mode="r") as source:
                yield source
    except CorruptFileError:
        check_unchanged(store, file)
        raise


def _open_arrow(store: Store, file: ParquetFile, source: pa.NativeFile) -> pq.ParquetFile:
    """Asks for ranges ahead of use where each is a round trip."""
    size = source.size()
    tail = source.read_at(min(_TAIL_BYTES, size), max(0, size - _TAIL_BYTES))
    num_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if num_bytes > size:
        raise pa.ArrowInvalid("its footer is longer than the file")
    if num_bytes > len(tail):
        tail = source.read_at(num_bytes, size - num_bytes)
    footer = tail[-num_bytes:-8]
    metadata = parse_footer(footer)
    check_chunks(footer, metadata)
    return pq.ParquetFile(source, metadata=metadata, pre_buffer=not store.is_local and not is_small(store, file))


def _read_whole(store: Store, file: ParquetFile) -> pa.BufferReader:
    try:
        data = read_bytes(store, file.path)
    except NotFoundError:
        check_unchanged(store, file)
        raise
    check_unchanged(store, file)
    return pa.BufferReader(data)


@contextmanager
def reading_errors(store: Store, path: str) -> Iterator[None]:
    """Within it, what Arrow or, through it, the storage raises leaves as a `ConnectorError` about the object."""
    with object_errors(store, path, "read"), decoding_errors(store, path):
        yield


@contextmanager
def decoding_errors(store: Store, path: str) -> Iterator[None]:
    """Within it, what Arrow cannot decode leaves as CorruptFileError (UnsupportedError if merely not implemented)."""
    try:
        yield
    except (NotImplementedError, pa.ArrowNotImplementedError) as error:
        raise UnsupportedError(f"{store.describe(path)}: Arrow cannot read it ({error})") from error
    except UnicodeDecodeError as error:
        raise CorruptFileError(
            f"{store.describe(path)} has a column name that is not valid UTF-8", hint="write it again"
        ) from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not _is_decoding_error(error):
            raise
        if "UTF8" in str(error):  # in dictionaries Arrow checks it itself, without telling the row
            raise BadRowsError(
                f"{store.describe(path)} has a string that is not valid UTF-8", hint="write the text as UTF-8"
            ) from error
        said = " ".join(str(error).split())
        raise CorruptFileError(f"{store.describe(path)} is damaged: {said}", hint="write it again") from error


def _is_decoding_error(error: OSError) -> bool:
    # Arrow reports broken pages as a plain OSError without number; the storage's own have a number or a class.
    return type(error) is OSError and error.errno in (None, errno.EINVAL)


def read_metadata(store: Store, listed: ObjectInfo) -> pq.FileMetaData:
    """The footer as Arrow decodes it; errors are those of `read_parquet_info`."""
    footer = read_footer(store, listed)
    with decoding_errors(store, listed.path):
        return parse_footer(footer)


def read_footer(store: Store, listed: ObjectInfo) -> bytes:
    """The footer's Thrift bytes, in one ranged read (two if it is over 64 KiB).

    Raises:
        CorruptFileError: not Parquet, or cut short.
        UnsupportedError: an encrypted footer, or one that would take too much memory to read.
    """
    place = store.describe(listed.path)
    tail = _read_tail(store, listed, _TAIL_BYTES) if listed.size_bytes >= _MIN_FILE_BYTES else b""
    if tail[-4:] not in (_MAGIC, _ENCRYPTED_MAGIC) and not place.endswith(SUFFIXES):
        name = place.rpartition("/")[2]
        raise CorruptFileError(
            f"{place} is not a Parquet file",
            hint=f"convert it, as DuckDB does by COPY (FROM '{name}') TO "
            f"'{name.partition('.')[0]}.parquet', or polars by read_… and write_parquet",
        )
    if tail[-4:] not in (_MAGIC, _ENCRYPTED_MAGIC):
        raise CorruptFileError(f"{place} is not a Parquet file or was cut short", hint="remove it or write it again")
    if tail[-4:] == _ENCRYPTED_MAGIC:
        raise UnsupportedError(f"{place} has an encrypted footer", hint="write it without encryption")
    num_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if num_bytes > listed.size_bytes - 4:
        raise CorruptFileError(f"{place} is damaged: its footer is longer than the file", hint="write it again")
    if num_bytes > _MAX_FOOTER_BYTES:
        raise UnsupportedError(
            f"{place} has a footer of {num_bytes / 1e6:,.0f} MB, and at most {_MAX_FOOTER_BYTES / 1e6:,.0f} are read",
            hint="write it with fewer columns or larger row groups",
        )
    if num_bytes > len(tail):
        tail = _read_tail(store, listed, num_bytes)
    footer = tail[-num_bytes:-8]
    with suppress(ThriftError):  # Arrow says what is wrong with it
        num_elements = list_length(footer, _SCHEMA_FIELD)
        if num_elements > _MAX_SCHEMA_ELEMENTS:
            raise UnsupportedError(
                f"{place} has {num_elements:,} columns and groups of columns in its footer, and at most "
                f"{_MAX_SCHEMA_ELEMENTS:,} are read",
                hint="write it with fewer columns",
            )
    return footer


def parse_footer(footer: bytes) -> pq.FileMetaData:
    """A footer's Thrift bytes as Arrow understands them; may raise whatever Arrow does."""
    return pq.read_metadata(pa.BufferReader(framed_footer(footer)))


def framed_footer(footer: bytes) -> bytes:
    """A footer's Thrift bytes as they end a file: with their length and the magic."""
    return footer + len(footer).to_bytes(4, "little") + _MAGIC


def _read_tail(store: Store, listed: ObjectInfo, num_bytes: int) -> bytes:
    return read_bytes(store, listed.path, max(0, listed.size_bytes - num_bytes), listed.size_bytes)
