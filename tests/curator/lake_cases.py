"""Small lakes for tests, and what it takes to use the command line as a user does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parents[2]
LANGUAGES = {"north": "abcde", "south": "uvwxyz", "east": "klmno"}
FAST = {
    "steps": 12,
    "sequence_length": 32,
    "rows_per_domain": 2,
    "target_rows": 4,
    "vocab_size": 300,
    "line_search": {"places": []},
}
"""Settings of a run of a second; its weights mean nothing and are not judged, its files are whole."""
_BEYOND_ANY_LAKE = 1000


def sentences(language: str, num: int, seed: int = 0) -> list[str]:
    """Distinct made-up sentences in an alphabet of its own; equal seeds share their words."""
    rng = random.Random(f"{language}:{seed}")
    alphabet = LANGUAGES.get(language, language)
    words = ["".join(rng.choices(alphabet, k=rng.randint(2, 6))) for _ in range(60)]
    return [f"{' '.join(rng.choices(words, k=12))} {i}" for i in range(num)]


def write_lake(folder: Path, num_rows: int = 24, domains: tuple[str, ...] = tuple(LANGUAGES)) -> Path:
    """One file a domain, several row groups each, key-value metadata and a column that is nobody's business."""
    folder.mkdir(parents=True)
    for domain in domains:
        table = pa.table(
            {
                "text": sentences(domain, num_rows),
                "domain": pa.array([domain] * num_rows).dictionary_encode(),
                "score": pa.array([i / 3 for i in range(num_rows)], pa.float32()),
            }
        ).replace_schema_metadata({"owner": f"team {domain}"})
        pq.write_table(table, folder / f"{domain}.parquet", row_group_size=10, compression="zstd")
    return folder


def write_rows(path: Path, **columns: object) -> Path:
    """A Parquet file of these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_target(path: Path, language: str = "north", num_rows: int = 20) -> Path:
    """Sentences of a language's words that are not in its domain."""
    return write_rows(path, text=sentences(language, _BEYOND_ANY_LAKE + num_rows)[_BEYOND_ANY_LAKE:])


def write_settings(path: Path, **learn: object) -> Path:
    """A configuration file with `FAST` under [learn], and what is given."""
    lines = []
    for name, value in (FAST | learn).items():
        inner = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        lines += [f"{key} = {json.dumps(each)}" for key, each in inner.items()]
    path.write_text("\n".join(["[learn]", *lines, ""]))
    return path


def tree(folder: Path, *, but: tuple[str, ...] = ("catalog.duckdb", "lake.json")) -> dict[str, str]:
    """Path → hash of every file below a folder, the caches of ingest left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(but)
    }


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user's shell: no settings of ours, nothing written to the real home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CURATOR", "AWS_", "FSSPEC_", "PYTEST"))}
    return kept | {"CURATOR_HOME": str(home / "curator-home"), "HOME": str(home), "OMP_NUM_THREADS": "1"} | variables


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "curator", *map(str, arguments)]


def curator(cwd: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`curator …` in a process of its own."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(cwd, **variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def values_of(process: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The one JSON object of a successful `--json` call, which is the only line of stdout."""
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    values = json.loads(line)
    assert values["schema_version"] == 1
    return values


def refusal(process: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The one sentence of a refused call."""
    assert process.returncode == exit_code, (process.returncode, process.stdout, process.stderr)
    assert "Traceback" not in process.stderr + process.stdout
    ours = [line for line in process.stderr.splitlines() if line.startswith("curator: ")]
    assert len(ours) == 1, process.stderr
    assert process.stderr.splitlines()[-1] == ours[0]
    return ours[0].removeprefix("curator: ")
