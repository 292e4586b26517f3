"""`curator init`: a commented configuration file from a look at the lake."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from connectors.connector import read_corpus
from connectors.parquet import ParquetFile, iter_batches
from connectors.plain import Corpus
from curator.errors import ConfigError, InputError, StorageError, translated

_PEEK_ROWS = 512
_TEXT_NAMES = ("text", "content", "body", "raw_content", "document", "prompt")
_DOMAIN_NAMES = ("domain", "source", "subset", "dataset", "lang", "language", "category")
_KEY_NAMES = ("id", "doc_id", "uuid", "key", "sample_id")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Columns that look right, from the schema and a few hundred rows; None where nothing fits."""

    url: str
    text: str
    domain: str
    key: str | None
    num_files: int
    num_rows: int


def propose(url: str, storage_options: Mapping[str, Any] | None = None) -> Proposal:
    """Look at the lake and propose its text, domain and key columns.

    Raises:
        InputError: no Parquet files there, or no column that could be the text or the domain.
    """
    with translated():
        corpus = read_corpus(url, storage_options)
        peek = _peek(corpus)
    strings = {name: column for name, column in peek.items() if pa.types.is_string(column.type)}
    if not strings:
        raise InputError(f"{url} has no string column that could hold text; its columns are {', '.join(peek)}")
    lengths = {name: pc.mean(pc.utf8_length(column)).as_py() or 0.0 for name, column in strings.items()}
    text = _preferred(_TEXT_NAMES, strings) or max(lengths, key=lambda name: lengths[name])
    labels = [name for name in strings if name != text and _is_label(strings[name])]
    partitions = sorted({key for file in corpus.files for key in file.partition})
    domain = _preferred(_DOMAIN_NAMES, [*partitions, *labels]) or next(iter([*partitions, *labels]), None)
    if domain is None:
        raise InputError(
            f"{url} has no column or hive partition that could name the domain of a row; "
            "add one, weights are learned between domains"
        )
    key = _preferred(_KEY_NAMES, [name for name, column in peek.items() if _is_key(column)])
    return Proposal(url=url, text=text, domain=domain, key=key, num_files=len(corpus.files), num_rows=corpus.num_rows)


def write_config(proposal: Proposal, path: Path, *, force: bool = False) -> None:
    """Write the proposal as a commented configuration file.

    Raises:
        ConfigError: the file exists and `force` is not set.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; remove it, name another with --out, or overwrite it with --force")
    try:
        path.write_text(render(proposal), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def render(proposal: Proposal) -> str:
    """The configuration file's text."""
    key = f"key = {_toml(proposal.key)}" if proposal.key else '# key = "id"'
    return f"""\
# Lake Curator. Every key can also be set by the environment, e.g. CURATOR__LEARN__STEPS=500.

[lake]
url = {_toml(proposal.url)}        # {proposal.num_files} files, {proposal.num_rows:,} rows
text = {_toml(proposal.text)}        # column with the text of a row
domain = {_toml(proposal.domain)}        # column or hive partition that weights are learned for
{key}        # column with a unique, stable key; without it a hash of domain and text
# destination = "s3://bucket/curated"        # where versions are published; default: _curator inside the lake
# skip_bad_rows = true        # leave out rows without text or domain instead of refusing them

[target]
# url = "target.parquet"        # a few hundred rows of what the model should be good at
# leaks = "keep"        # rows of the lake that also stand in the target; default: "exclude"

[learn]
model = "tiny"        # tiny, small, or a Hugging Face model folder
steps = 300
seed = 0
# tensor_parallel = 2
# pipeline_parallel = 2

# [learn.line_search]
# places = []        # publish what was learned without judging it on target rows kept out

# [learn.blocks]
# size = 1        # layers that train at a time; 0: all

# [refresh]        # when `curator refresh` learns again, and what it does not publish
# max_age_days = 30
# max_share_change = 0.1        # of the domains' shares of rows
# max_drift = 0.5        # of the domain weights, unless forced

[compare]        # the models that `curator compare` trains on each mixture
seeds = 3        # an interval needs at least 2
# steps = 300
# tokens_per_step = 4096
"""


def _toml(value: str) -> str:
    """A TOML string: JSON's, but TOML has no surrogate pairs."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _peek(corpus: Corpus) -> dict[str, Any]:
    """The first rows of the first file that has any, dictionaries decoded."""
    file: ParquetFile = next((file for file in corpus.files if file.num_rows), corpus.files[0])
    batch = next(iter_batches(corpus.store, file, file.schema.names, batch_rows=_PEEK_ROWS), None)
    if batch is None:
        raise InputError(f"{corpus.store.url} holds no rows")
    return {name: _plain(batch[name]) for name in batch.schema.names}


def _plain(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def _preferred(wanted: tuple[str, ...], names: Any) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _is_label(column: Any) -> bool:
    distinct = pc.count_distinct(column).as_py()
    longest = pc.max(pc.utf8_length(column)).as_py() or 0
    return longest <= 100 and distinct <= max(20, len(column) // 10)


def _is_key(column: Any) -> bool:
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind)) or column.null_count:
        return False
    return bool(pc.count_distinct(column).as_py() == len(column))
