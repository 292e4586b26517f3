"""Iceberg tables in a SQL catalog, written and read by pyiceberg itself."""

from pathlib import Path

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.transforms import IdentityTransform
from table_cases import ROWS, TableCase

from connectors import _iceberg_table
from connectors._iceberg_catalog import catalog_properties, open_table, parse_address

IDENTITY = IdentityTransform()


def load(url, options):
    """The table, as pyiceberg gives it."""
    address = parse_address(url)
    return open_table(address, catalog_properties(address, options))


class IcebergCase(TableCase):
    format_name = "iceberg"
    module = _iceberg_table

    def __init__(self, folder, place=None):
        super().__init__(folder, place)
        self.warehouse = place.url if place else f"file://{folder}"
        self.url = f"iceberg:sqlite:///{folder}/catalog.db#demo.lake.docs"
        self.root = Path(folder, "lake", "docs")

    def catalog(self):
        (self.folder / "catalog.db").touch()
        properties = catalog_properties(parse_address(self.url), self.options)
        return SqlCatalog("demo", **properties | {"warehouse": self.warehouse, "init_catalog_tables": "true"})

    def create(self, rows=ROWS, partition_by=(), transform=IDENTITY, files=None, **properties):
        with self.catalog() as catalog:
            catalog.create_namespace_if_not_exists("lake")
            table = catalog.create_table("lake.docs", schema=rows.schema, properties=properties)
            with table.update_spec() as spec:
                for column in partition_by:
                    spec.add_field(column, transform)
            if files:
                table.add_files(files)
            elif rows.num_rows:
                table.append(rows)

    @staticmethod
    def append_to(url, options, rows):
        load(url, options).append(rows)

    def overwrite(self, rows):
        self.open().overwrite(rows)

    def compact(self):
        newest = self.open()
        newest.overwrite(newest.scan().to_arrow())

    def clean(self):
        """Delete all snapshots but the newest, and the files that it does not name; how many files there were."""
        newest = self.open()
        old = [s.snapshot_id for s in newest.snapshots() if s.snapshot_id != newest.current_snapshot().snapshot_id]
        newest.maintenance.expire_snapshots().by_ids(old).commit()
        unnamed = set(self.root.rglob("*.parquet")) - {self.root / path for path in self.paths()}
        for path in unnamed:
            path.unlink()
        return len(unnamed)

    def open(self):
        return load(self.url, self.options)

    def rows(self, number=None):
        """The rows as pyiceberg reads them, sorted by text."""
        newest = self.open()
        snapshot_id = newest.snapshots()[number - 1].snapshot_id if number else None
        return newest.scan(snapshot_id=snapshot_id).to_arrow().sort_by("text").to_pylist()

    def paths(self):
        newest = self.open()
        return [task.file.file_path.removeprefix(f"{newest.location()}/") for task in newest.scan().plan_files()]

    def number(self):
        """Of a table that has all its snapshots yet."""
        return len(self.open().snapshots())

    def num_ours(self):
        return sum("lake-curator" in s.summary.additional_properties for s in self.open().snapshots())

    def scan(self):
        import polars as pl

        newest = self.open()
        return pl.scan_iceberg(newest, storage_options=newest.io.properties if self.options else None)
