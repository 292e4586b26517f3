"""Schemas of several files compared before anything is read."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from connectors._parquet_file import ParquetFile
from connectors.errors import SchemaError, suggest


def check_schemas(
    files: Sequence[ParquetFile], *, text: str, domain: str | None = None, key: str | None = None
) -> None:
    """Every file has the columns that the index needs, with usable types, and no column differs between files.

    Text must be a string, plain or dictionary-encoded. Domain may also be an integer or a boolean, or come from the
    path (`domain=value/`); with None the rows need none. The key must be a string or an integer.

    Raises:
        SchemaError: names the file and the column, and the nearest name that exists.
    """
    union_schema(files)
    for file in files:
        _check_column(file, text, "text", is_string)
        if domain is not None and (domain in file.schema.names or domain not in file.partition):
            _check_column(file, domain, "domain", lambda t: is_string(t) or pa.types.is_integer(t) or t == pa.bool_())
        if key is not None:
            _check_column(file, key, "key", lambda t: is_string(t) or pa.types.is_integer(t))


def union_schema(files: Sequence[ParquetFile]) -> pa.Schema:
    """All columns of all files, in order of first appearance; a column may be absent from some files.

    Variants that hold the same values (string, large_string, dictionary of strings …) count as equal.

    Raises:
        SchemaError: a column's type differs between two files, or two names differ only in case.
    """
    first: dict[str, tuple[pa.Field, ParquetFile]] = {}
    spelling: dict[str, str] = {}
    for file in files:
        _check_names(file, spelling)
        for column in file.schema:
            known = first.get(column.name)
            if known is None or pa.types.is_null(known[0].type):
                first[column.name] = (column, file)
            elif not pa.types.is_null(column.type) and logical_type(column.type) != logical_type(known[0].type):
                raise SchemaError(
                    f"column {column.name!r} is {known[0].type} in {known[1].path} but {column.type} in {file.path}",
                    hint="a column has one type in the whole lake: write one of the files again",
                )
    return pa.schema([column for column, _ in first.values()])


def is_string(type_: pa.DataType) -> bool:
    """Whether values of this type are text, however they are stored."""
    return bool(logical_type(type_) == pa.string())


def logical_type(type_: pa.DataType) -> pa.DataType:
    """The type without its storage: dictionaries, views and 64-bit offsets removed, child names normalised."""
    if pa.types.is_dictionary(type_):
        return logical_type(type_.value_type)
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_map(type_):
        return pa.map_(logical_type(type_.key_type), logical_type(type_.item_type))
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_list_view(type_):
        return pa.list_(logical_type(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, logical_type(f.type)) for f in type_.fields])
    return type_


def _check_column(file: ParquetFile, name: str, role: str, allowed: Callable[[pa.DataType], bool]) -> None:
    if name not in file.schema.names:
        hint = suggest(name, [*file.schema.names, *file.partition])
        raise SchemaError(f"{file.path} has no column {name!r}, which is to be the {role} column{hint}")
    found = file.schema.field(name).type
    if not allowed(found):
        raise SchemaError(
            f"column {name!r} of {file.path} is {found}, which cannot be the {role} column",
            hint=f"{'a string' if role == 'text' else 'a string or an integer'} is allowed: name another column",
        )


def _check_names(file: ParquetFile, spelling: dict[str, str]) -> None:
    """SQL ignores case, so `Text` beside `text` would be the same column."""
    if len(set(file.schema.names)) != len(file.schema.names):
        repeated = sorted({n for n in file.schema.names if file.schema.names.count(n) > 1})
        raise SchemaError(f"{file.path} has column {repeated[0]!r} twice", hint="rename one of them")
    for name in file.schema.names:
        known = spelling.setdefault(name.casefold(), name)
        if known != name:
            raise SchemaError(
                f"columns {known!r} and {name!r} (in {file.path}) differ only in case", hint="rename one of them"
            )
