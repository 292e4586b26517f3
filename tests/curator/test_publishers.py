"""Processes that publish at the same time: every version is there, once, and nothing else is left."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from store_cases import NUM_ROWS, check_no_orphans, open_copy, template_of, two_files, weights_seen

from connectors.store import open_store

RUN_IDS = tuple(f"2026010{number}T000000-{number:06}" for number in range(1, 7))


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_six_processes_that_publish_at_once_make_six_versions(learned, place):
    """Each has another run; they share one folder for the catalog, as processes of one machine do."""
    url = template_of(open_store(str(two_files(learned, *RUN_IDS)))).copy_to(f"{place.url}/lake", place.options)
    program = [sys.executable, str(Path(__file__).with_name("publishers.py"))]
    done = subprocess.run(
        [*program, url, json.dumps(place.options), *RUN_IDS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    with open_copy(url, place.options) as lake:
        lake.ingest()
        history = lake.history()
        assert [version.version for version in history] == [1, 2, 3, 4, 5, 6]
        assert Counter(version.run_id for version in history) == Counter(RUN_IDS)
        assert {(run_id, number) for run_id, number, _, _ in answers} == {(v.run_id, v.version) for v in history}
        assert all(created for _, _, created, _ in answers)
        assert weights_seen(lake) == (NUM_ROWS, NUM_ROWS, history[-1].run_id, 1)
        check_no_orphans(lake)
        assert all(lake.verify(number).is_sound for number in range(1, 7))
