"""Where Iceberg tables are found: addresses, the catalogs of the package pyiceberg, and what they raise."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec.config

try:
    import pyiceberg.exceptions as said_by
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config
except ImportError as error:
    from connectors.errors import MissingExtraError

    raise MissingExtraError("iceberg: needs an optional dependency: pip install 'lake-curator[iceberg]'") from error

from connectors._failures import redact_url, scrub, storage_errors
from connectors._table import Table
from connectors.errors import (
    AccessError,
    ConflictError,
    ConnectorError,
    InputError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from connectors.errors import MissingExtraError as ExtraError
from connectors.store import Store, open_store

# fsspec's names of the options of S3 → those of pyiceberg
_S3_OPTIONS = {
    "key": "s3.access-key-id",
    "secret": "s3.secret-access-key",
    "token": "s3.session-token",
    "endpoint_url": "s3.endpoint",
}


@dataclass(frozen=True)
class TableAddress:
    """What an `iceberg:` URL names.

    Attributes:
        catalog: its name; a SQL catalog keeps tables under the name that it was opened with when they were made.
        identifier: namespace and name of the table in it.
        uri: of the catalog; None if pyiceberg's configuration has it.
    """

    catalog: str
    identifier: tuple[str, ...]
    uri: str | None = None

    def __str__(self) -> str:
        return ".".join((self.catalog, *self.identifier))


def parse_address(url: str) -> TableAddress:
    """`iceberg:CATALOG.NAMESPACE.TABLE`, or `iceberg:URI#CATALOG.NAMESPACE.TABLE`; a namespace may have dots.

    Raises:
        InputError: it has another form, or holds a password.
    """
    uri, _, name = url.removeprefix("iceberg:").rpartition("#")
    catalog, *identifier = name.split(".")
    if len(identifier) < 2 or not all((catalog, *identifier)):
        raise InputError(
            f"{redact_url(url)} does not name an Iceberg table",
            hint="write iceberg:CATALOG.NAMESPACE.TABLE for a catalog of "
            "pyiceberg's configuration, or iceberg:sqlite:///FILE#CATALOG.NAMESPACE.TABLE",
        )
    if redact_url(uri) != uri:
        raise InputError(
            f"the address {redact_url(url)} holds a password",
            hint=f"give the catalog's uri in ~/.pyiceberg.yaml or in PYICEBERG_CATALOG__{catalog.upper()}__URI instead",
        )
    return TableAddress(catalog, tuple(identifier), uri or None)


def catalog_properties(address: TableAddress, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the catalog is opened with: pyiceberg's configuration, the address' URI, and the options of S3.

    Raises:
        NotFoundError: the configuration has no such catalog, or the file of a SQLite catalog is not there.
    """
    with iceberg_errors(str(address), {}):
        configuration = Config()
        properties: dict[str, Any] = dict(configuration.get_catalog_config(address.catalog) or {})
        known = configuration.get_known_catalogs()
    if address.uri:
        properties["uri"] = address.uri
    if not properties:
        listed = ", ".join(sorted(known)) or "none"
        raise NotFoundError(
            f"pyiceberg's configuration has no catalog {address.catalog!r} (it has: {listed})",
            hint=f"name it in "
            f"~/.pyiceberg.yaml or by PYICEBERG_CATALOG__{address.catalog.upper()}__URI, or write "
            f"iceberg:URI#{address}",
        )
    path = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)", str(properties.get("uri")))
    if path and not Path(path[1]).is_file():
        raise NotFoundError(
            f"the catalog of {address} is not there: {path[1]} does not exist", hint="check the address"
        )
    given = {**fsspec.config.conf.get("s3", {}), **(storage_options or {})}
    properties |= {ours: str(given[name]) for name, ours in _S3_OPTIONS.items() if given.get(name)}
    if region := (given.get("client_kwargs") or {}).get("region_name"):
        properties["s3.region"] = str(region)
    if given.get("anon"):
        properties["s3.anonymous"] = "true"
    return {"init_catalog_tables": "false", **properties}


def open_table(address: TableAddress, properties: Mapping[str, Any]) -> Table:
    """The table as of now.

    Raises:
        NotFoundError: no such table.
        UnsupportedError: format version 3 or later.
        AccessError, UnavailableError: the catalog refused or did not answer.
    """
    with iceberg_errors(str(address), properties), load_catalog(address.catalog, **properties) as catalog:
        table = catalog.load_table(address.identifier)
    if table.format_version > 2:
        raise UnsupportedError(
            f"the Iceberg table {address} has format version {table.format_version}, whose row ids and default values "
            "its files do not tell",
            hint="1 and 2 are read",
        )
    return table


def table_root(table: Table, storage_options: Mapping[str, Any] | None) -> Store:
    """The store at the table's location, with the options that the catalog has for S3 where none are given.

    Raises:
        UnsupportedError: storage on which Iceberg tables are not read.
    """
    place = normal_location(table.location())
    if place.startswith("s3://"):
        told = {name: table.io.properties.get(theirs) for name, theirs in _S3_OPTIONS.items()}
        options = {name: value for name, value in told.items() if value} | dict(storage_options or {})
        return open_store(place, options)
    if "://" in place:
        raise UnsupportedError(f"an Iceberg table is read from a local folder or s3://, not from {redact_url(place)}")
    return open_store(place)


@contextmanager
def iceberg_errors(place: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Within it, what pyiceberg and its catalogs raise leaves as a `ConnectorError` about `place`, without secrets."""
    try:
        with storage_errors(place, "read", options):
            yield
    except ConnectorError:
        raise
    except Exception as error:  # pyiceberg's have no common base; what is not known to be one is re-raised
        told = _translate(error, place, scrub(str(error), options))
        if told is None:
            raise
        raise told from error


def normal_location(uri: str) -> str:
    """A location without what writers spell differently: `/path`, `s3://bucket/key`, or as it is."""
    uri = re.sub(r"^s3[an]://", "s3://", uri)
    return re.sub(r"^file:/+", "/", uri)


_KINDS: Sequence[tuple[tuple[type[Exception], ...], type[ConnectorError], str]] = (
    (
        (said_by.NoSuchTableError, said_by.NoSuchNamespaceError, said_by.NoSuchIdentifierError),
        NotFoundError,
        "the catalog has no Iceberg table {place} ({said}); check the address: it begins with the name of the catalog, "
        "under which a SQL catalog keeps its tables",
    ),
    (
        (said_by.CommitFailedException, said_by.ValidationException, said_by.WaitingForLockException),
        ConflictError,
        "another writer committed to the Iceberg table {place} first ({said}); try again",
    ),
    (
        (
            said_by.UnauthorizedError,
            said_by.ForbiddenError,
            said_by.AuthorizationExpiredError,
            said_by.OAuthError,
            said_by.SignError,
        ),
        AccessError,
        "the catalog of the Iceberg table {place} refused ({said}); check the credentials in pyiceberg's configuration",
    ),
    ((said_by.NotInstalledError,), ExtraError, "{place} needs more of pyiceberg: {said}"),
    (
        (said_by.RESTError, said_by.DynamoDbError),
        UnavailableError,
        "the catalog of the Iceberg table {place} did not answer ({said}); try again",
    ),
    (
        (ValueError, TypeError, NotImplementedError),
        UnsupportedError,
        "pyiceberg cannot use the Iceberg table {place}: {said}",
    ),
)


def _translate(error: Exception, place: str, said: str) -> ConnectorError | None:
    for kinds, kind, sentence in _KINDS:
        if isinstance(error, kinds):
            return kind(sentence.format(place=place, said=said))
    library = type(error).__module__.split(".")[0]
    if library == "sqlalchemy":
        return UnavailableError(f"the catalog of the Iceberg table {place} did not answer ({said})", hint="try again")
    if library in ("pyiceberg", "strictyaml"):
        return UnsupportedError(f"pyiceberg cannot use the Iceberg table {place}: {said}")
    return None
