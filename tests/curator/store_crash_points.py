"""Kill processes that publish on S3 before and after their requests, and look at what is left.

Run as a program: `python store_crash_points.py TEMPLATE OPTIONS STEP`. Every attempt is a forked process that publishes
in a copy of the lake at TEMPLATE and is gone at its k-th request, before or after the server did it; of the ks every
STEP-th. What holds afterwards is checked in another process. Prints how many died.
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
    with requests_of("s3") as requests, open_copy(url, options) as lake:
        requests.befalls = {k: kind}
        assert lake.publish(NEW).created


def main(template: str, options: dict[str, Any], step: int) -> None:
    num_killed = 0
    for kind in ("exits before", "exits after"):
        for k in itertools.count(step, step):
            url = f"{template}-{kind.replace(' ', '-')}-{k}/lake"

            def attempt(url: str = url, k: int = k, kind: Any = kind) -> None:
                publish_in_copy(template, url, options, k, kind)

            def look(url: str = url) -> None:
                check_after_failure(url, options)

            died = checked(in_child(attempt), f"{kind} request {k}")
            if checked(in_child(look), f"after the process that {kind} request {k}"):
                sys.exit("the process that looks has died")
            num_killed += died
            if not died:
                break
    print(num_killed)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
