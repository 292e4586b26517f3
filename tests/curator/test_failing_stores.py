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
    with requests_of(url.partition("://")[0]) as requests, open_copy(url, place.options) as lake:
        vars(requests).update(faults)
        try:
            made = lake.publish(NEW).created
        except (StorageError, TryAgainError) as error:
            made = error
    return made, requests, url


def check_every(template, place, numbers, kind, which="befalls_writes"):
    """The requests of these numbers, each in a publication of its own; whether the version was there after each."""
    seen = []
    for number in numbers:
        made, _, url = publish(template, place, f"{kind}-{number}", **{which: {number: kind}})
        seen.append(check_after_failure(url, place.options))
        assert seen[-1] >= (made is True), number
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
    assert seen == [kind == "lost", False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fails", "lost"])
def test_any_request_that_fails_or_is_not_answered_leaves_the_old_version_or_the_new(published, s3_place, kind):
    template = published(s3_place)
    _, requests, _ = publish(template, s3_place, "undisturbed")
    last = len(requests.names)
    assert last > 50
    seen = check_every(template, s3_place, range(1, last + 2), kind, "befalls")
    assert seen[-1]
    assert not any(seen[: last // 2])


@pytest.mark.parametrize("place", ["gcs", "azure"], indirect=True)
def test_what_other_clouds_do_not_write_or_do_not_answer_leaves_the_old_version_or_the_new(published, place):
    template = published(place)
    made, requests, _ = publish(template, place, "undisturbed")
    assert made is True
    last = len(requests.writes)
    assert check_every(template, place, (last - 2, last), "fails") == [False, True]
    assert check_every(template, place, (last - 1, last), "lost") == [False, True]


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


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 29])
def test_a_publication_killed_at_any_request_leaves_the_old_version_or_the_new(published, s3_place, step):
    url = published(s3_place).copy_to(f"{s3_place.url}/template", s3_place.options)
    program = [sys.executable, str(Path(__file__).with_name("store_crash_points.py"))]
    done = subprocess.run(
        [*program, url, json.dumps(s3_place.options), str(step)],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert int(done.stdout) >= 2 * 55 // step
