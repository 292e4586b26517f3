"""An ingest from a store that fails, does not answer or does things twice, or that is killed, at any request."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ingest_crash_points import ingest, look, rows
from storage_faults import requests_of

from connectors.errors import ConnectorError

STORES = ("s3", "gcs", "azure")


@pytest.fixture
def catalogs(place, tmp_path, put):
    """A folder with `old.duckdb`, the catalog of the lake at `place` before a file changed and another came."""
    put(place.url, "a.parquet", place.options, text=["a"], source=["x"])
    put(place.url, "b.parquet", place.options, text=["b"], source=["x"])
    ingest(tmp_path / "old.duckdb", place.url, place.options)
    put(place.url, "a.parquet", place.options, text=["changed", "b"], source=["x", "x"])
    put(place.url, "c.parquet", place.options, text=["c"], source=["x"])
    return tmp_path


def attempt(catalogs, place, name, befalls=None):
    """Ingest into a copy of the old catalog; (the catalog, what was said if it failed, the requests)."""
    path = Path(shutil.copyfile(catalogs / "old.duckdb", catalogs / f"{name}.duckdb"))
    said = None
    with requests_of(place.url.partition("://")[0]) as requests:
        requests.befalls = befalls or {}
        try:
            ingest(path, place.url, place.options)
        except ConnectorError as error:
            said = str(error)
    return path, said, requests


@pytest.mark.parametrize("place", STORES, indirect=True)
@pytest.mark.parametrize("kind", ["fails", "lost", "twice"])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_request_that_goes_wrong_leaves_the_old_index_and_a_sentence_or_is_hidden(catalogs, place, kind, step):
    """An ingest only reads: whatever fails, the index is the old one, and the same call again makes it the new one."""
    new, _, requests = attempt(catalogs, place, "new")
    assert rows(new) != rows(catalogs / "old.duckdb")
    refused = []
    for number in range(step, len(requests.names) + 1, step):
        path, said, _ = attempt(catalogs, place, f"{kind}-{number}", {number: kind})
        assert rows(path) == rows(catalogs / "old.duckdb" if said else new), number
        look(path, catalogs, place.url, place.options)
        refused += [said] if said else []
    if kind == "twice":
        assert refused == []
    else:
        assert refused
        assert all(re.fullmatch(r"cannot (list|read) \S+: .*; try again, .*", said) for said in refused), refused


@pytest.mark.parametrize("place", STORES, indirect=True)
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_an_ingest_killed_at_any_request_leaves_the_old_index_or_the_new(catalogs, place, step):
    """Before and after it was carried out; the next one completes what was begun."""
    command = [sys.executable, str(Path(__file__).with_name("ingest_crash_points.py")), str(catalogs), place.url]
    ended = subprocess.run([*command, json.dumps(place.options), str(step)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout) >= 2 * (9 // step)  # a listing, three footers and two files, some by more than one request
