"""Kill processes that publish on an object store before or after their requests, and look at what is left.

Run as a program: `python store_crash_points.py TEMPLATE OPTIONS STEP KIND...`. Every attempt is a forked process that
publishes in a copy of the lake at TEMPLATE and is gone at its k-th request, before or after the server did it (KIND:
"exits before", "exits after"); of the ks every STEP-th. What holds afterwards is checked in another process. Prints how
many died.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from storage_faults import EXITED, in_child, requests_of
from store_cases import NEW, check_after_failure, open_copy, template_of

import curator.publish  # noqa: F401  # once here rather than in every child
from connectors.store import open_store


def checked(status: int, where: str) -> bool:
    """Whether a child died as it was told to; any other failure of it ends this program."""
    if status not in (0, EXITED):
        sys.exit(f"{where}: {status}")
    return status == EXITED


def publish_in_copy(template: str, url: str, options: dict[str, Any], k: int, kind: Any) -> None:
    template_of(open_store(template, options)).copy_to(url, options)
    with requests_of(url.partition("://")[0]) as requests:
        requests.befalls = {k: kind}  # before the lake is opened, which asks for something, too
        with open_copy(url, options) as lake:
            assert lake.publish(NEW).created


def num_killed(template: str, options: dict[str, Any], step: int, kind: Any) -> int:
    """Every attempt up to the one that is over before its k-th request."""
    for k in itertools.count(step, step):
        url = f"{template}-{kind.replace(' ', '-')}-{k}/lake"

        def attempt(url: str = url, k: int = k) -> None:
            publish_in_copy(template, url, options, k, kind)

        def look(url: str = url) -> None:
            check_after_failure(url, options)

        if not checked(in_child(attempt), f"{kind} request {k}"):
            return k // step - 1
        if checked(in_child(look), f"after the process that {kind} request {k}"):
            sys.exit("the process that looks has died")
    raise AssertionError("no end of requests")


if __name__ == "__main__":
    lake, given, every, *kinds = sys.argv[1:]
    print(sum(num_killed(lake, json.loads(given), int(every), kind) for kind in kinds))
