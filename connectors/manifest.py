"""What one published version consists of, as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from connectors.errors import CorruptFileError, UnsupportedError

SCHEMA_VERSION = 1
_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file of a version and the source file it was made from.

    Attributes:
        source_path: relative to the lake.
        source_size_bytes: length of the source when it was read.
        source_version: version of the source when it was read.
        published_path: relative to the destination store.
        size_bytes: length of the published file.
        num_rows: rows, the same in both.
    """

    source_path: str
    source_size_bytes: int
    source_version: str
    published_path: str
    size_bytes: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of the lake with weight columns. Immutable: a later version is another manifest.

    Attributes:
        run_id: the run whose weights these are.
        snapshot_id: the snapshot of the lake they were made for.
        columns: names of the columns that were added.
        files: what to read.
        created_at: UTC, ISO 8601.
        extra: whatever else the caller wants to find again; JSON values only.
        schema_version: of this format.
    """

    run_id: str
    snapshot_id: str
    columns: tuple[str, ...]
    files: tuple[PublishedFile, ...]
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def manifest_to_json(manifest: Manifest) -> bytes:
    """Deterministic: equal manifests give equal bytes; `manifest_from_json` is the inverse."""
    return dump_json(asdict(manifest))


def manifest_from_json(data: bytes, place: str) -> Manifest:
    """The inverse of `manifest_to_json`.

    Args:
        data: the object's bytes.
        place: its address, for messages.

    Raises:
        UnsupportedError: written by a later version of this package.
        CorruptFileError: not a manifest, or one with missing, unknown or mistyped entries.
    """
    value = load_json(data, place)
    files = value.pop("files", None)
    columns = value.pop("columns", None)
    if not isinstance(files, list) or not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
        raise CorruptFileError(f"{place} is not a manifest: it lacks the list of files or of columns")
    value["files"] = tuple(build(PublishedFile, file, place) for file in files)
    value["columns"] = tuple(columns)
    return build(Manifest, value, place)


def dump_json(value: Mapping[str, Any]) -> bytes:
    """Sorted keys, UTF-8, one trailing newline."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def load_json(data: bytes, place: str, *, newest: int = SCHEMA_VERSION) -> dict[str, Any]:
    """A JSON object in a schema version that this package knows: from 1 to `newest`.

    Raises:
        CorruptFileError: not a JSON object.
        UnsupportedError: a later schema version.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CorruptFileError(f"{place} is not JSON ({error}); it was damaged or is not ours") from error
    if not isinstance(value, dict) or not isinstance(value.get("schema_version"), int):
        raise CorruptFileError(f"{place} has no schema_version; it was damaged or is not ours")
    if not 1 <= value["schema_version"] <= newest:
        known = "1" if newest == 1 else f"1 to {newest}"
        raise UnsupportedError(
            f"{place} has schema_version {value['schema_version']}, this lake-curator reads {known}",
            hint="install the version that wrote it",
        )
    return value


def build(kind: type[_Record], value: Any, place: str) -> _Record:
    """A dataclass from a JSON object; unknown, missing and mistyped entries are errors.

    Raises:
        CorruptFileError: names the entry.
    """
    types = {f.name: f.type if f.type in (str, int) else object for f in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    if not isinstance(value, dict) or set(value) != set(types):
        wrong = sorted(set(value) ^ set(types)) if isinstance(value, dict) else [type(value).__name__]
        raise CorruptFileError(f"{place} is not a {kind.__name__}: missing or unknown entry {wrong[0]!r}")
    for name, type_ in types.items():
        if not isinstance(value[name], cast(type, type_)) or (type_ is int and isinstance(value[name], bool)):
            raise CorruptFileError(f"{place}: entry {name!r} of a {kind.__name__} is {value[name]!r}")
    return kind(**value)
