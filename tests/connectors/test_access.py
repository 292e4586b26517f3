"""Ways to be let in: by nobody's name, by a profile, by what the environment says; each in a process of its own."""

import json
import os
import subprocess
import sys
import uuid
from types import SimpleNamespace

import pyarrow as pa
import pytest
from table_cases import connect

from connectors.errors import AccessError
from connectors.manifest import Manifest, PublishedFile
from connectors.plain import list_parquet
from connectors.store import list_objects, open_store, read_bytes, write_object

READER = """
import json, sys
from connectors.manifest import Manifest, PublishedFile
from connectors.plain import list_parquet
from connectors.store import open_store, write_object
url, options = sys.argv[1], json.loads(sys.argv[2])
print(list_parquet(url, options).num_rows)
"""
WRITER = (
    READER
    + """
write_object(open_store(url, options), "written", b"1")
"""
)
LIBRARIES = ("AWS_", "FSSPEC_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")


def told(script, url, options=None, **environment):
    """What a process prints that knows of the storage by nothing but `options` and `environment`."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(LIBRARIES)}
    command = [sys.executable, "-c", script, url, json.dumps(options)]
    ended = subprocess.run(command, env=known | environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture
def public(s3_server, put):
    """Address of a lake of two rows that anybody may read."""
    url = f"s3://{s3_server.public_bucket}/{uuid.uuid4().hex}"
    put(url, "a.parquet", s3_server.options, text=["a", "b"], source=["x", "x"])
    return url


@pytest.mark.parametrize("style", ["options", "environment"])
def test_a_public_lake_is_read_without_credentials(s3_server, public, style):
    given = {"anon": True, "endpoint_url": s3_server.endpoint}
    if style == "options":
        assert told(READER, public, given) == "2\n"
    else:
        assert told(READER, public, FSSPEC_S3_ANON="true", FSSPEC_S3_ENDPOINT_URL=s3_server.endpoint) == "2\n"


def test_who_has_no_name_is_not_let_in_elsewhere(s3_server, s3_place, public, put):
    put(s3_place.url, "a.parquet", s3_place.options, text=["a"], source=["x"])
    anybody = {"anon": True, "endpoint_url": s3_server.endpoint}
    with pytest.raises(AccessError, match=r"s3://lake"):
        list_parquet(s3_place.url, anybody)
    with pytest.raises(AccessError, match=r"cannot write .*Denied"):
        write_object(open_store(public, anybody), "b", b"1")


def test_a_public_delta_table_is_read_without_credentials(s3_server):
    deltalake = pytest.importorskip("deltalake", reason="needs the extra [delta]")
    from connectors._delta_log import delta_options

    url = f"s3://{s3_server.public_bucket}/{uuid.uuid4().hex}"
    options = delta_options(open_store(url, s3_server.options))
    deltalake.write_deltalake(url, pa.table({"text": ["a", "b"], "source": ["x", "x"]}), storage_options=options)
    anybody = {"anon": True, "endpoint_url": s3_server.endpoint, "client_kwargs": {"region_name": "us-east-1"}}
    assert connect(f"delta:{url}", anybody).read_corpus().num_rows == 2


@pytest.mark.parametrize("style", ["options", "environment"])
def test_a_profile_of_the_users_files_lets_in(s3_server, s3_place, tmp_path, put, style):
    put(s3_place.url, "a.parquet", s3_place.options, text=["a", "b"], source=["x", "x"])
    key, secret = s3_place.options["key"], s3_place.options["secret"]
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = other\naws_secret_access_key = other\n"
        f"[of-the-lake]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile of-the-lake]\nendpoint_url = {s3_server.endpoint}\nregion = us-east-1\n"
    )
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }
    if style == "options":
        assert told(WRITER, s3_place.url, {"profile": "of-the-lake"}, **files) == "2\n"
    else:
        assert told(WRITER, s3_place.url, AWS_PROFILE="of-the-lake", **files) == "2\n"
    assert s3_place.store().fs.cat_file(f"{s3_place.url}/written") == b"1"


def test_google_is_reached_by_what_the_environment_says(gcs_place, put):
    put(gcs_place.url, "a.parquet", gcs_place.options, text=["a", "b"], source=["x", "x"])
    place = {"FSSPEC_GCS_TOKEN": "anon", "FSSPEC_GCS_ENDPOINT_URL": gcs_place.options["endpoint_url"]}
    assert told(WRITER, gcs_place.url, GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false", **place) == "2\n"


def service_account():
    """A key of Google's, that opens nothing."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = rsa.generate_private_key(65537, 2048).private_bytes(*form).decode()
    place = {"token_uri": "https://oauth2.googleapis.com/token", "client_email": "robot@lake.example"}
    return {"type": "service_account", "private_key": key, "private_key_id": "unutterable-key-id", **place}


USER = {
    "type": "authorized_user",
    "client_id": "lake",
    "client_secret": "unutterable-1",
    "refresh_token": "unutterable-2",
}


@pytest.mark.parametrize("make_token", [service_account, lambda: dict(USER)], ids=["service account", "user"])
def test_credentials_of_google_are_nowhere(gcs_place, put, monkeypatch, caplog, make_token):
    """Google's own server, which gives access for them, repeats all that it is told when it refuses."""
    import gcsfs.retry
    import google.auth.transport.requests

    token, given, answers = make_token(), "unutterable-access", [200]

    def ask(_, url, method, body, headers, **__):
        status = answers[-1]
        said = {"access_token": given} if status == 200 else {"error": f"invalid: {body} {token}"}
        return SimpleNamespace(status=status, headers={}, data=json.dumps(said).encode())

    monkeypatch.setattr(google.auth.transport.requests.Request, "__call__", ask)
    monkeypatch.setattr(gcsfs.retry, "is_retriable", lambda _: False)
    caplog.set_level("DEBUG")
    put(gcs_place.url, "a.parquet", gcs_place.options, text=["a"], source=["x"])
    connector = connect(gcs_place.url, {**gcs_place.options, "token": token})
    (file,) = connector.read_corpus().files
    size = {"source_size_bytes": file.size_bytes, "size_bytes": 9, "num_rows": 1}
    published = PublishedFile(source_path=file.path, source_version=file.version, published_path="data/run", **size)
    about = Manifest(run_id="run", snapshot_id="s", columns=("w",), files=(published,), extra={})
    connector.commit(about, idempotency_key="run")
    store = open_store(gcs_place.url, gcs_place.options)
    written = b"".join(read_bytes(store, info.path) for info in list_objects(store))
    assert b"data/run" in written
    shown = [repr(connector), repr(connector.read_corpus()), repr(connector.read_log()), written.decode("latin-1")]
    answers.append(401)
    with pytest.raises(AccessError, match=f"cannot read {gcs_place.url}: Invalid Credentials") as caught:
        connect(gcs_place.url, {**gcs_place.options, "token": token, "project": "other"}).read_corpus()
    shown += [str(caught.value), repr(caught.value), *caplog.messages]
    named = [value for name, value in token.items() if name.startswith(("private_key", "client_secret", "refresh"))]
    secrets = [line for value in named for line in value.splitlines()]
    assert len(secrets) >= 2
    assert not [(secret, text) for secret in [given, *secrets] for text in shown if secret in text]


@pytest.mark.parametrize("style", ["AZURE_STORAGE_ variables", "fsspec's configuration"])
def test_azure_is_reached_by_what_the_environment_says(azure_place, put, style):
    put(azure_place.url, "a.parquet", azure_place.options, text=["a", "b"], source=["x", "x"])
    name = "AZURE_STORAGE_CONNECTION_STRING" if style.startswith("AZURE") else "FSSPEC_ABFS_CONNECTION_STRING"
    assert told(WRITER, azure_place.url, **{name: azure_place.options["connection_string"]}) == "2\n"
