"""One pass over a file's rows in Arrow: usability, sizes and content ids; no Python object per value but the id."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from connectors._parquet_file import ParquetFile, iter_batches
from connectors.errors import BadRowsError
from connectors.store import Store

IdHash = Literal["xxh3_128", "sha256"]
_HASHES: Mapping[IdHash, Callable[[bytes], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}

INDEX_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "sample_id": pa.string(),
        "domain": pa.string(),
        "num_bytes": pa.int32(),
        "usable": pa.bool_(),
    }
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the lake mean what.

    Attributes:
        text: the column that is trained on.
        domain: the column, or Hive partition, that names the domain.
        key: the column that identifies a row across versions; None identifies rows by content.
        id_hash: of a row's content, where there is no key.
    """

    text: str
    domain: str
    key: str | None = None
    id_hash: IdHash = "xxh3_128"

    @property
    def id_scheme(self) -> str:
        """What a change of would invalidate all ids: recorded in the catalog, so that it indexes anew."""
        return f"{self.id_hash}(domain NUL text)/1"


@dataclass
class BadRows:
    """How many rows of a file have which fault, and the first of each."""

    first: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def add(self, fault: str, bad: pa.Array, first_row: int) -> None:
        """Counts the true entries of `bad`, the rows from `first_row` on."""
        num_bad = pc.sum(bad).as_py() or 0
        if num_bad:
            self.first.setdefault(fault, first_row + pc.index(bad, True).as_py())
            self.count[fault] = self.count.get(fault, 0) + num_bad


def index_batches(
    store: Store, file: ParquetFile, columns: Columns, bad_rows: str, *, batch_rows: int = 4096
) -> Iterator[pa.RecordBatch]:
    """The rows of `file` as `INDEX_SCHEMA`, in order; `sample_id` is the key, or the content id before numbering.

    Args:
        store: where the file is.
        file: as listed.
        columns: checked by `check_schemas` before.
        bad_rows: "error" refuses rows without text or domain after counting them; "skip" marks them unusable.
        batch_rows: rows at a time.

    Raises:
        BadRowsError: invalid UTF-8, a missing key, or (with "error") rows without text or domain.
        ConflictError: the file is not the listed one any more.
    """
    place = store.describe(file.path)
    wanted = dict.fromkeys(name for name in (columns.text, columns.domain, columns.key) if name in file.schema.names)
    faults = BadRows()
    first_row = 0
    for batch in iter_batches(store, file, [name for name in wanted if name], batch_rows=batch_rows):
        read = {name: _as_text(batch[name], name, place, first_row) for name in batch.schema.names}
        text = read[columns.text]
        domain = read.get(columns.domain)
        if domain is None:
            domain = pa.repeat(pa.scalar(file.partition[columns.domain], pa.large_string()), batch.num_rows)
        if columns.key is None:
            ids = content_ids(domain, text, columns.id_hash)
        else:
            ids = _keys(read[columns.key], columns, place, first_row)
        usable = _find_usable(text, domain, columns, faults, first_row)
        rows = np.arange(first_row, first_row + batch.num_rows)
        num_bytes = pc.fill_null(pc.binary_length(text), 0).cast(pa.int32())
        arrays = [pa.array(rows), ids, domain.cast(pa.string()), num_bytes, usable]
        yield pa.record_batch(arrays, schema=INDEX_SCHEMA)
        first_row += batch.num_rows
    if bad_rows == "error" and faults.count:
        raise BadRowsError(_describe(faults, place))


def content_ids(domain: pa.Array, text: pa.Array, id_hash: IdHash) -> pa.Array:
    """The hash of domain, NUL and text of every row, in hex (32 digits of xxh3_128, 64 of sha256); null is empty.

    Args:
        domain: large_string.
        text: large_string of the same length.
        id_hash: which one.
    """
    if len(text) == 0:
        return pa.array([], pa.string())
    encoded = pc.fill_null(domain, "").dictionary_encode()
    prefixes = [_HASHES[id_hash](name.encode() + b"\0") for name in encoded.dictionary.to_pylist()]
    offsets, data = _offsets_and_bytes(pc.fill_null(text, ""))
    ids = []
    for code, start, stop in zip(encoded.indices.to_numpy().tolist(), offsets[:-1], offsets[1:], strict=True):
        state = prefixes[code].copy()
        state.update(data[start:stop])
        ids.append(state.hexdigest())
    return pa.array(ids, pa.string())


def _offsets_and_bytes(text: pa.Array) -> tuple[list[int], memoryview]:
    """Where every value of a large_string array starts, and its end, in the one buffer that holds them all."""
    _, offsets, data = text.buffers()
    starts = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return starts.tolist(), memoryview(b"" if data is None else data)


def _as_text(values: pa.Array, column: str, place: str, first_row: int) -> pa.Array:
    """As large_string, so that a batch may exceed 2 GiB; UTF-8 checked, since DuckDB reads nothing else."""
    is_dictionary = pa.types.is_dictionary(values.type)
    stored = values.dictionary if is_dictionary else values
    try:
        stored.validate(full=True)
    except pa.ArrowInvalid as error:
        binary = (values.dictionary_decode() if is_dictionary else values).cast(pa.large_binary()).to_pylist()
        bad = [row for row, value in enumerate(binary, start=first_row) if value is not None and not _is_utf8(value)]
        raise BadRowsError(
            f"column {column!r} of {place} is not valid UTF-8 in row {bad[0] if bad else first_row} and in {len(bad)} "
            f"of the {len(binary)} rows from row {first_row} on",
            hint="write the text as UTF-8",
        ) from error
    return (values.dictionary_decode() if is_dictionary else values).cast(pa.large_string())


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _keys(keys: pa.Array, columns: Columns, place: str, first_row: int) -> pa.Array:
    if keys.null_count:
        row = first_row + pc.index(pc.is_null(keys), True).as_py()
        raise BadRowsError(
            f"key column {columns.key!r} of {place} is null in row {row} and in {keys.null_count} of the {len(keys)} "
            f"rows from row {first_row} on",
            hint="a key identifies every row: fill it, or configure no key",
        )
    return keys.cast(pa.string())


def _find_usable(text: pa.Array, domain: pa.Array, columns: Columns, faults: BadRows, first_row: int) -> pa.Array:
    """Which rows have a text and a domain; the others are counted in `faults`."""
    blank = pc.or_(pc.equal(pc.binary_length(text), 0), pc.utf8_is_space(text))
    no_text = pc.fill_null(blank, True)
    no_domain = pc.fill_null(pc.equal(pc.binary_length(domain), 0), True)
    faults.add(f"no text in column {columns.text!r} (null, empty or only spaces)", no_text, first_row)
    faults.add(f"no domain in {columns.domain!r} (null or empty)", no_domain, first_row)
    return pc.invert(pc.or_(no_text, no_domain))


def _describe(faults: BadRows, place: str) -> str:
    parts = [f"{count:,} row(s) with {fault}, first row {faults.first[fault]}" for fault, count in faults.count.items()]
    return f"{place} has {' and '.join(parts)}; correct them, or leave such rows out with --skip-bad-rows"
