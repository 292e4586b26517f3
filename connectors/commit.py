"""The log of versions: immutable manifests, and numbered entries created by one conditional write each.

    <destination>/manifests/<commit id>.json      written first; invisible until an entry names it
    <destination>/log/00000000000000000001.json   the commit point: created if absent

A version exists when its entry exists. Entries are numbered from 1 without gaps and are never changed. An entry that
names the manifest of an older one restores that version. One that `collects` older ones names the manifest of the one
before it: from then on nobody reads the files of those, and they may be removed; their manifests stay, for history.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import xxhash

from connectors.errors import ConflictError, ConnectorError, CorruptFileError, NotFoundError, UnavailableError
from connectors.manifest import (
    SCHEMA_VERSION,
    Manifest,
    build,
    dump_json,
    load_json,
    manifest_from_json,
    manifest_to_json,
)
from connectors.store import Store, list_objects, put_if_absent, read_bytes, write_object
from connectors.threads import in_threads, num_threads

LOG_FOLDER = "log"
MANIFEST_FOLDER = "manifests"
_COLLECTING_SCHEMA_VERSION = 2
"""Of an entry that collects others: readers that do not know of it must not take those for whole."""
_SUFFIX = ".json"
_MAX_ATTEMPTS = 50
_MAX_BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Version:
    """One entry of the log.

    Attributes:
        number: from 1, without gaps.
        commit_id: unique to the call of `commit` that made it.
        idempotency_key: at most one version has it.
        run_id, snapshot_id: as in the manifest.
        committed_at: UTC, ISO 8601, by the committer's clock; the order is that of `number`.
        manifest_path: relative to the destination store.
        manifest_hash: xxh3_128 of the manifest's bytes.
        created: whether this call of `commit` made it; True for versions that were read.
        collects: numbers of the versions whose files this entry lets go.
        collected_by: number of the entry that let go the files of this one, as `read_log` tells; else None.
    """

    number: int
    commit_id: str
    idempotency_key: str
    run_id: str
    snapshot_id: str
    committed_at: str
    manifest_path: str
    manifest_hash: str
    schema_version: int = SCHEMA_VERSION
    created: bool = field(default=True, compare=False)
    collects: tuple[int, ...] = ()
    collected_by: int | None = field(default=None, compare=False)


def read_log(store: Store) -> list[Version]:
    """Every version, oldest first; `[]` if nothing was ever published.

    Raises:
        CorruptFileError: an entry is missing or damaged.
        UnsupportedError: an entry was written by a later version of this package.
    """
    log = _read_entries(store, _entry_numbers(store))
    collected_by = {number: version.number for version in log for number in version.collects}
    return [replace(version, collected_by=collected_by.get(version.number)) for version in log]


def latest(store: Store) -> Version | None:
    """The newest version, or None if nothing was ever published."""
    numbers = _entry_numbers(store)
    return read_version(store, numbers[-1]) if numbers else None


def newest_number(store: Store) -> int:
    """The number of the newest version, 0 if nothing was ever published; by one listing.

    Raises:
        CorruptFileError: an entry is missing.
    """
    return len(_entry_numbers(store))


def read_version(store: Store, number: int) -> Version:
    """One version.

    Raises:
        NotFoundError: there is no such version; the message names the newest.
        CorruptFileError: the entry is damaged.
    """
    path = _entry_path(number)
    try:
        return _parse_entry(read_bytes(store, path), number, store.describe(path))
    except NotFoundError as error:
        numbers = _entry_numbers(store)
        there = f"the newest is {numbers[-1]}" if numbers else "nothing was published there yet"
        raise NotFoundError(f"{store.describe()} has no version {number}", hint=there) from error


def read_manifest(store: Store, version: Version) -> Manifest:
    """What a version consists of, checked against the hash in the log.

    Raises:
        CorruptFileError: the manifest is missing or is not the one that was committed.
    """
    place = store.describe(version.manifest_path)
    try:
        data = read_bytes(store, version.manifest_path)
    except NotFoundError as error:
        raise CorruptFileError(
            f"{place}, which version {version.number} names, was removed", hint=_way_out(store, version)
        ) from error
    if xxhash.xxh3_128_hexdigest(data) != version.manifest_hash:
        raise CorruptFileError(
            f"{place} is not the manifest that version {version.number} committed", hint=_way_out(store, version)
        )
    return manifest_from_json(data, place)


def _way_out(store: Store, version: Version) -> str:
    return (
        f"restore it from a backup, or forget the version by deleting {store.describe(_entry_path(version.number))} "
        "if it is the newest"
    )


def commit(store: Store, manifest: Manifest, *, idempotency_key: str, max_attempts: int = _MAX_ATTEMPTS) -> Version:
    """Atomic and exactly once: afterwards one version with this key is visible; on an error, all of it or nothing.

    A crash at any point leaves either the old newest version or this one. A repeated call with the same key, also
    from another process, returns the version that exists. If the answer of the storage is lost, the log is read back
    and our own commit recognised.

    Args:
        store: the destination; its storage must pass `check_put_if_absent`.
        manifest: everything it names must be written already.
        idempotency_key: names the work, not the attempt (the same for a retried job).
        max_attempts: races to lose, or answers to miss, before giving up.

    Returns:
        The version; `created` says whether this call made it.

    Raises:
        ConflictError: every attempt lost against other writers; try again.
        UnavailableError: the storage did not answer; calling again with the same key is safe.
        ReadOnlyError: the destination cannot be written.
    """
    body = manifest_to_json(manifest)
    commit_id = uuid4().hex
    entry = Version(
        number=0,
        commit_id=commit_id,
        idempotency_key=idempotency_key,
        run_id=manifest.run_id,
        snapshot_id=manifest.snapshot_id,
        committed_at="",
        manifest_path=f"{MANIFEST_FOLDER}/{commit_id}{_SUFFIX}",
        manifest_hash=xxhash.xxh3_128_hexdigest(body),
    )

    written: list[str] = []

    def write_manifest(_: Sequence[Version]) -> None:
        if not written:
            write_object(store, entry.manifest_path, body)
            written.append(entry.manifest_path)

    return _append(store, entry, write_manifest, max_attempts)


def restore(store: Store, number: int, *, max_attempts: int = _MAX_ATTEMPTS) -> Version:
    """Atomic and exactly once: one more version, which names the manifest of version `number`.

    A repeated call finds that the newest version is what it asks for. Nothing is removed: the versions in between
    stay readable. A version that another writer published meanwhile is not hidden unseen.

    Returns:
        The newest version; `created` is False if it had the content of version `number` already.

    Raises:
        NotFoundError: there is no such version, or its files were let go.
        ConflictError: another version was published since the log was read; look at it, then try again.
        UnavailableError, ReadOnlyError: as for `commit`.
    """
    log = read_log(store)
    target = next((version for version in log if version.number == number), None) or read_version(store, number)
    check_readable(log, target, store.describe())
    newest = log[-1]
    if newest.manifest_path == target.manifest_path:
        return replace(newest, created=False)
    entry = replace(
        target,
        commit_id=uuid4().hex,
        idempotency_key=f"restore version {number} after version {newest.number}",
        schema_version=SCHEMA_VERSION,
        collects=(),
    )
    again = "look at it, then roll back again if it is to be left behind, too"
    return _append(store, entry, lambda log: _check_newest(store, log, newest, again), max_attempts)


def beyond(log: Sequence[Version], keep: int) -> tuple[int, ...]:
    """Numbers of the versions that are let go if only the newest `keep` different ones are to be readable.

    An entry that restored another one, or collected some, is no version of its own: it has the files of that one.
    """
    readable = [version for version in log if version.collected_by is None]
    newest_first = dict.fromkeys(version.manifest_path for version in reversed(readable))
    kept = list(newest_first)[:keep]
    return tuple(version.number for version in readable if version.manifest_path not in kept)


def collect(store: Store, keep: int, *, max_attempts: int = _MAX_ATTEMPTS) -> tuple[int, ...]:
    """Atomic: let go the files of all versions but the newest `keep`, by one more entry with the newest's content.

    Nothing is removed here. From then on these versions cannot be restored, and `connectors.garbage` finds their files.

    Args:
        store: the destination.
        keep: at least 1.
        max_attempts: as for `commit`.

    Returns:
        The numbers of the versions that this call let go; nothing was written if there are none.

    Raises:
        ConflictError: another version was published meanwhile; try again.
        UnavailableError, ReadOnlyError: as for `commit`.
    """
    log = read_log(store)
    numbers = beyond(log, keep)
    if not numbers:
        return ()
    newest = log[-1]
    entry = replace(
        newest,
        commit_id=uuid4().hex,
        idempotency_key=f"collect {len(numbers)} versions after version {newest.number}",
        schema_version=_COLLECTING_SCHEMA_VERSION,
        collects=numbers,
    )
    made = _append(store, entry, lambda log: _check_newest(store, log, newest, "try again"), max_attempts)
    return made.collects


def check_readable(log: Sequence[Version], version: Version, place: str) -> None:
    """Raises NotFoundError if the files of a version of `log` were let go."""
    if version.collected_by is not None:
        left = ", ".join(str(each.number) for each in log if each.collected_by is None)
        raise NotFoundError(
            f"version {version.number} of {place} cannot be read any more: its files were let go by version "
            f"{version.collected_by} (`curator gc --keep`)",
            hint=f"the versions that can be read are {left}",
        )


def _check_newest(store: Store, log: Sequence[Version], newest: Version, advice: str) -> None:
    if log[-1].number != newest.number:
        raise ConflictError(f"version {log[-1].number} was published to {store.describe()} meanwhile", hint=advice)


def restored_number(log: Sequence[Version], version: Version) -> int | None:
    """The first version with the same manifest, if `version` restored an older one."""
    if version.collects:
        return None
    first = next(each.number for each in log if each.manifest_path == version.manifest_path)
    return first if first < version.number else None


def _append(store: Store, draft: Version, before: Callable[[Sequence[Version]], None], max_attempts: int) -> Version:
    """Create the next entry of the log from `draft`, unless one has its key; `before` sees the log each time."""
    log: list[Version] = []
    failure: ConnectorError = ConflictError(f"no attempt was made to commit to {store.describe()}")
    for attempt in range(max_attempts + 1):
        log += _read_entries(store, _entry_numbers(store)[len(log) :])
        for version in log:
            if version.idempotency_key == draft.idempotency_key:
                return replace(version, created=version.commit_id == draft.commit_id)
        if attempt == max_attempts:
            break
        before(log)
        committed_at = datetime.now(UTC).isoformat(timespec="microseconds")
        entry = replace(draft, number=len(log) + 1, committed_at=committed_at)
        try:
            put_if_absent(store, _entry_path(entry.number), dump_json(entry_values(entry)))
        except (ConflictError, UnavailableError) as error:
            failure = error  # another writer was first, or the answer was lost: the log says which
            time.sleep(random.random() * min(_MAX_BACKOFF_SECONDS, 0.02 * (attempt + 1)))  # noqa: S311
        else:
            return entry
    raise failure


def _entry_path(number: int) -> str:
    return f"{LOG_FOLDER}/{number:020d}{_SUFFIX}"


def _entry_numbers(store: Store) -> list[int]:
    names = [info.path.rpartition("/")[2] for info in list_objects(store, _SUFFIX, prefix=LOG_FOLDER)]
    numbers = sorted(int(name[: -len(_SUFFIX)]) for name in names if name[: -len(_SUFFIX)].isdecimal())
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            raise CorruptFileError(
                f"{store.describe(_entry_path(expected))} is missing from the log, which goes on to {numbers[-1]}",
                hint="restore it from a backup",
            )
    return numbers


def _read_entries(store: Store, numbers: Sequence[int]) -> list[Version]:
    threads = num_threads(store) if len(numbers) > 1 else 1
    return list(in_threads(lambda number: read_version(store, number), numbers, threads))


def entry_values(version: Version) -> dict[str, Any]:
    """What an entry says, as values of JSON."""
    left_out = {"created", "collected_by"} | (set() if version.collects else {"collects"})
    return {name: value for name, value in asdict(version).items() if name not in left_out}


def entry_from_values(values: Mapping[str, Any], place: str) -> Version:
    """The inverse of `entry_values`.

    Raises:
        CorruptFileError: names the entry that is missing, unknown or mistyped.
    """
    numbers = values.get("collects", [])
    if not isinstance(numbers, list) or not all(type(each) is int for each in numbers):
        raise CorruptFileError(f"{place}: entry 'collects' of a Version is {numbers!r}")
    read = {"created": True, "collects": tuple(numbers), "collected_by": None}
    return build(Version, {**values, **read}, place)


def _parse_entry(data: bytes, number: int, place: str) -> Version:
    version = entry_from_values(load_json(data, place, newest=_COLLECTING_SCHEMA_VERSION), place)
    if version.number != number:
        raise CorruptFileError(f"{place} says that it is version {version.number}; it was damaged or moved")
    return version
