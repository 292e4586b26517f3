"""A store that fails, does not answer or does things twice, at any request of a publication."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from storage_faults import requests_of
from store_cases import NEW, OLD, Template, check_after_failure, open_copy, template_of, two_files

from connectors.store import open_store
from curator.errors import StorageError, TryAgainError

STORES = ("s3", "gcs", "azure")
SAMPLED = 47
"""Step of the requests that are tried without `slow`; a publication is 57 to 90 of them, by store."""


@pytest.fixture
def published(learned):
    """`published(place)` is what makes copies of a lake with a version of the run OLD; NEW is not published yet."""

    def made(place):
        url = template_of(open_store(str(two_files(learned, OLD, NEW)))).copy_to(f"{place.url}/0/lake", place.options)
        with open_copy(url, place.options) as lake:
            assert lake.publish(OLD).version == 1
        return template_of(open_store(url, place.options))

    return made


def publish(template: Template, place, name, **faults):
    """Publish NEW in a copy of the lake; (whether it made a version, or what was said instead, requests, address).

    Args:
        **faults: fields of `storage_faults.Requests`.
    """
    url = template.copy_to(f"{place.url}/{name}/lake", place.options)
    with requests_of(url.partition("://")[0]) as requests:
        vars(requests).update(faults)  # before the lake is opened, which asks for something, too
        try:
            with open_copy(url, place.options) as lake:
                made = lake.publish(NEW).created
        except (StorageError, TryAgainError) as error:
            made = error
    return made, requests, url


def check_every(template, place, numbers, kind, which="befalls_writes"):
    """The requests of these numbers, each in a publication of its own: (whether it said that it had made the version,
    whether the version was there) after each."""
    seen = []
    for number in numbers:
        made, _, url = publish(template, place, f"{kind}-{number}", **{which: {number: kind}})
        seen.append((made is True, check_after_failure(url, place.options)))
        assert seen[-1] != (True, False), number
    return seen


@pytest.mark.parametrize("kind", ["fails", "lost"])
def test_a_write_that_fails_or_is_not_answered_leaves_the_old_version_or_the_new(published, s3_place, kind):
    template = published(s3_place)
    made, requests, _ = publish(template, s3_place, "undisturbed")
    assert made is True
    last = len(requests.writes)
    assert [requests.names[number - 1].split()[0] for number in requests.writes[-3:]] == [
        "complete_multipart_upload",
        "put_object",
        "put_object",
    ]
    # the probe (found there, it has shown what it is for), a copy, the manifest, and the entry, which is tried again
    seen = check_every(template, s3_place, (1, last - 2, last - 1, last), kind)
    assert [there for _, there in seen] == [kind == "lost", False, False, True]


@pytest.mark.parametrize("place", STORES, indirect=True)
@pytest.mark.parametrize("kind", ["fails", "lost"])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), SAMPLED])
def test_any_request_that_fails_or_is_not_answered_leaves_the_old_version_or_the_new(published, place, kind, step):
    template = published(place)
    _, requests, _ = publish(template, place, "undisturbed")
    last = len(requests.names)
    assert last > 50
    seen = check_every(template, place, range(step, last + 2, step), kind, "befalls")
    early = seen[: len(seen) // 2]  # before the commit: what was not told is not there; clients hide some failures
    assert all(told == there for told, there in early)
    if step == 1:
        assert sum(told for told, _ in early) < len(early) / 2
        assert seen[-1] == (True, True)


@pytest.mark.parametrize("place", ["gcs", "azure"], indirect=True)
def test_what_other_clouds_do_not_write_or_do_not_answer_leaves_the_old_version_or_the_new(published, place):
    template = published(place)
    made, requests, _ = publish(template, place, "undisturbed")
    assert made is True
    last = len(requests.writes)
    for kind, numbers in (("fails", (last - 2, last)), ("lost", (last - 1, last))):
        assert [there for _, there in check_every(template, place, numbers, kind)] == [False, True]


# Google's answer to the last part of an upload that is complete is its success; that of its stand-in is that there is
# no such upload.
@pytest.mark.parametrize(
    ("place", "twice"), [("s3", ""), ("gcs", "^(?!.*uploadType=resumable)"), ("azure", "")], indirect=["place"]
)
def test_a_store_that_does_every_write_twice_gets_one_version(published, place, twice):
    made, requests, url = publish(published(place), place, "twice", twice=re.compile(twice))
    assert made is True, made
    assert len(requests.writes) > 7
    assert check_after_failure(url, place.options)


@pytest.mark.parametrize("place", STORES, indirect=True)
@pytest.mark.parametrize(
    ("step", "kinds"),
    [
        pytest.param(1, ["exits before"], marks=pytest.mark.slow),
        pytest.param(1, ["exits after"], marks=pytest.mark.slow),
        (SAMPLED, ["exits before", "exits after"]),
    ],
)
def test_a_publication_killed_at_any_request_leaves_the_old_version_or_the_new(published, place, kinds, step):
    url = published(place).copy_to(f"{place.url}/template", place.options)
    program = [sys.executable, str(Path(__file__).with_name("store_crash_points.py"))]
    done = subprocess.run(
        [*program, url, json.dumps(place.options), str(step), *kinds],
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert int(done.stdout) >= len(kinds) * (55 // step)
