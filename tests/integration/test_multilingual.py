"""Eight languages as domains, Catalan as the target: the Catalan source must win. Needs the project's data folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("megatron.core", reason="needs the extra [train]")

DATA = Path(os.environ.get("CURATOR_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "multilingual"
LANGUAGES = ("ca", "es", "fr", "de", "pl", "et", "eu", "tr")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}; set CURATOR_DATA")
def test_the_language_of_the_target_gets_the_highest_weight(tmp_path):
    lake = tmp_path / "lake"
    lake.mkdir()
    for language in LANGUAGES:
        table = pq.read_table(DATA / f"{language}.parquet")
        if language == "ca":
            pq.write_table(table.slice(0, 600), tmp_path / "target.parquet")
            table = table.slice(600)
        pq.write_table(table, lake / f"{language}.parquet")
    command = [sys.executable, "-m", "curator", "learn", str(lake), "--target", str(tmp_path / "target.parquet")]
    command += ["--text", "text", "--domain", "lang", "--json"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    result = json.loads(answer.stdout.splitlines()[-1])
    weights = result["domain_weights"]
    assert max(weights, key=weights.get) == "ca"
    assert weights["ca"] >= 0.5
    assert result["natural_share"]["ca"] < 0.2
