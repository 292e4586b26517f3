"""Publications into tables on S3 whose requests fail, are not answered, come twice or end the process, at any request.

Counted and disturbed by a proxy, so that requests of deltalake (Rust) and of Arrow (C++) are among them, the commit of
a Delta table, too. Iceberg's is one of its SQL catalog, which is disturbed at that call.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("table_crash_points.py")
LIBRARIES = {"delta": "deltalake", "iceberg": "pyiceberg"}
KINDS = ["exits before", "exits after", "refused", "lost", "twice"]


@pytest.fixture(params=["delta", "iceberg"])
def disturbed(request, s3_place, tmp_path):
    """`disturbed(step, *kinds)` publishes once for every `step`th request; how many of them there were."""
    pytest.importorskip(LIBRARIES[request.param], reason=f"needs the extra [{request.param}]")

    def run(step, *kinds):
        command = [sys.executable, str(PROGRAM), request.param, str(tmp_path), s3_place.url]
        command += [json.dumps(s3_place.options), str(step), *kinds]
        done = subprocess.run(command, capture_output=True, text=True, timeout=590, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return int(done.stdout)

    run.format_name = request.param
    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_request_of_a_publication_leaves_the_old_snapshot_or_the_new(disturbed, kind):
    assert disturbed(1, kind) > 30


def test_some_requests_of_a_publication_leave_the_old_snapshot_or_the_new(disturbed):
    assert disturbed(40, "exits before", "lost") >= 2


def test_a_commit_of_the_catalog_leaves_the_old_snapshot_or_the_new(disturbed):
    if disturbed.format_name != "iceberg":
        pytest.skip("a Delta table's commit is a request to the storage")
    kinds = [f"catalog:{kind}" for kind in KINDS if kind != "twice"]
    assert disturbed(1, *kinds) == len(kinds)
