"""Columns spliced into Parquet files: what the footer says, what is refused, and every kind of storage."""

import errno
import io
import json
import os
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.asyn import sync
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem
from splice_cases import ADDED, TABLE, arrow, check_contents, footer_start, new_columns, put, spliced
from steps import num_steps

from connectors import _s3_extend
from connectors._footer import NEW_SHAPE, OLD_SHAPE
from connectors._thrift import dumps, loads
from connectors.errors import (
    ConflictError,
    ConnectorError,
    CorruptFileError,
    InputError,
    SchemaError,
    UnsupportedError,
)
from connectors.parquet import add_columns, read_parquet_info
from connectors.store import Store, list_objects, open_store, read_bytes, write_object

# Shrinking a failure would take minutes, each try being two files.
QUICK = [Phase.explicit, Phase.reuse, Phase.generate]


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path))


# what the footer says ---------------------------------------------------------------------------------------------


def test_metadata_of_arrow_pandas_and_hugging_face_is_extended(folder):
    features = {"text": {"dtype": "string", "_type": "Value"}}
    blocks = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "pandas": json.dumps({"columns": [{"name": "text"}], "index_columns": []}),
        "lake-curator": "old",
    }
    schema = pa.schema([pa.field("text", pa.large_string(), metadata={"note": "x"})], metadata=blocks)
    table = pa.Table.from_arrays([pa.array(["a", "b"], pa.large_string())], schema=schema)
    after = pq.ParquetFile(
        io.BytesIO(spliced(folder, arrow(table), footer_metadata={"lake-curator": "{}", "more": "ü"}))
    )
    metadata = after.metadata.metadata
    assert metadata[b"lake-curator"] == b"{}"
    assert metadata[b"more"] == "ü".encode()
    assert metadata[b"pandas"] == blocks["pandas"].encode()
    described = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert described["text"] == features["text"]
    assert described["rank"] == {"dtype": "int64", "_type": "Value"}
    assert after.schema_arrow.field("text").type == pa.large_string()
    assert after.schema_arrow.field("text").metadata[b"note"] == b"x"
    assert json.loads(after.schema_arrow.metadata[b"huggingface"])["info"]["features"] == described


@pytest.mark.parametrize("rewritten", [False, True])
def test_new_columns_are_numbered_where_the_old_ones_are(folder, rewritten):
    ids = [pa.field("a", pa.int64(), metadata={"PARQUET:field_id": "3"})]
    inner = pa.field("element", pa.int64(), metadata={"PARQUET:field_id": "9"})
    ids.append(pa.field("b", pa.list_(inner), metadata={"PARQUET:field_id": "4"}))
    table = pa.Table.from_arrays([pa.array([1]), pa.array([[2]], pa.list_(inner))], schema=pa.schema(ids))
    own = pa.field("y", pa.int64(), metadata={"PARQUET:field_id": "50"})
    plain = pa.field("z", pa.int64())
    new = [pa.field("x", pa.list_(pa.int64()) if rewritten else pa.int64()), own, plain]
    values = pa.Table.from_arrays(
        [pa.array([[7]] if rewritten else [7]), pa.array([8]), pa.array([9])], schema=pa.schema(new)
    )
    added = add_columns(folder, put(folder, "a.parquet", arrow(table)), folder, "b.parquet", lambda *_: values)
    assert (added.rewritten_because is not None) == rewritten
    schema = read_parquet_info(folder, added.written).schema
    assert [int(schema.field(n).metadata[b"PARQUET:field_id"]) for n in "abxyz"] == [3, 4, 10, 50, 11]


def test_new_columns_take_the_codec_of_most_others(folder):
    table = pa.table({"a": [1], "b": [2], "c": [3]})
    after = spliced(folder, arrow(table, compression={"a": "gzip", "b": "zstd", "c": "gzip"}))
    group = pq.read_metadata(io.BytesIO(after)).row_group(0)
    assert [group.column(i).compression for i in range(7)] == ["GZIP", "ZSTD", *["GZIP"] * 5]


def test_a_spliced_file_can_be_spliced_again(folder):
    once = spliced(folder, arrow(TABLE, row_group_size=7, write_page_index=True))

    def more(_, first_row, num_rows):
        return pa.table({"more": range(first_row, first_row + num_rows)})

    check_contents(once, spliced(folder, once, more), more)


def one_weight(*_):
    return pa.table({"w": [1.0]})


def test_many_row_groups_and_columns_are_spliced_in_steps_in_proportion(folder):
    counts = {}
    for num_groups in (50, 200):
        table = pa.table({f"column {number}": range(num_groups) for number in range(20)})
        file = put(folder, "a.parquet", arrow(table, row_group_size=1))
        counts[num_groups] = num_steps(partial(add_columns, folder, file, folder, "b.parquet", one_weight))
        assert pq.read_table(io.BytesIO(read_bytes(folder, "b.parquet")))["w"].to_pylist() == [1.0] * num_groups
    assert counts[200] > 200 * 20  # it is the work that was counted
    assert counts[200] < 5 * counts[50]  # in proportion: 4; each row group looking at all the others: 16


# what is not spliced ----------------------------------------------------------------------------------------------


def grouped(*sizes):
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, TABLE.schema) as writer:
        for size in sizes:
            writer.write_table(TABLE.slice(0, size))
    return sink.getvalue()


def with_footer(data, change):
    """The file with its footer changed."""
    start = footer_start(data)
    footer = change(data[start:-8])
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (grouped(), {}, "it has no row group"),
        (grouped(3, 0, 2), {}, "it has an empty row group"),
        (arrow(pa.table({"rank": [1], "a": [2]})), {"replace": {"rank"}}, "column 'rank' is replaced"),
        # the version in the long form of a field header, which no writer uses
        (with_footer(grouped(4), lambda f: b"\x05\x02" + f[1:]), {}, "would not come back byte for byte"),
        (with_footer(grouped(4), lambda f: f + b"\0\0"), {}, "its footer has 2 bytes too many"),
    ],
)
def test_other_files_are_rewritten_and_the_reason_is_told(folder, data, options, reason):
    added = add_columns(folder, put(folder, "a.parquet", data), folder, "b.parquet", new_columns, **options)
    assert reason in added.rewritten_because
    seen = pq.read_table(io.BytesIO(read_bytes(folder, "b.parquet")))
    assert seen.select(ADDED).equals(new_columns(0, 0, seen.num_rows))
    old = [name for name in pq.read_schema(io.BytesIO(data)).names if name not in ADDED]
    assert seen.select(old).equals(pq.read_table(io.BytesIO(data)).select(old))


def test_a_nested_new_column_is_rewritten(folder):
    added = add_columns(
        folder, put(folder, "a.parquet", grouped(2)), folder, "b.parquet", lambda *_: pa.table({"x": [[1], [2]]})
    )
    assert added.rewritten_because == "new column 'x' is nested"
    assert pq.read_table(io.BytesIO(read_bytes(folder, "b.parquet")))["x"].to_pylist() == [[1], [2]]


def refused(store, data, error, message, columns=new_columns, **options):
    file = put(store, "a.parquet", data)
    with pytest.raises(error, match=message):
        add_columns(store, file, store, "b.parquet", columns, **options)
    assert [info.path for info in list_objects(store)] == ["a.parquet"]


def test_an_existing_column_and_wrong_new_ones_are_refused_and_nothing_appears(folder):
    refused(folder, arrow(pa.table({"rank": [1]})), SchemaError, r"a\.parquet has a column 'rank' already")
    refused(folder, grouped(3), InputError, "has 3 rows but 4", lambda g, f, n: new_columns(g, f, n + 1))
    refused(
        folder,
        grouped(3, 3),
        InputError,
        "row group 1 .* differ in type",
        lambda g, f, n: pa.table({"w": [float(g)] * n if g else [g] * n}),
    )
    refused(
        folder,
        grouped(3),
        InputError,
        "names that differ",
        lambda g, f, n: (
            pa.table({}).slice(0).select([])
            if n == 0
            else pa.Table.from_arrays([pa.array([1] * n)] * 2, names=["w", "w"])
        ),
    )


def test_columns_outside_of_the_file_are_damage(folder):
    """A footer that is sound but lies: the pages it tells of are not there."""
    data = grouped(50)
    start = footer_start(data)
    refused(folder, data[:100] + data[start:], CorruptFileError, "places column .* outside of the file")


def test_rows_that_do_not_add_up_are_damage_also_where_a_row_group_says_it_is_empty(folder):
    """It would be rewritten without the rows of that group."""

    def change(footer):
        read = loads(footer, OLD_SHAPE)
        read.structs(4)[0].set_integer(3, 0)
        return dumps(read)

    refused(folder, with_footer(grouped(4, 5), change), CorruptFileError, "do not add up")


def test_columns_in_other_files_and_missing_ones_are_refused(folder):
    def change(footer, action):
        read = loads(footer, OLD_SHAPE)
        action(read.structs(4)[0].structs(1))
        return dumps(read)

    elsewhere = with_footer(grouped(4), lambda f: change(f, lambda chunks: chunks[0].set_binary(1, b"other.parquet")))
    refused(folder, elsewhere, UnsupportedError, "keeps columns in other files")
    missing = with_footer(grouped(4), lambda f: change(f, lambda chunks: chunks.pop()))
    refused(folder, missing, CorruptFileError, "row group in its footer lacks a column")
    empty = with_footer(grouped(4), lambda f: change(f, lambda chunks: chunks[0].fields.pop(3)))
    refused(folder, empty, CorruptFileError, "row group in its footer lacks a column")


def test_a_bloom_filter_that_claims_more_values_than_arrow_counts_is_made_of_those_there_are(folder):
    data = arrow(pa.table({"rank": [1], "a": [2]}), bloom_filter_options={"a": {"ndv": 9}})

    def change(footer):
        read = loads(footer, NEW_SHAPE)
        read.structs(4)[0].structs(1)[1].struct(3).set_integer(5, 2**40)
        return dumps(read)

    file = put(folder, "a.parquet", with_footer(data, change))
    added = add_columns(folder, file, folder, "b.parquet", new_columns, replace={"rank"})
    assert added.rewritten_because == "column 'rank' is replaced"
    assert pq.read_metadata(io.BytesIO(read_bytes(folder, "b.parquet"))).row_group(0).column(1).bloom_filter_length


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_files_are_refused(folder, tmp_path, plaintext_footer):
    encryption = pytest.importorskip("pyarrow.parquet.encryption", reason="this pyarrow has no encryption")

    class Client(encryption.KmsClient):
        def __init__(self, _):
            encryption.KmsClient.__init__(self)

        def wrap_key(self, key_bytes, _):
            return key_bytes.hex().encode()

        def unwrap_key(self, wrapped_key, _):
            return bytes.fromhex(wrapped_key.decode())

    factory = encryption.CryptoFactory(Client)
    properties = factory.file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(
            footer_key="f", column_keys={"k": ["text"]}, plaintext_footer=plaintext_footer
        ),
    )
    with pq.ParquetWriter(tmp_path / "x.parquet", TABLE.schema, encryption_properties=properties) as writer:
        writer.write_table(TABLE)
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").unlink()
    if plaintext_footer:
        refused(folder, data, UnsupportedError, "has encrypted columns; write it without encryption")
    else:
        with pytest.raises(UnsupportedError, match="encrypted footer; write it without encryption"):
            put(folder, "a.parquet", data)


@settings(max_examples=100, deadline=None, phases=QUICK)
@given(st.data())
def test_a_damaged_footer_is_a_connector_error_or_harmless(data):
    """Whatever a footer says, the outcome is a file that Arrow opens, or one of our own errors."""
    store = open_store("memory://damaged")
    footer = bytearray(DAMAGED[footer_start(DAMAGED) : -8])
    for _ in range(data.draw(st.integers(1, 3))):
        footer[data.draw(st.integers(0, len(footer) - 1))] = data.draw(st.integers(0, 255))
    try:
        file = put(store, "a.parquet", with_footer(DAMAGED, lambda _: bytes(footer)))
        added = add_columns(store, file, store, "b.parquet", new_columns)
    except ConnectorError:
        return
    assert read_parquet_info(store, added.written).num_rows == file.num_rows


DAMAGED = arrow(TABLE.slice(0, 6), row_group_size=3, store_schema=False)


# storage ----------------------------------------------------------------------------------------------------------

# Random text: 5.3 MiB on disk, so that S3 copies it on its side.
LARGE = arrow(pa.table({"text": [os.urandom(3500).hex() for _ in range(800)]}), row_group_size=400, compression="none")


def test_every_storage_gives_the_same_bytes(store):
    check_contents(LARGE, spliced(store, LARGE))


ODD_NAMES = ["größe/日本", 'it\'s "quoted"', "#50%", "[a]*?+&", "a = b; c", "%20+%2F"]


@pytest.mark.parametrize("data", [arrow(TABLE), LARGE], ids=["small", "large"])
def test_names_are_taken_as_they_are(store, data):
    for name in ODD_NAMES:
        file = put(store, f"{name}/{name}.parquet", data)
        added = add_columns(store, file, store, f"new/{name}/{name}.parquet", new_columns)
        assert (added.written.path, added.rewritten_because) == (f"new/{name}/{name}.parquet", None)
        check_contents(data, read_bytes(store, added.written.path))
    expected = [f"{folder}{name}/{name}.parquet" for folder in ("", "new/") for name in ODD_NAMES]
    assert [info.path for info in list_objects(store)] == sorted(expected)


def test_a_changed_source_is_a_conflict_and_nothing_appears(store):
    for data in (grouped(5), LARGE):
        file = put(store, "a.parquet", data)
        write_object(store, "a.parquet", grouped(7))
        with pytest.raises(ConflictError, match="changed since it was listed"):
            add_columns(store, file, store, "b.parquet", new_columns)
        assert [info.path for info in list_objects(store)] == ["a.parquet"]


def test_a_source_changed_during_the_copy_is_a_conflict_and_nothing_appears(store):
    for data in (grouped(5, 5), LARGE):
        file = put(store, "a.parquet", data)

        def columns(group, first_row, num_rows):
            if group == 1:
                write_object(store, "a.parquet", grouped(7))
            return new_columns(group, first_row, num_rows)

        with pytest.raises(ConflictError, match="changed since it was listed"):
            add_columns(store, file, store, "b.parquet", columns)
        assert [info.path for info in list_objects(store)] == ["a.parquet"]


def test_the_source_cannot_be_the_target(folder):
    file = put(folder, "a.parquet", grouped(5))
    with pytest.raises(InputError, match="is the source itself"):
        add_columns(folder, file, folder, "a.parquet", new_columns)
    assert read_bytes(folder, "a.parquet") == grouped(5)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EIO])
def test_local_files_are_copied_by_hand_where_the_kernel_does_not(folder, monkeypatch, number):
    real = os.copy_file_range

    def limited(source, target, count, start, end):
        if start:
            raise OSError(number, "not here")
        return real(source, target, min(count, 1000), start, end)

    monkeypatch.setattr(os, "copy_file_range", limited)
    if number == errno.EXDEV:
        check_contents(LARGE, spliced(folder, LARGE))
    else:
        refused(folder, LARGE, ConnectorError, "not here")


async def do_nothing(*_):
    pass


class CountingS3(S3FileSystem):
    """Notes the requests it makes and the bytes it sends; fails at the `k`-th, before or after the server did it.

    `before` is told the method of each of them first.
    """

    cachable = False

    def __init__(self, k=0, after=False, not_offered=False, before=do_nothing, **options):
        super().__init__(**options)
        self.k, self.after, self.not_offered, self.before = k, after, not_offered, before
        self.requests, self.num_sent = [], 0

    async def _call_s3(self, method, *arguments, **kwargs):
        await self.before(method)
        self.requests.append(method)
        if self.not_offered and method == "upload_part_copy":
            raise OSError(errno.ENOSYS, "not implemented")
        fails = len(self.requests) == self.k
        if fails and not self.after:
            raise OSError(errno.EIO, "the request was lost")
        self.num_sent += len(kwargs.get("Body", b""))
        answer = await super()._call_s3(method, *arguments, **kwargs)
        if fails:
            raise OSError(errno.EIO, "the answer was lost")
        return answer

    def call_s3(self, method, *arguments, **kwargs):
        return sync(self.loop, self._call_s3, method, *arguments, **kwargs)


def counting(place, **faults):
    store = place.store()
    return Store(store.url, store.path, CountingS3(**faults, **place.options, use_listings_cache=False))


def unfinished_uploads(place):
    fs = place.store().fs
    bucket, key, _ = fs.split_path(place.store().path)
    return fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", [])


def test_s3_copies_the_old_bytes_itself_part_by_part(s3_place, monkeypatch):
    monkeypatch.setattr(_s3_extend, "_COPY_PART_BYTES", 5 * 1024 * 1024 + 7)
    large = arrow(pa.table({"text": [os.urandom(3500).hex() for _ in range(1600)]}), compression="none")
    file = put(s3_place.store(), "a.parquet", large)
    store = counting(s3_place)
    added = add_columns(store, file, store, "b.parquet", new_columns)
    assert added.rewritten_because is None
    assert store.fs.requests.count("upload_part_copy") == 2
    assert store.fs.num_sent < len(large) / 100
    assert read_bytes(store, "b.parquet")[: footer_start(large)] == large[: footer_start(large)]
    check_contents(large, read_bytes(store, "b.parquet"))
    assert unfinished_uploads(s3_place) == []


def test_a_source_that_is_another_while_s3_copies_it_is_a_conflict_and_nothing_appears(s3_place):
    """It is as it was listed before and after, so that the service alone can tell."""
    other = s3_place.store()
    file = put(other, "a.parquet", LARGE)

    async def replace(method):
        if method == "upload_part_copy":
            await other.fs._pipe_file(other.full_path("a.parquet"), LARGE[::-1])

    def columns(group, first_row, num_rows):
        if group == 1:
            write_object(other, "a.parquet", LARGE)
        return new_columns(group, first_row, num_rows)

    store = counting(s3_place, before=replace)
    with pytest.raises(ConflictError, match=r"a\.parquet has changed since it was listed"):
        add_columns(store, file, store, "b.parquet", columns)
    assert [info.path for info in list_objects(other)] == ["a.parquet"]
    assert unfinished_uploads(s3_place) == []


def test_many_new_bytes_go_up_in_parts(s3_place, monkeypatch):
    monkeypatch.setattr(_s3_extend, "_NEW_PART_BYTES", 5 * 1024 * 1024)
    store = counting(s3_place)

    def columns(group, first_row, num_rows):
        return pa.table({"large": [os.urandom(4500).hex() for _ in range(num_rows)]})

    add_columns(store, put(store, "a.parquet", LARGE), store, "b.parquet", columns)
    assert store.fs.requests.count("upload_part") == 2
    assert pq.read_table(io.BytesIO(read_bytes(store, "b.parquet")))["large"].combine_chunks().nbytes > 7_000_000


def test_where_s3_does_not_copy_the_bytes_pass_through(s3_place):
    store = counting(s3_place, not_offered=True)
    check_contents(LARGE, spliced(store, LARGE))
    assert unfinished_uploads(s3_place) == []


class CountingGCS:
    """Adds up the bytes that a filesystem of gcsfs sends, and may let something happen before objects are joined."""

    def __init__(self, fs, before_join):
        self.num_sent, self.joined = 0, []
        real = fs._call

        async def call(method, path, *arguments, **kwargs):
            data = kwargs.get("data") or b""
            self.num_sent += len(data.getbuffer() if isinstance(data, io.BytesIO) else data)
            if path.endswith("/compose"):
                self.joined.append(kwargs["json"]["sourceObjects"])
                await before_join(fs)
            return await real(method, path, *arguments, **kwargs)

        fs._call = call
        fs.call = lambda *arguments, **kwargs: sync(fs.loop, call, *arguments, **kwargs)


def counting_gcs(place, before_join=do_nothing):
    store = open_store(place.url, {**place.options, "skip_instance_cache": True})
    return store, CountingGCS(store.fs, before_join)


def test_gcs_joins_the_old_object_and_the_new_columns_itself(gcs_place):
    file = put(gcs_place.store(), "a.parquet", LARGE)
    store, counted = counting_gcs(gcs_place)
    added = add_columns(store, file, store, "new/b.parquet", new_columns)
    assert added.rewritten_because is None
    ((first, _),) = counted.joined
    generation = store.fs.info(store.full_path("a.parquet"))["generation"]
    # fake-gcs-server ignores it
    assert first["objectPreconditions"] == {"ifGenerationMatch": generation}
    assert first["generation"] == generation
    assert 0 < counted.num_sent < len(LARGE) / 100
    assert read_bytes(store, "new/b.parquet")[: len(LARGE)] == LARGE
    check_contents(LARGE, read_bytes(store, "new/b.parquet"))
    assert [info.path for info in list_objects(store)] == ["a.parquet", "new/b.parquet"]


@pytest.mark.slow  # gcsfs tries half a minute when fake-gcs-server answers with 500
def test_a_source_that_goes_before_gcs_joins_it_is_a_conflict_and_nothing_appears(gcs_place):
    file = put(gcs_place.store(), "a.parquet", LARGE)

    async def remove(fs):
        await fs._rm_file(gcs_place.store().full_path("a.parquet"))

    store, _ = counting_gcs(gcs_place, remove)
    with pytest.raises(ConflictError, match=r"a\.parquet has changed since it was listed"):
        add_columns(store, file, store, "b.parquet", new_columns)
    assert list_objects(store) == []


def test_between_storages_the_bytes_pass_through(s3_place, folder):
    for source, target in [(folder, s3_place.store()), (s3_place.store(), folder)]:
        file = put(source, "a.parquet", LARGE)
        assert add_columns(source, file, target, "c.parquet", new_columns).rewritten_because is None
        check_contents(LARGE, read_bytes(target, "c.parquet"))


@pytest.mark.parametrize(
    "after", [pytest.param(False, id="before", marks=pytest.mark.slow), pytest.param(True, id="after")]
)
def test_a_failed_request_leaves_the_whole_object_or_none_and_no_upload(s3_place, after):
    file = put(s3_place.store(), "a.parquet", LARGE)
    k, failures = 0, 0
    while True:
        k += 1
        store = counting(s3_place, k=k, after=after)
        path = f"{k}.parquet"
        try:
            add_columns(store, file, store, path, new_columns)
        except ConnectorError:
            failures += 1
            there = [info.path for info in list_objects(s3_place.store())]
            if path in there:
                check_contents(LARGE, read_bytes(s3_place.store(), path))
        if len(store.fs.requests) < k:
            break
    assert failures >= 6
    # An upload whose number never reached the client cannot be aborted by it.
    assert len(unfinished_uploads(s3_place)) == (1 if after else 0)
