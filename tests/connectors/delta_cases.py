"""Delta tables, written and read by deltalake itself."""

from pathlib import Path

import deltalake
import pyarrow as pa
from table_cases import ROWS, TableCase

from connectors import _delta_log
from connectors.store import open_store


def library_options(url, options):
    return _delta_log.delta_options(open_store(url, options)) or None


class DeltaCase(TableCase):
    format_name = "delta"
    module = _delta_log

    def __init__(self, folder, place=None):
        super().__init__(folder, place)
        self.path = place.url if place else str(folder / "table")
        self.url = f"delta:{self.path}"
        self.root = Path(self.path)
        self.library_options = library_options(self.path, self.options)

    def create(self, rows=ROWS, partition_by=None, **properties):
        settings = {"partition_by": partition_by, "configuration": properties or None}
        deltalake.write_deltalake(self.path, rows, storage_options=self.library_options, **settings)

    @staticmethod
    def append_to(url, options, rows):
        path = url.removeprefix("delta:")
        settings = {"mode": "append", "schema_mode": "merge", "storage_options": library_options(path, options)}
        deltalake.write_deltalake(path, rows, **settings)

    def overwrite(self, rows):
        settings = {"mode": "overwrite", "schema_mode": "merge", "storage_options": self.library_options}
        deltalake.write_deltalake(self.path, rows, **settings)

    def compact(self):
        self.open().optimize.compact()

    def clean(self):
        """Delete the files that the newest version does not name; how many there were."""
        everything = {"retention_hours": 0, "enforce_retention_duration": False, "dry_run": False, "full": True}
        return len(self.open().vacuum(**everything))

    def open(self, number=None):
        return deltalake.DeltaTable(self.path, version=number, storage_options=self.library_options)

    def rows(self, number=None):
        """The rows as deltalake's own query engine reads them, sorted by text."""
        builder = deltalake.QueryBuilder().register("t", self.open(number))
        return pa.table(builder.execute("SELECT * FROM t ORDER BY text").read_all()).to_pylist()

    def paths(self):
        return self.open().get_add_actions()["path"].to_pylist()

    def number(self):
        return self.open().version()

    def num_ours(self):
        return sum("lake-curator" in entry for entry in self.open().history())

    def scan(self):
        import polars as pl

        return pl.scan_delta(self.path, storage_options=self.library_options)
