"""`curator doctor`: is everything here that the product needs, and if not, what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from connectors.errors import ConnectorError
from connectors.store import check_put_if_absent, open_store

CORE = ("duckdb", "pyarrow", "polars", "fsspec", "numpy", "pydantic", "xxhash", "jinja2")
EXTRAS = {
    "train": ("torch", "transformers", "tokenizers", "safetensors", "megatron-core"),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "azure": ("adlfs",),
    "delta": ("deltalake",),
    "iceberg": ("pyiceberg",),
    "dagster": ("dagster",),
}
INTRUDERS = ("elasticsearch-curator", "optim", "connectors", "curator")
"""Distributions on PyPI that install packages of our names; beside them, `import curator` may find theirs."""
_CREDENTIALS = {
    "S3": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "FSSPEC_S3_KEY", "AWS_ENDPOINT_URL"),
    "GCS": ("GOOGLE_APPLICATION_CREDENTIALS", "FSSPEC_GCS_TOKEN"),
    "Azure": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"),
}

Outcome = Literal["ok", "missing", "failed"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: `missing` can be lived without, `failed` cannot; `fix` says what to do."""

    name: str
    outcome: Outcome
    found: str
    fix: str = ""


def diagnose(destination: str | None = None) -> list[Check]:
    """Look at this machine, and at `destination` (written to and cleaned up again) if one is given."""
    checks = [_python(), *_core(), *_extras(), *_intruders(), _machine(), *_credentials()]
    if destination:
        checks.append(_store(destination))
    return checks


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    return Check(name="Python", outcome="ok", found=found)


def _core() -> Iterator[Check]:
    for name in CORE:
        version = _version(name)
        yield Check(
            name=name,
            outcome="ok" if version else "failed",
            found=version or "not installed",
            fix="" if version else "pip install lake-curator",
        )


def _extras() -> Iterator[Check]:
    for extra, names in EXTRAS.items():
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        found = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
        yield Check(
            name=f"extra [{extra}]",
            outcome="missing" if missing else "ok",
            found=found,
            fix=f"pip install 'lake-curator[{extra}]'" if missing else "",
        )


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
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check(name="machine", outcome="ok", found=f"{cores} CPU cores, {', '.join(gpus) or 'no GPU'}")


def _credentials() -> Iterator[Check]:
    """Which credentials the environment names; never their values."""
    for store, names in _CREDENTIALS.items():
        found = [name for name in names if os.environ.get(name)]
        if found:
            yield Check(name=f"{store} credentials", outcome="ok", found=f"from {', '.join(found)} (values not shown)")


def _store(destination: str) -> Check:
    try:
        store = open_store(destination)
        check_put_if_absent(store)
    except ConnectorError as error:
        return Check(name="destination", outcome="failed", found=str(error), fix="choose another --destination")
    return Check(name="destination", outcome="ok", found=f"{store.url} can be written and keeps create-if-absent")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
