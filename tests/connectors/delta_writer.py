"""Other processes of the tests of Delta tables: a writer that appends, publishers that race, a publisher that dies.

python delta_writer.py append URL OPTIONS NUM_ROWS
python delta_writer.py publish URL OPTIONS RUN_ID [before|after]
"""

import json
import os
import sys

import deltalake
import pyarrow as pa
from table_cases import COLUMNS, publish

from connectors import _delta_log
from connectors.connector import open_connector
from connectors.store import open_store, substore


def connect(url, options):
    destination = substore(open_store(url, options), "_curator")
    return open_connector(f"delta:{url}", options, destination=destination, columns=tuple(COLUMNS.names))


def die(when):
    """End the process, as a kill does, right before or after the table's commit."""
    commit = _delta_log.replace_files

    def commit_and_die(*arguments):
        if when == "after":
            commit(*arguments)
        os._exit(9)

    _delta_log.replace_files = commit_and_die


def append(url, options, num_rows):
    storage = _delta_log.delta_options(open_store(url, options))
    for number in range(num_rows):
        rows = pa.table({"text": [f"appended {number}"], "domain": ["x"]})
        deltalake.write_deltalake(url, rows, mode="append", schema_mode="merge", storage_options=storage or None)
        print(number, flush=True)


def main():
    task, url, options, given, *when = sys.argv[1:]
    if task == "append":
        append(url, json.loads(options), int(given))
        return
    if when:
        die(when[0])
    version = publish(connect(url, json.loads(options)), given)
    print(version.number, version.created)


if __name__ == "__main__":
    main()
