"""Memory: no more of it for a corpus several times as large, nor for a small file that unfolds."""

import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

GIB = 2**30
PEAK = """
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(int(peak) * 1024)
"""
GROUPS, GROUP_ROWS, ROW_BYTES, FILES = 10, 2_000, 32_000, 8
INGEST = """
import sys
from pathlib import Path
from connectors import duck
from connectors.plain import list_parquet
with duck.connect(Path(sys.argv[2])) as connection:
    print(duck.ingest(connection, list_parquet(sys.argv[1]), text="text", domain="source").num_rows)
"""
REWRITE = """
import sys
from pathlib import Path
import pyarrow as pa
from connectors.parquet import add_columns
from connectors.plain import list_parquet
corpus = list_parquet(sys.argv[1])
(file,) = corpus.files
added = add_columns(corpus.store, file, corpus.store, "b.parquet", lambda _, first, num: pa.table({"x": [[1]] * num}))
print(added.rewritten_because.replace(" ", "-"))
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read in /proc")


def run(script, *arguments):
    """What it prints in a process of its own, and that one's peak of memory in bytes."""
    command = [sys.executable, "-c", script + PEAK, *arguments]
    said, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return said, int(peak)


def ingested(tmp_path):
    """How many rows, and the process's peak of memory in bytes."""
    rows, peak = run(INGEST, tmp_path / "lake", tmp_path / "catalog.duckdb")
    return int(rows), peak


@pytest.mark.slow
def test_a_corpus_of_five_gigabytes_is_indexed_in_less_than_one(tmp_path):
    source = random.Random(0)
    (tmp_path / "lake").mkdir()
    first = tmp_path / "lake" / "0.parquet"
    schema = pa.schema({"text": pa.string(), "source": pa.string()})
    with pq.ParquetWriter(first, schema, compression="none", use_dictionary=False) as writer:
        for _ in range(GROUPS):
            text = [source.randbytes(ROW_BYTES // 2).hex() for _ in range(GROUP_ROWS)]
            writer.write_table(pa.table([text, ["x"] * GROUP_ROWS], schema=schema))
    for number in range(1, FILES):
        (tmp_path / "lake" / f"{number}.parquet").hardlink_to(first)
    assert FILES * first.stat().st_size > 4.5 * GIB
    rows, peak = ingested(tmp_path)
    assert rows == FILES * GROUPS * GROUP_ROWS
    assert peak < GIB, f"{peak / GIB:.2f} GiB"


def write_one_text(path, num_rows, group_rows, stored_as):
    """Rows that all are one text of 8 MB, stored once in a dictionary, or as pages that compress 20,000 times."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["x" * 8_000_000]))
    schema = pa.schema({"text": text.type, "source": pa.string()})
    settings = {"store_schema": stored_as.endswith("too"), "use_dictionary": stored_as != "plain"}
    with pq.ParquetWriter(path, schema, compression="zstd", write_batch_size=1, **settings) as writer:
        for start in range(0, num_rows, group_rows):
            part = text[start : start + group_rows]
            writer.write_table(pa.table([part, ["x"] * len(part)], schema=schema))
    assert path.stat().st_size < 2e6


@pytest.mark.parametrize("stored_as", ["dictionary", "dictionary in Arrow, too", "plain"])
def test_a_small_file_whose_rows_unfold_to_gigabytes_is_indexed_in_less_than_one(tmp_path, stored_as):
    (tmp_path / "lake").mkdir()
    write_one_text(tmp_path / "lake" / "a.parquet", 600, 60, stored_as)
    rows, peak = ingested(tmp_path)
    assert rows == 600
    assert peak < GIB, f"{peak / GIB:.2f} GiB"


@pytest.mark.parametrize("stored_as", ["dictionary", "plain"])
def test_a_small_row_group_that_unfolds_to_gigabytes_is_rewritten_in_less_than_one(tmp_path, stored_as):
    write_one_text(tmp_path / "a.parquet", 150, 150, stored_as)
    said, peak = run(REWRITE, tmp_path)
    assert said == "new-column-'x'-is-nested"
    assert peak < GIB, f"{peak / GIB:.2f} GiB"
    assert pq.read_metadata(tmp_path / "b.parquet").num_rows == 150
