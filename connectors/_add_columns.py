"""Columns added to a Parquet object: spliced where that can be, rewritten where it cannot."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from connectors._new_columns import ColumnSource
from connectors._parquet_file import ParquetFile
from connectors._rewrite import rewrite_with_columns
from connectors._splice import NotSpliceableError, splice_columns
from connectors.store import ObjectInfo, Store


@dataclass(frozen=True)
class AddedColumns:
    """A file with columns added.

    Attributes:
        written: the new object as the target lists it.
        rewritten_because: why all columns were encoded anew, as a sentence after "it was rewritten because"; None if
            the old bytes were kept.
    """

    written: ObjectInfo
    rewritten_because: str | None


def add_columns(
    source_store: Store,
    file: ParquetFile,
    target_store: Store,
    target_path: str,
    columns: ColumnSource,
    *,
    footer_metadata: Mapping[str, str] | None = None,
    replace: Set[str] = frozenset(),
    bloom_filters: Set[str] = frozenset(),
) -> AddedColumns:
    """Atomic: the target appears whole, or not at all. The source is never changed.

    The old bytes are kept where they are and the new columns put behind them, at the cost of copying the file. A file
    that does not allow it is rewritten by Arrow: one with an empty row group or none, with a footer that our reader
    would not give back byte for byte, of which a column is replaced, or that gets a nested column.

    Args:
        source_store: where `file` is.
        file: as listed; its version is checked before and after.
        target_store: where the copy goes.
        target_path: must not be the source.
        columns: called for each row group, in order; with (0, 0, 0) for a file without any. A file that turns out
            to need the rewrite asks for them again.
        footer_metadata: added to the key-value metadata.
        replace: names that may already exist; they are replaced at their position.
        bloom_filters: the new columns that get one.

    Raises:
        SchemaError: a new column exists already and is not in `replace`.
        UnsupportedError: encrypted columns, or columns kept in other files.
        ConflictError: the source is not the listed object any more; nothing was written.
        CorruptFileError: the source is damaged; nothing was written.
        ReadOnlyError: the target cannot be written.
    """
    options = {"replace": replace, "bloom_filters": bloom_filters}
    try:
        written = splice_columns(
            source_store, file, target_store, target_path, columns, footer_metadata=footer_metadata, **options
        )
        return AddedColumns(written, None)
    except NotSpliceableError as reason:
        written = rewrite_with_columns(
            source_store, file, target_store, target_path, columns, footer_metadata=footer_metadata, **options
        )
        return AddedColumns(written, str(reason))
