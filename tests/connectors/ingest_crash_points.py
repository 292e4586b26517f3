"""Kill processes that ingest from an object store before and after their requests, and look at what is left.

Run as a program: `python ingest_crash_points.py FOLDER URL OPTIONS STEP`. FOLDER has `old.duckdb`, the catalog of the
lake before a file changed and another came. Every attempt is a forked process that ingests into a copy of it and is
gone at its k-th request; of the ks every STEP-th. Prints how many died. Tests also import what is checked.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from storage_faults import EXITED, in_child, requests_of

from connectors import duck
from connectors.plain import list_parquet


def ingest(path: Path, url: str, options: dict[str, Any]) -> duck.IngestReport:
    with duck.writing(path) as connection:
        return duck.ingest(connection, list_parquet(url, options), text="text", domain="source")


def rows(path: Path) -> list[Any]:
    """Of the index, by content."""
    with duck.connect(path, read_only=True) as connection:
        query = "SELECT path, row, sample_id FROM sample_index JOIN files USING (file_id) ORDER BY ALL"
        return connection.execute(query).fetchall()


def look(path: Path, folder: Path, url: str, options: dict[str, Any]) -> None:
    """The catalog is the old one or the new one, and ingesting again makes it the new one, once."""
    old, new = rows(folder / "old.duckdb"), rows(folder / "new.duckdb")
    assert rows(path) in (old, new)
    ingest(path, url, options)
    assert rows(path) == new
    assert ingest(path, url, options).rows_indexed == 0


def main(folder: Path, url: str, options: dict[str, Any], step: int) -> None:
    shutil.copyfile(folder / "old.duckdb", folder / "new.duckdb")
    assert in_child(lambda: print(ingest(folder / "new.duckdb", url, options), file=sys.stderr)) == 0
    num_killed = 0
    for kind in ("exits before", "exits after"):
        for k in itertools.count(step, step):
            path = folder / f"{kind.replace(' ', '-')}-{k}.duckdb"
            shutil.copyfile(folder / "old.duckdb", path)

            def attempt(path: Path = path, k: int = k, kind: Any = kind) -> None:
                with requests_of(url.partition("://")[0]) as requests:
                    requests.befalls = {k: kind}
                    ingest(path, url, options)

            code = in_child(attempt)
            assert code in (0, EXITED), f"{kind} request {k}: {code}"
            assert in_child(partial(look, path, folder, url, options)) == 0, f"after {kind} request {k}"
            num_killed += code == EXITED
            if code == 0:
                break
    print(num_killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
