"""One behaviour on local folders, memory, S3, Google Cloud Storage and Azure."""

import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from connectors.errors import (
    AccessError,
    ConflictError,
    ConnectorError,
    InputError,
    NotFoundError,
    ReadOnlyError,
    UnavailableError,
    UnsupportedError,
)
from connectors.store import (
    ObjectInfo,
    Store,
    check_put_if_absent,
    delete,
    exists,
    list_folder,
    list_objects,
    open_object,
    open_store,
    put_if_absent,
    read_bytes,
    redact_url,
    staged_file,
    stat_object,
    substore,
    write_object,
)


def write_staged(store, path, data, *, then=None):
    with staged_file(store, path) as sink:
        sink.write(data)
        if then is not None:
            raise then


ODD_NAMES = ["größe/日本 x.bin", "a 'quoted' \"name\".bin", "k=v%2F1/#50%.bin", "[a]*?.bin"]


def test_write_object_is_read_back_listed_and_replaced(store):
    write_object(store, "a/b.bin", b"first")
    write_object(store, "a/b.bin", b"second!")
    assert read_bytes(store, "a/b.bin") == b"second!"
    assert [(info.path, info.size_bytes) for info in list_objects(store)] == [("a/b.bin", 7)]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_survives_write_list_stat_read_delete(store, name):
    write_object(store, name, b"x")
    (listed,) = list_objects(store)
    assert listed == stat_object(store, name)
    assert listed.path == name
    assert read_bytes(store, name) == b"x"
    delete(store, name)
    assert not exists(store, name)


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "a\\..\\secret", ".."])
def test_no_path_leads_out_of_the_store(store, path):
    inner = substore(store, "inner")
    write_object(store, "secret", b"x")
    for attempt in (read_bytes, stat_object, delete, exists, lambda *place: write_object(*place, b"y")):
        with pytest.raises(UnsupportedError, match=r"leads out of .*inner, where nothing is read or written"):
            attempt(inner, path)
    assert read_bytes(store, "secret") == b"x"


def test_version_changes_with_the_content_and_only_then(store):
    write_object(store, "a", b"one")
    before = stat_object(store, "a")
    assert stat_object(store, "a") == before
    write_object(store, "a", b"two")
    assert stat_object(store, "a").version != before.version
    assert stat_object(store, "a").size_bytes == before.size_bytes


def test_list_objects_is_sorted_filtered_and_stays_below_the_prefix(place):
    store = place.store()
    for path in ["log/2.json", "log/1.json", "log/sub/3.json", "log/1.txt", "log2/4.json", "log.json"]:
        write_object(store, path, b"{}")
    assert [i.path for i in list_objects(store, ".json", prefix="log")] == [
        "log/1.json",
        "log/2.json",
        "log/sub/3.json",
    ]
    assert [i.path for i in list_objects(substore(store, "log"), ".json")] == ["1.json", "2.json", "sub/3.json"]
    assert list_objects(store, prefix="nothing here") == []


def test_read_bytes_takes_a_range(store):
    write_object(store, "a", b"0123456789")
    assert read_bytes(store, "a", 2, 5) == b"234"
    with open_object(store, "a") as source:
        source.seek(7)
        assert source.read() == b"789"


@pytest.mark.parametrize("operation", [read_bytes, stat_object, lambda s, p: open_object(s, p).__enter__()])
def test_missing_object_is_not_found(store, operation):
    write_object(store, "folder/a", b"x")
    for path in ("absent", "folder", "folder/a/below"):
        with pytest.raises(NotFoundError, match=path):
            operation(store, path)


def test_exists_tells_objects_from_folders(store):
    write_object(store, "folder/a", b"x")
    assert exists(store, "folder/a")
    assert not exists(store, "folder")
    assert not exists(store, "absent")


def test_delete_is_idempotent(store):
    write_object(store, "a", b"x")
    delete(store, "a")
    delete(store, "a")
    assert list_objects(store) == []


def test_put_if_absent_keeps_the_first(store):
    put_if_absent(store, "log/1", b"first")
    with pytest.raises(ConflictError, match="log/1 exists already"):
        put_if_absent(store, "log/1", b"second")
    assert read_bytes(store, "log/1") == b"first"


def test_put_if_absent_lets_exactly_one_thread_win(store):
    outcomes: list[int] = []

    def race(number: int) -> None:
        try:
            put_if_absent(store, "one", str(number).encode())
            outcomes.append(number)
        except ConflictError:
            pass

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert read_bytes(store, "one") == str(outcomes[0]).encode()


def test_put_if_absent_does_not_mistake_a_file_in_the_way_for_a_conflict(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConnectorError) as caught:
        put_if_absent(open_store(str(tmp_path)), "file/below", b"x")
    assert not isinstance(caught.value, ConflictError)


@pytest.mark.parametrize("num_bytes", [0, 10, 12_000_000])
def test_staged_file_appears_whole_on_clean_exit(store, num_bytes):
    data = os.urandom(num_bytes)
    with staged_file(store, "big/file") as sink:
        sink.write(data[: num_bytes // 2])
        sink.write(data[num_bytes // 2 :])
        assert list_objects(store) == []
    assert read_bytes(store, "big/file") == data


@pytest.mark.parametrize("num_bytes", [0, 10, 60_000_000])
def test_staged_file_leaves_nothing_on_an_exception(store, num_bytes):
    write_object(store, "old", b"old")
    for path in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            write_staged(store, path, bytes(num_bytes), then=KeyboardInterrupt)
    assert [(i.path, i.size_bytes) for i in list_objects(store)] == [("old", 3)]
    assert read_bytes(store, "old") == b"old"


def test_local_failure_leaves_no_temporary_file(tmp_path):
    store = open_store(str(tmp_path))
    with pytest.raises(RuntimeError):
        write_staged(store, "a/b", b"x", then=RuntimeError)
    assert list((tmp_path / "a").iterdir()) == []


def test_local_file_is_synced_before_it_is_visible_and_its_folder_after(tmp_path, monkeypatch):
    calls: list[str] = []
    for name in ("fsync", "replace", "link"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _name=name, _call=original: (calls.append(_name), _call(*a))[1])
    store = open_store(str(tmp_path))
    put_if_absent(store, "a", b"x")
    assert calls == ["fsync", "link", "fsync"]


@pytest.mark.parametrize("num_bytes", [10, 60_000_000])
def test_staged_upload_leaves_no_unfinished_multipart_upload(s3_place, num_bytes):
    store = s3_place.store()
    opened = []

    def fail():
        with staged_file(store, "big") as sink:
            opened.append(sink)
            sink.write(bytes(num_bytes))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    opened[0].close()  # as the garbage collector does; it must not begin another upload
    bucket, _, key = store.full_path("big").partition("/")
    uploads = store.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", [])
    assert uploads == []


def test_check_put_if_absent_accepts_honest_storage_and_cleans_up(store):
    check_put_if_absent(store, "log")
    assert list_objects(store) == []


class CarelessFileSystem(MemoryFileSystem):
    """Ignores the condition, as some S3 look-alikes do."""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value)


def test_check_put_if_absent_refuses_storage_that_ignores_the_condition():
    store = Store("careless://x", "/careless", CarelessFileSystem())
    with pytest.raises(UnsupportedError, match=r"ignores conditional writes.*single_writer = true"):
        check_put_if_absent(store)
    assert list_objects(store) == []


def test_check_put_if_absent_lets_one_writer_pass_and_says_whether_it_would_two(store):
    careless = Store("careless://x", "/careless", CarelessFileSystem())
    assert check_put_if_absent(careless, single_writer=True) is False
    assert check_put_if_absent(store, single_writer=True) is True
    assert list_objects(careless) + list_objects(store) == []


def test_listing_passes_over_what_a_killed_process_left(tmp_path):
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    (tmp_path / "a").write_bytes(b"x")
    assert [info.path for info in list_objects(open_store(str(tmp_path)))] == ["a"]


def test_listing_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"x")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "real" / "a")
    listed = [info.path for info in list_objects(open_store(str(tmp_path)))]
    assert "linked" in listed
    assert "real/a" in listed
    assert len(listed) == 2


def test_local_addresses_are_one_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    addresses = ["lake", "./lake", str(tmp_path / "lake"), f"file://{tmp_path}/lake", "~/lake", "lake/"]
    assert {open_store(address).path for address in addresses} == {str(tmp_path / "lake")}


def test_a_store_survives_pickling(place):
    store = place.store()
    write_object(store, "a", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert list_objects(again) == list_objects(store)


def test_memory_readers_do_not_share_a_position():
    store = open_store("memory://positions")
    write_object(store, "a", b"0123456789")
    with open_object(store, "a") as one, open_object(store, "a") as two:
        one.read(4)
        assert two.read(2) == b"01"


# what leaves when storage fails ---------------------------------------------------------------------------------


def test_unknown_scheme_lists_the_known_ones():
    with pytest.raises(UnsupportedError, match=r"unknown storage ftp://.*s3://.*gs://"):
        open_store("ftp://host/lake")


def test_missing_backend_names_the_extra(monkeypatch):
    import connectors._filesystems as filesystems

    def missing(protocol: str) -> type:
        raise ImportError(f"Please install the backend of {protocol}")

    monkeypatch.setattr(filesystems, "get_filesystem_class", missing)
    with pytest.raises(ConnectorError, match=r"pip install 'lake-curator\[gcs\]'$"):
        open_store("gs://bucket/lake")


def test_read_only_destination_says_so(tmp_path):
    # root may write anywhere but in a directory marked immutable; /sys refuses everyone
    with pytest.raises(ConnectorError) as caught:
        write_object(open_store("/sys/nothing"), "a", b"x")
    assert "/sys/nothing/a" in str(caught.value)


def test_what_this_machine_refuses_is_told_with_the_permissions_not_credentials(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    store = open_store(str(tmp_path))
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem._open", refuse)
    with pytest.raises(AccessError, match=rf"^cannot read {tmp_path}/a: Permission denied; let this user") as caught:
        read_bytes(store, "a")
    assert "credentials" not in str(caught.value)
    monkeypatch.setattr("connectors._local.staged", refuse)
    said = rf"^cannot write {tmp_path}/log: Permission denied; let this user write there, .* \(--destination\)$"
    with pytest.raises(ReadOnlyError, match=said):
        check_put_if_absent(store, "log")


def test_refused_write_is_read_only_and_refused_read_is_access(s3_place):
    write_object(s3_place.store(), "a", b"x")
    options = {**s3_place.options, "secret": "not-the-secret-value"}
    store = open_store(s3_place.url, options)
    for operation in (write_object, put_if_absent):
        with pytest.raises(ReadOnlyError, match="cannot write s3://"):
            operation(store, "b", b"x")
    with pytest.raises(ReadOnlyError):
        check_put_if_absent(store)
    with pytest.raises(ReadOnlyError), staged_file(store, "c") as sink:
        sink.write(b"x")
    for operation in (list_objects, lambda s: read_bytes(s, "a"), lambda s: exists(s, "a")):
        with pytest.raises(AccessError, match="set the credentials"):
            operation(store)


@pytest.mark.parametrize(
    "operation",
    [
        list_objects,
        lambda s: read_bytes(s, "a"),
        lambda s: stat_object(s, "a"),
        lambda s: write_object(s, "a", b"x"),
        lambda s: put_if_absent(s, "a", b"x"),
        lambda s: delete(s, "a"),
        lambda s: write_staged(s, "a", bytes(60_000_000)),
        check_put_if_absent,
    ],
)
def test_unreachable_storage_is_unavailable_and_shows_no_credentials(operation):
    secret = "unutterable-secret"
    options = {
        "key": "unutterable-key",
        "secret": secret,
        "endpoint_url": "http://127.0.0.1:1",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    store = open_store("s3://bucket/lake", options)
    with pytest.raises(UnavailableError) as caught:
        operation(store)
    assert "unutterable" not in str(caught.value)
    assert "s3://bucket/lake" in str(caught.value)


@pytest.fixture(params=["s3", "gcs", "azure"])
def remote_place(request):
    """One place per kind of object storage."""
    return request.getfixturevalue(f"{request.param}_place")


def test_impossible_bucket_is_an_input_error(s3_server, azure_place):
    with pytest.raises(InputError, match="Invalid bucket name"):
        list_objects(open_store("s3://No_Such!Bucket/lake", s3_server.options))
    with pytest.raises(InputError, match="invalid characters"):
        list_objects(open_store("abfs://No_Such!Bucket/lake", azure_place.options))


def read_a(store):
    return read_bytes(store, "a")


@pytest.mark.parametrize(
    "operation",
    [
        list_objects,
        read_a,
        lambda s: write_object(s, "a", b"x"),
        lambda s: put_if_absent(s, "a", b"x"),
        lambda s: write_staged(s, "a", b"x"),
    ],
)
def test_missing_bucket_is_not_found(remote_place, operation):
    scheme = remote_place.url.partition("://")[0]
    if scheme == "s3" and operation not in (list_objects, read_a):
        pytest.skip("SeaweedFS makes a bucket that is written to")
    with pytest.raises(NotFoundError, match=f"{scheme}://no-such-bucket/lake"):
        operation(open_store(f"{scheme}://no-such-bucket/lake", remote_place.options))


def secrets_of(options):
    """Every credential in these options, also the parts of a connection string."""
    named = {name: value for name, value in options.items() if name in ("key", "secret", "connection_string")}
    parts = (part.partition("=") for part in options.get("connection_string", "").split(";"))
    return {*named.values(), *(value for name, _, value in parts if name == "AccountKey")}


WRONG_KEY = "dW51dHRlcmFibGU="


def test_wrong_azure_key_is_refused_and_not_shown(azure_place, caplog):
    connection = azure_place.options["connection_string"].split(";")
    wrong = ";".join(f"AccountKey={WRONG_KEY}" if part.startswith("AccountKey") else part for part in connection)
    store = open_store(azure_place.url, {**azure_place.options, "connection_string": wrong})
    for operation, kind in [
        (list_objects, AccessError),
        (read_a, AccessError),
        (lambda s: write_object(s, "a", b"x"), ReadOnlyError),
        (lambda s: put_if_absent(s, "a", b"x"), ReadOnlyError),
        (lambda s: write_staged(s, "a", b"x"), ReadOnlyError),
        (check_put_if_absent, ReadOnlyError),
    ]:
        with pytest.raises(kind, match=f"cannot .* {azure_place.url}.*authenticate") as caught:
            operation(store)
        assert WRONG_KEY not in str(caught.value)
    assert WRONG_KEY not in caplog.text


def test_logs_and_listings_hold_no_credentials(remote_place, caplog):
    caplog.set_level("INFO")
    store = remote_place.store()
    write_object(store, "a", b"x")
    shown = repr(store) + repr(list_objects(store)) + store.describe("a") + caplog.text
    assert not [secret for secret in secrets_of(remote_place.options) if secret in shown]


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hunter2@bucket/lake",
        "s3://AKIA123:hun/ter2+hunter2@bucket/lake/*.parquet",
        "s3://AKIA123:9000/hunter2@bucket",
        "s3://user:hunter2@a@bucket/x@y",
        "abfs://user:hunter2@container@account/lake",
    ],
)
def test_a_password_in_the_address_is_refused_without_repeating_it(url):
    with pytest.raises(InputError, match="holds a password; give credentials in storage_options") as caught:
        open_store(url)
    assert not re.search("hunter2|ter2|AKIA", str(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a:b@c/x.parquet",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/key@1",
        "abfs://container@account.dfs.core.windows.net/lake/10:30",
        "http://127.0.0.1:8333/lake/x@1",
        "/home/me/a:b@c/l?ke/*.parquet",
        "iceberg:sqlite:///lake/a:b@catalog.db#demo.text.docs",
    ],
)
def test_what_only_looks_like_a_password_is_none(url):
    assert redact_url(url) == url


def test_query_and_login_of_an_endpoint_are_not_shown():
    assert redact_url("https://u:p@host:9000/x?sig=abc") == "https://host:9000/x"


def test_secrets_quoted_by_a_backend_are_scrubbed():
    class Talkative(MemoryFileSystem):
        def cat_file(self, path, **kwargs):
            raise OSError(
                5,
                "GET https://u:p@host/x?X-Amz-Signature=feed with hunter22, c2VjcmV0, sv=2024&sig=abc failed "
                f"for {private_key} and {private_key!r}",
            )

    private_key = "-----BEGIN PRIVATE KEY-----\nfirst+line\nlast/line=\n-----END PRIVATE KEY-----\n"
    connection = "AccountName=house;AccountKey=c2VjcmV0;BlobEndpoint=http://x"
    nested = {"sas_token": "sv=2024&sig=abc", "private_key": private_key}
    fs = Talkative(nested=nested, secret="hunter22", connection_string=connection)
    with pytest.raises(ConnectorError) as caught:
        read_bytes(Store("memory://x", "/x", fs), "a")
    for secret in ("hunter22", "c2VjcmV0", "sig=abc", "feed", "u:p", "first+line", "last/line="):
        assert secret not in str(caught.value)


class GcsHttpError(Exception):
    """As gcsfs raises it: no OSError, the status in `code`."""

    code = 401


GcsHttpError.__module__ = "gcsfs.retry"


@pytest.mark.parametrize(
    "refusal", [GcsHttpError("Invalid Credentials"), OSError("Forbidden: b/k"), PermissionError(13)]
)
def test_every_backends_way_to_refuse_is_understood(refusal):
    class Refusing(MemoryFileSystem):
        def cat_file(self, path, **kwargs):
            raise refusal

        def pipe_file(self, path, value, **kwargs):
            raise refusal

    store = Store("gs://b", "/b", Refusing())
    with pytest.raises(AccessError, match="cannot read gs://b/k"):
        read_bytes(store, "k")
    with pytest.raises(ReadOnlyError, match="cannot write gs://b/k"):
        write_object(store, "k", b"x")


def test_a_bug_is_not_dressed_up_as_a_storage_failure():
    class Buggy(MemoryFileSystem):
        def cat_file(self, path, **kwargs):
            raise AttributeError("a bug")

    with pytest.raises(AttributeError, match="a bug"):
        read_bytes(Store("memory://x", "/x", Buggy()), "a")


def test_an_error_of_the_caller_passes_through_unchanged(store):
    with pytest.raises(ZeroDivisionError), staged_file(store, "a"):
        _ = 1 / 0
    assert list_objects(store) == []


def test_object_info_is_a_value():
    assert ObjectInfo("a", 1, "v") == ObjectInfo("a", 1, "v")


@pytest.mark.parametrize("list_them", [list_objects, list_folder])
def test_a_file_that_goes_while_its_folder_is_listed_is_not_there(tmp_path, list_them):
    """What others write beside us appears under another name, and goes."""
    store, done = open_store(str(tmp_path)), threading.Event()
    (tmp_path / "kept").write_bytes(b"1")

    def come_and_go():
        while not done.is_set():
            for number in range(50):
                (tmp_path / f"{number}.part").touch()
            for number in range(50):
                (tmp_path / f"{number}.part").unlink()

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(come_and_go)
        try:
            for _ in range(300):
                assert "kept" in [info.path for info in list_them(store)]
        finally:
            done.set()
        going.result()
