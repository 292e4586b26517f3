"""A small lake of real text that any Python installation carries, one domain of it corrupted on purpose.

The target is the Python language reference (`pydoc` topics). The domain of the same family is `docstrings`, the
documentation inside the standard library; `garbled` is more of it with half its characters replaced, the known ground
truth of what should lose weight. Everything else is unrelated text of the same machine.
"""

from __future__ import annotations

import ast
import random
import re
import string
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

RELATED = "docstrings"
CORRUPTED = "garbled"
_ROWS = 1200
"""Rows of a domain at most."""
_TARGET_ROWS = 600
"""Fewer: a quarter of them is what every training that judges is measured on."""
_MIN_CHARS, _MAX_CHARS = 120, 1600


@dataclass(frozen=True, kw_only=True)
class DemoCorpus:
    """Where `build` put things; `domains` maps each domain to its number of rows."""

    lake: Path
    target: Path
    domains: dict[str, int]
    num_target_rows: int


def build(folder: Path, *, seed: int = 0) -> DemoCorpus:
    """Write `folder/lake/*.parquet` (columns text, source, origin) and `folder/target.parquet` (column text)."""
    lake = folder / "lake"
    lake.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    docstrings, functions = _python()
    docstrings = _sampled(docstrings, 2 * _ROWS, rng)
    half = len(docstrings) // 2
    garbled = [(origin, _garble(text, rng)) for origin, text in docstrings[half:]]
    sources: dict[str, list[tuple[str, str]]] = {
        RELATED: docstrings[:half],
        CORRUPTED: garbled,
        "python_code": _sampled(functions, _ROWS, rng),
        "c_headers": _sampled(_c_headers(), _ROWS, rng),
        "readmes": _sampled(_readmes(), _ROWS, rng),
        "licences": _sampled(_licences(), _ROWS, rng),
    }
    for domain, rows in sources.items():
        _write(lake / f"{domain}.parquet", rows, domain)
    target = _sampled(_language_reference(), _TARGET_ROWS, rng)
    pq.write_table(pa.table({"text": [text for _, text in target]}), folder / "target.parquet")
    return DemoCorpus(
        lake=lake,
        target=folder / "target.parquet",
        domains={domain: len(rows) for domain, rows in sources.items()},
        num_target_rows=len(target),
    )


def _write(path: Path, rows: list[tuple[str, str]], domain: str) -> None:
    table = pa.table(
        {
            "text": [text for _, text in rows],
            "source": pa.array([domain] * len(rows)).dictionary_encode(),
            "origin": [origin for origin, _ in rows],
        }
    )
    pq.write_table(table, path, row_group_size=400, compression="zstd")


def _sampled(rows: Iterable[tuple[str, str]], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """At most `count` distinct rows, in an order that depends on the seed alone."""
    distinct = sorted({text: origin for origin, text in rows}.items())
    rng.shuffle(distinct)
    return [(origin, text) for text, origin in distinct[:count]]


def _pieces(text: str, separator: str = r"\n\s*\n") -> Iterator[str]:
    """Consecutive parts of a document, joined up to `_MIN_CHARS` and cut at `_MAX_CHARS`."""
    piece = ""
    for part in re.split(separator, text):
        piece = f"{piece}\n\n{part}" if piece else part
        if len(piece.strip()) >= _MIN_CHARS:
            yield piece.strip()[:_MAX_CHARS]
            piece = ""


def _standard_library() -> Iterator[tuple[Path, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-z]*/*.py")):
        if path.relative_to(root).parts[0] in {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}:
            continue
        try:
            yield path.relative_to(root), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _definitions(source: str) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _python() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Docstrings, and functions without one; a file is parsed once for both."""
    docstrings, functions = [], []
    for path, source in _standard_library():
        lines = source.splitlines()
        for node in _definitions(source):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= _MIN_CHARS:
                docstrings.append((str(path), docstring[:_MAX_CHARS]))
            if docstring is None and isinstance(node, ast.FunctionDef):
                code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                if len(code) >= _MIN_CHARS:
                    functions.append((str(path), code[:_MAX_CHARS]))
    return docstrings, functions


def _c_headers() -> Iterator[tuple[str, str]]:
    """Headers of the interpreter and of the compiled packages that come with the SDK."""
    import numpy as np

    roots = {Path(sysconfig.get_paths()["include"]), Path(np.get_include()), Path(pa.get_include())}
    for root in sorted(roots):
        for path in sorted(root.rglob("*.h"))[:400]:
            text = path.read_text(encoding="utf-8", errors="ignore")
            for piece in _pieces(re.sub(r"\A(//.*\n|\s*/\*.*?\*/\s*)+", "", text, flags=re.DOTALL)):
                yield path.name, piece


def _distribution_files(matches: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    for distribution in metadata.distributions():
        for file in distribution.files or ():
            if "dist-info" not in str(file) or not matches(file.name.upper()):
                continue
            try:
                yield str(file), Path(str(file.locate())).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def _readmes() -> Iterator[tuple[str, str]]:
    for name, text in _distribution_files(lambda name: name == "METADATA"):
        _, _, description = text.partition("\n\n")
        for piece in _pieces(description):
            yield name, piece


def _licences() -> Iterator[tuple[str, str]]:
    for name, text in _distribution_files(lambda name: name.startswith(("LICEN", "COPYING", "NOTICE"))):
        for piece in _pieces(text):
            yield name, piece


def _language_reference() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        for piece in _pieces(text):
            yield f"pydoc {name} (Python {sys.version_info.major}.{sys.version_info.minor})", piece


def _garble(text: str, rng: random.Random) -> str:
    """Half of the characters replaced by random ones."""
    alphabet = string.ascii_letters + string.digits + string.punctuation + " "
    return "".join(rng.choice(alphabet) if rng.random() < 0.5 else char for char in text)
