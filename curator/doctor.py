"""`curator doctor`: is everything here that the product needs, and if not, what to do.

Nothing of `optim` is imported here: where another package of that name is found first, this has to run and say so.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from connectors.errors import AccessError, ConnectorError, MissingExtraError, UnsupportedError
from connectors.store import Store, check_put_if_absent, open_store, redact_url
from curator.errors import ConfigError, one_line
from curator.files import user_folder

CORE = ("duckdb", "pyarrow", "polars", "fsspec", "numpy", "pydantic", "xxhash", "jinja2")
EXTRAS = {
    "train": ("torch", "transformers", "tokenizers", "safetensors", "megatron-core"),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "azure": ("adlfs",),
    "delta": ("deltalake",),
    "iceberg": ("pyiceberg",),
    "dagster": ("dagster", "dagster-pipes"),
    "openlineage": ("openlineage-python",),
    "ray": ("ray",),
}
INTRUDERS = ("elasticsearch-curator", "optim", "connectors", "curator")
"""Distributions on PyPI that install packages of our names; beside them, `import curator` may find theirs."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the credentials of a kind of storage are looked for, by the package that reads it and by us alike."""

    package: str
    variables: tuple[str, ...]
    files: tuple[str, ...]
    fix: str


_CREDENTIALS = {
    "S3": _Source(
        package="s3fs",
        variables=(
            "AWS_ACCESS_KEY_ID",
            "AWS_PROFILE",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "FSSPEC_S3_KEY",
            "FSSPEC_S3_PROFILE",
        ),
        files=("AWS_SHARED_CREDENTIALS_FILE=~/.aws/credentials", "AWS_CONFIG_FILE=~/.aws/config"),
        fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a machine's own role needs neither",
    ),
    "GCS": _Source(
        package="gcsfs",
        variables=("GOOGLE_APPLICATION_CREDENTIALS", "FSSPEC_GCS_TOKEN", "FSSPEC_GS_TOKEN"),
        files=("=~/.config/gcloud/application_default_credentials.json",),
        fix="run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "Azure": _Source(
        package="adlfs",
        variables=(
            "AZURE_STORAGE_ACCOUNT_NAME",
            "AZURE_STORAGE_CONNECTION_STRING",
            "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_CLIENT_ID",
            "FSSPEC_ABFS_ACCOUNT_NAME",
        ),
        files=(),
        fix="set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and its key",
    ),
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "FSSPEC_S3_ENDPOINT_URL", "STORAGE_EMULATOR_HOST")

Outcome = Literal["ok", "missing", "failed"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: `missing` can be lived without, `failed` cannot; `fix` says what to do."""

    name: str
    outcome: Outcome
    found: str
    fix: str = ""


def diagnose(destination: str | None = None) -> list[Check]:
    """Look at this machine, and write to `destination` and clean up, by default to that of ./curator.toml."""
    checks = [_python(), *_core(), *_extras(), *_intruders(), _machine(), _folder(), *_credentials(), *_endpoints()]
    return [*checks, *([_store(destination)] if destination else _of_settings())]


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    return Check(name="Python", outcome="ok", found=found)


def _core() -> Iterator[Check]:
    bounds = _bounds()
    for name in CORE:
        wrong = _unmet(name, bounds.get(name, ""))
        found = _version(name) or "not installed"
        yield Check(
            name=name,
            outcome="failed" if wrong else "ok",
            found=f"{found}, {wrong}" if wrong and _version(name) else found,
            fix=f"pip install '{name}{bounds.get(name, '')}'" if wrong else "",
        )


def _extras() -> Iterator[Check]:
    """An extra that is not there is missing; one whose packages are of other versions than it asks for has failed."""
    bounds = _bounds()
    for extra, names in EXTRAS.items():
        found = ", ".join(f"{name} {_version(name) or 'not installed'}" for name in names)
        wrong = {name: _unmet(name, bounds.get(name, "")) for name in names if _version(name)}
        unmet = "; ".join(f"{name} is {said}" for name, said in wrong.items() if said)
        missing = [name for name in names if _version(name) is None]
        yield Check(
            name=f"extra [{extra}]",
            outcome="failed" if unmet else "missing" if missing else "ok",
            found=f"{found}; {unmet}" if unmet else found,
            fix=f"pip install 'lake-curator[{extra}]'" if missing or unmet else "",
        )


def _bounds() -> dict[str, str]:
    """What our distribution asks of each package, as ">=1.4,<3"; empty where it is run from a folder."""
    try:
        required = metadata.requires("lake-curator") or []
    except metadata.PackageNotFoundError:
        return {}
    parted = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?([^;]*)", line) for line in required)
    return {match[1]: match[2].strip() for match in parted if match}


def _unmet(name: str, bounds: str) -> str:
    """How an installed version is outside its bounds, in words; empty if it is not. Suffixes do not count."""
    version = _version(name)
    if version is None:
        return "not installed"
    for sign, limit in re.findall(r"(>=|<)\s*([0-9.]+)", bounds):
        found, bound = _numbers(version), _numbers(limit)
        width = max(len(found), len(bound))
        found, bound = (each + (0,) * (width - len(each)) for each in (found, bound))
        if (sign == ">=" and found < bound) or (sign == "<" and found >= bound):
            return f"outside {bounds}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _intruders() -> Iterator[Check]:
    for name in INTRUDERS:
        version = _version(name)
        if version:
            yield Check(
                name="intruder",
                outcome="failed",
                found=f"the distribution {name} {version} installs a package of our name",
                fix=f"pip uninstall {name}, then pip install --force-reinstall --no-deps lake-curator",
            )
    home = Path(__file__).resolve().parent.parent
    for name in ("curator", "optim", "connectors"):
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if place != home:
            yield Check(
                name="intruder",
                outcome="failed",
                found=f"package {name!r} is found in {place}, not in {home}",
                fix="remove the other one from the Python path",
            )


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if importlib.util.find_spec("torch") is None:
        return Check(name="machine", outcome="ok", found=f"{cores} CPU cores")
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of the system or of CUDA that is not there
        return Check(
            name="machine",
            outcome="failed",
            found=f"{cores} CPU cores; torch cannot be loaded: {one_line(error)}",
            fix="install a build of torch for this machine: https://pytorch.org/get-started",
        )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check(name="machine", outcome="ok", found=f"{cores} CPU cores, {', '.join(gpus) or 'no GPU'}")


def _folder() -> Check:
    """The folder of work folders is made when it is needed; whether that will do, its nearest parent says."""
    folder = user_folder()
    nearest = _nearest(folder)
    if _can_be_filled(nearest):
        return Check(name="work folder", outcome="ok", found=f"{folder}, for lakes that are not on this machine")
    return Check(
        name="work folder",
        outcome="failed",
        found=f"{folder} cannot be made: {nearest} cannot be written",
        fix="set CURATOR_HOME to a folder that can",
    )


def _nearest(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _can_be_filled(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _credentials() -> Iterator[Check]:
    """Which variables and files name credentials; never what is in them. Looked for where the package is installed."""
    for store, source in _CREDENTIALS.items():
        found = [name for name in source.variables if os.environ.get(name)]
        for variable, _, usual in (entry.partition("=") for entry in source.files):
            place = Path(os.environ.get(variable) or usual).expanduser()
            if place.is_file():
                found.append(str(place))
        found += [str(place) for place in _fsspec_files(source.package)]
        name = f"{store} credentials"
        if found:
            yield Check(name=name, outcome="ok", found=f"from {', '.join(found)} (values not shown)")
        elif _version(source.package):
            yield Check(name=name, outcome="missing", found="none in variables or files", fix=source.fix)


def _fsspec_files(package: str) -> Iterator[Path]:
    """Files of fsspec's own settings that name a protocol of the package."""
    protocols = {"s3fs": ("s3",), "gcsfs": ("gcs", "gs"), "adlfs": ("abfs", "az")}[package]
    folder = Path(os.environ.get("FSSPEC_CONFIG_DIR") or "~/.config/fsspec").expanduser()
    for place in sorted([*folder.glob("*.json"), *folder.glob("*.ini")]):
        with suppress(OSError, UnicodeDecodeError):
            text = place.read_text(encoding="utf-8")
            if any(f'"{protocol}"' in text or f"[{protocol}]" in text for protocol in protocols):
                yield place


def _endpoints() -> Iterator[Check]:
    for name in _ENDPOINTS:
        if url := os.environ.get(name):
            yield Check(name="endpoint", outcome="ok", found=f"{name}={redact_url(url)}")


def _of_settings() -> Iterator[Check]:
    """The place that ./curator.toml names for versions, if there is such a file."""
    try:
        from connectors.connector import is_table
        from curator.config import DEFAULT_FILE, load_config

        lake = load_config(DEFAULT_FILE).lake if Path(DEFAULT_FILE).exists() else None
    except ImportError:  # a package that is missing, or an intruder's: a finding of its own
        return
    except ConfigError as error:
        yield Check(name="settings", outcome="failed", found=str(error), fix="mend that, and check again")
        return
    if lake and lake.destination:
        yield _store(lake.destination, lake.storage_options, is_made=True, single_writer=lake.single_writer)
    elif lake and lake.url and not is_table(lake.url):
        yield _store(lake.url, lake.storage_options, single_writer=lake.single_writer)


def _store(
    place: str, options: Mapping[str, Any] | None = None, *, is_made: bool = False, single_writer: bool = False
) -> Check:
    """Whether a place can be written; a folder that is not there is a mistake, unless the first version makes it."""
    other = "choose another --destination"
    rights = "the credentials above and their rights"
    try:
        store = open_store(place, options)
        if store.is_local:
            rights = "the permissions and the owner of the folder"
            if is_made and not Path(store.path).exists():
                return _new_folder(Path(store.path))
            store = _folder_of(store)
            if not Path(store.path).exists():
                fix = f"check the address, make the folder if it is a new destination, or {other}"
                return Check(name="destination", outcome="failed", found=f"{store.url} does not exist", fix=fix)
        keeps = check_put_if_absent(store, single_writer=single_writer)
    except MissingExtraError as error:
        return Check(name="destination", outcome="failed", found=str(error), fix="install that, and check again")
    except AccessError as error:
        fix = f"check {rights}, or {other}"
        return Check(name="destination", outcome="failed", found=str(error), fix=fix)
    except UnsupportedError as error:
        return Check(name="destination", outcome="failed", found=error.message, fix=f"{error.hint}; or {other}")
    except ConnectorError as error:
        return Check(name="destination", outcome="failed", found=str(error), fix=other)
    how = "keeps create-if-absent" if keeps else "ignores create-if-absent, for one writer at a time (single_writer)"
    return Check(name="destination", outcome="ok", found=f"{store.url} can be written and {how}")


def _new_folder(folder: Path) -> Check:
    nearest = _nearest(folder)
    if _can_be_filled(nearest):
        return Check(name="destination", outcome="ok", found=f"{folder} will be made when it is needed")
    found = f"{folder} cannot be made: {nearest} cannot be written"
    return Check(name="destination", outcome="failed", found=found, fix="choose another --destination")


def _folder_of(store: Store) -> Store:
    """The folder itself, or that of a file or glob."""
    from connectors.plain import lake_place

    return store if Path(store.path).is_dir() else lake_place(store.path)[0]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
