"""Views over the lake's rows and over published copies of them."""

import secrets

import aiohttp
import pyarrow as pa
import pytest
import xxhash

from connectors import duck
from connectors.errors import ConflictError, UnsupportedError
from connectors.plain import list_parquet
from connectors.store import open_store


def content_id(domain, text):
    return xxhash.xxh3_128_hexdigest(f"{domain}\0{text}".encode())


def ingest(connection, url, options=None, **settings):
    return duck.ingest(connection, list_parquet(url, options), **{"text": "text", "domain": "source"} | settings)


def rows_of(connection, columns="*", view="lake_rows"):
    return connection.execute(f"SELECT {columns} FROM {view} ORDER BY ALL").fetchall()


def view(connection, url, options=None, **columns):
    columns = {"text": "text", "domain": "source"} | columns
    ingest(connection, url, options, **columns)
    duck.create_samples_view(connection, list_parquet(url, options), **columns)


def test_the_view_joins_text_and_index_on_every_store(place, connection, put):
    put(
        place.url,
        "lang=en/[a] 'b'?.parquet",
        place.options,
        text=["a", "b", "a"],
        source=["x", "y", "x"],
        row_group_size=2,
    )
    put(place.url, "lang=de/ü.parquet", place.options, text=["c"], source=["x"])
    view(connection, place.url, place.options)
    base = content_id("x", "a")
    assert rows_of(connection, "text, sample_id, domain, source, lang, row") == [
        ("a", base, "x", "x", "en", 0),
        ("a", f"{base}-2", "x", "x", "en", 2),
        ("b", content_id("y", "b"), "y", "y", "en", 1),
        ("c", content_id("x", "c"), "x", "x", "de", 0),
    ]


def test_every_row_meets_its_own_index_entry(url, connection, put):
    for name in ("c", "a", "b"):
        texts = [f"{name}{i}" for i in range(3000)]
        put(url, f"{name}.parquet", text=texts, source=["x"] * 3000, row_group_size=1000)
    view(connection, url)
    put(url, "a.parquet", text=["a-new"] * 2500, source=["x"] * 2500)
    view(connection, url)
    texts, ids = zip(*rows_of(connection, "text, left(sample_id, 32)"), strict=True)
    assert len(texts) == 8500
    assert all(content_id("x", text) == sample_id for text, sample_id in zip(texts, ids, strict=True))


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ({"domain": ["x"]}, {"domain": "domain"}, {"domain": "x"}),
        ({"domain": ["o"], "source": ["x"]}, {}, {"domain": "x", "source": "x", "original_domain": "o"}),
        ({"sample_id": ["k"], "source": ["x"]}, {"key": "sample_id"}, {"sample_id": "k"}),
        ({"sample_id": ["k"], "source": ["x"]}, {}, {"original_sample_id": "k"}),
        (
            {"row": [9], "file_id": [8], "usable": [7], "source": ["x"]},
            {},
            {"original_row": 9, "row": 0, "original_usable": 7},
        ),
        (
            {"domain": ["o"], "original_domain": ["oo"], "source": ["x"]},
            {},
            {"domain": "x", "original_domain": "oo", "original_original_domain": "o"},
        ),
        ({"DOMAIN": ["o"], "source": ["x"]}, {}, {"domain": "x", "original_DOMAIN": "o"}),
        ({'we"ird; --': [1], "source": ["x"]}, {}, {'we"ird; --': 1}),
    ],
)
def test_columns_named_like_the_index_appear_as_original(url, connection, source, settings, expected, put):
    put(url, "a.parquet", text=["a"], **source)
    view(connection, url, **settings)
    relation = connection.execute("SELECT * FROM lake_rows")
    names = [column[0] for column in relation.description]
    assert len({name.casefold() for name in names}) == len(names)
    found = dict(zip(names, relation.fetchone(), strict=True))
    assert {name: found[name] for name in expected} == expected


def test_files_with_other_columns_are_read_by_name(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"], n=[1])
    put(url, "b.parquet", extra=["e"], source=["y"], text=["b"])
    put(url, "c.parquet", text=["c"], source=["y"], n=pa.nulls(1))
    view(connection, url)
    assert rows_of(connection, "text, domain, n, extra") == [
        ("a", "x", 1, None),
        ("b", "y", None, "e"),
        ("c", "y", None, None),
    ]


def test_a_column_that_duckdb_needs_is_refused(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"], File_Row_Number=[1])
    with pytest.raises(UnsupportedError, match="'file_row_number', which DuckDB needs"):
        view(connection, url)


def test_a_view_of_files_that_were_not_ingested_is_a_conflict(url, connection, put):
    put(url, "a.parquet", text=["a"], source=["x"])
    ingest(connection, url)
    put(url, "b.parquet", text=["b"], source=["x"])
    with pytest.raises(ConflictError, match=r"not as they were ingested, first b\.parquet"):
        duck.create_samples_view(connection, list_parquet(url), text="text", domain="source")


def test_published_copies_are_joined_by_file_and_row(place, connection, put):
    for name in ("a", "b"):
        put(place.url, f"{name}.parquet", place.options, text=[f"{name}0", f"{name}1"], source=["x", "x"])
        put(f"{place.url}/_curator", f"v1/{name}.parquet", place.options, weight=[1.0 if name == "a" else 2.0, 3.0])
    ingest(connection, place.url, place.options)
    destination = open_store(f"{place.url}/_curator", place.options)
    published = {f"{name}.parquet": f"v1/{name}.parquet" for name in ("b", "a")}
    duck.create_published_view(connection, "published", destination, published, ["weight"])
    query = "SELECT path, row, weight FROM published JOIN files USING (file_id) ORDER BY ALL"
    assert connection.execute(query).fetchall() == [
        ("a.parquet", 0, 1.0),
        ("a.parquet", 1, 3.0),
        ("b.parquet", 0, 2.0),
        ("b.parquet", 1, 3.0),
    ]


def test_the_view_works_on_a_read_only_connection(tmp_path, put):
    lake = str(tmp_path / "lake")
    put(lake, "a.parquet", text=["a"], source=["x"])
    with duck.connect(tmp_path / "catalog.duckdb") as connection:
        ingest(connection, lake)
    with duck.connect(tmp_path / "catalog.duckdb", read_only=True) as connection:
        duck.create_samples_view(connection, list_parquet(lake), text="text", domain="source")
        assert rows_of(connection, "text, domain") == [("a", "x")]


@pytest.fixture
def fetched(monkeypatch):
    """Bytes of every Parquet object's part, or of what is said about it, that this process is answered with."""
    sizes = []
    request = aiohttp.ClientSession._request

    async def counted(self, method, url, **named):
        answer = await request(self, method, url, **named)
        if method == "GET" and ".parquet" in str(url):
            sizes.append(int(answer.headers["Content-Length"]))
        return answer

    monkeypatch.setattr(aiohttp.ClientSession, "_request", counted)
    return sizes


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_narrow_column_does_not_fetch_the_wide_one(kind, request, fetched, connection, put):
    place = request.getfixturevalue(f"{kind}_place")
    texts = [secrets.token_hex(4000) for _ in range(1000)]
    put(place.url, "a.parquet", place.options, text=texts, n=range(1000), row_group_size=200)
    corpus = list_parquet(place.url, place.options)
    duck.register_store(connection, corpus.store)
    path = duck.duck_path(corpus.store, "a.parquet")
    fetched.clear()
    query = "SELECT sum(n * n) FROM read_parquet(?)"
    assert connection.execute(query, [[path]]).fetchone() == (sum(n * n for n in range(1000)),)
    assert 4 * 1000 < sum(fetched) < corpus.size_bytes / 100
    with corpus.store.fs.open(corpus.store.full_path("a.parquet")) as opened:
        assert opened.cache.name == "none"
