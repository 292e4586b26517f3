"""Other processes of the tests of tables: a writer that appends, publishers that race, a publisher that dies.

python table_writer.py append URL OPTIONS NUM_ROWS
python table_writer.py publish URL OPTIONS RUN_ID [before|after]
"""

import json
import os
import sys

import pyarrow as pa
from table_cases import case_class, connect, publish


def die(module, when):
    """End the process, as a kill does, right before or after the table's commit."""
    commit = module.replace_files

    def commit_and_die(*arguments):
        if when == "after":
            commit(*arguments)
        os._exit(9)

    module.replace_files = commit_and_die


def main():
    task, url, options, given, *when = sys.argv[1:]
    options = json.loads(options)
    table_class = case_class(url.partition(":")[0])
    if task == "append":
        for number in range(int(given)):
            table_class.append_to(url, options, pa.table({"text": [f"appended {number}"], "domain": ["x"]}))
            print(number, flush=True)
        return
    if when:
        die(table_class.module, when[0])
    version = publish(connect(url, options), given)
    print(version.number, version.created)


if __name__ == "__main__":
    main()
