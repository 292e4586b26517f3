"""Other processes of the tests of Iceberg tables: a writer that appends, publishers that race, a publisher that dies.

python iceberg_writer.py append URL OPTIONS NUM_ROWS
python iceberg_writer.py publish URL OPTIONS RUN_ID [before|after]
"""

import json
import os
import sys

import pyarrow as pa
from table_cases import COLUMNS, publish

from connectors import _iceberg_catalog as catalog
from connectors import _iceberg_table as iceberg
from connectors.connector import lake_place, open_connector
from connectors.store import substore


def connect(url, options):
    destination = substore(lake_place(url, options)[0], "_curator")
    return open_connector(url, options, destination=destination, columns=tuple(COLUMNS.names))


def load(url, options):
    """The table, as pyiceberg gives it."""
    address = catalog.parse_address(url)
    return catalog.open_table(address, catalog.catalog_properties(address, options))


def die(when):
    """End the process, as a kill does, right before or after the table's commit."""
    commit = iceberg.replace_files

    def commit_and_die(*arguments):
        if when == "after":
            commit(*arguments)
        os._exit(9)

    iceberg.replace_files = commit_and_die


def append(url, options, num_rows):
    for number in range(num_rows):
        load(url, options).append(pa.table({"text": [f"appended {number}"], "domain": ["x"]}))
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
