"""Manifests as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import CorruptFileError
from connectors.manifest import Manifest, PublishedFile, manifest_from_json, manifest_to_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FILES = st.builds(
    PublishedFile,
    source_path=st.text(),
    source_size_bytes=st.integers(),
    source_version=st.text(),
    published_path=st.text(),
    size_bytes=st.integers(),
    num_rows=st.integers(),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Manifest,
        run_id=TEXT,
        snapshot_id=TEXT,
        columns=st.lists(TEXT, max_size=3).map(tuple),
        files=st.lists(FILES, max_size=3).map(tuple),
        extra=st.dictionaries(st.text(), JSON, max_size=3),
    )
)
def test_manifests_survive_json(each):
    data = manifest_to_json(each)
    assert manifest_from_json(data, "here") == each
    assert manifest_to_json(manifest_from_json(data, "here")) == data


EXAMPLE = Manifest(run_id="run", snapshot_id="snapshot", columns=("w",), files=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": 3}, "lacks the list of files"),
        ({"columns": [1]}, "lacks the list of files or of columns"),
        ({"files": [{"source_path": "x"}]}, "not a PublishedFile"),
        ({"files": [3]}, "not a PublishedFile: missing or unknown entry 'int'"),
        ({"run_id": 3}, "entry 'run_id' of a Manifest is 3"),
        ({"surprise": 1}, "missing or unknown entry 'surprise'"),
    ],
)
def test_a_manifest_of_another_form_is_named(change, message):
    data = json.dumps(json.loads(manifest_to_json(EXAMPLE)) | change).encode()
    with pytest.raises(CorruptFileError, match=f"here.*{message}"):
        manifest_from_json(data, "here")
