"""One of several processes that commit to the same log at the same time; run by test_commit.py.

Arguments: address, storage_options as JSON, this process's name, its keys as JSON. Prints what `commit` answered.
"""

import json
import sys

from connectors.commit import commit
from connectors.manifest import Manifest
from connectors.store import open_store


def main(url: str, options: str, name: str, keys: str) -> None:
    store = open_store(url, json.loads(options))
    print("ready", flush=True)
    sys.stdin.readline()
    answers = {}
    for key in json.loads(keys):
        manifest = Manifest(run_id=key, snapshot_id=name, columns=(), files=())
        version = commit(store, manifest, idempotency_key=key)
        answers[key] = (version.number, version.created)
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
