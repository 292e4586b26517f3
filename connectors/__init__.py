"""Object storage and Parquet ↔ DuckDB. Private to `curator`; never imports torch."""
