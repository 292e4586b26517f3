"""`curator init`: a commented configuration file from a look at the lake."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from connectors.connector import read_corpus
from connectors.parquet import ParquetFile, iter_batches
from connectors.plain import Corpus
from curator.console import printable
from curator.errors import ConfigError, InputError, StorageError, translated

_PEEK_ROWS = 2048
_PEEK_FILES = 8
_LONGEST_LABEL = 100
_LEAST_FILLED = 0.5
"""Share of the rows that a column of text or of domains must have a value in."""
_TEXT_NAMES = ("text", "content", "body", "raw_content", "document", "prompt")
_DOMAIN_NAMES = ("domain", "source", "subset", "dataset", "lang", "language", "category")
_KEY_NAMES = ("id", "doc_id", "uuid", "key", "sample_id")
_MOST_OTHERS = 3


@dataclass(frozen=True, kw_only=True)
class Peeked:
    """A column in the rows that were looked at: type, share of nulls, distinct values, mean length in characters.

    `mean_length` and `longest` are None but for strings; distinct values are counted of strings and integers alone,
    of which `is_counted` is True.
    """

    name: str
    kind: str
    num_rows: int
    null_share: float
    num_distinct: int
    mean_length: float | None
    longest: int | None
    is_counted: bool

    @property
    def is_text(self) -> bool:
        """Whether it can hold the text of rows."""
        return self.mean_length is not None and self.null_share <= 1 - _LEAST_FILLED

    @property
    def is_label(self) -> bool:
        """Whether its values can name groups of rows: few and short ones."""
        few = max(20, self.num_rows // 10)
        is_short = self.longest is not None and self.longest <= _LONGEST_LABEL
        return is_short and 0 < self.num_distinct <= few and self.null_share <= 1 - _LEAST_FILLED

    @property
    def is_key(self) -> bool:
        """Whether every row has a value of its own."""
        return self.is_counted and not self.null_share and self.num_distinct == self.num_rows

    def __str__(self) -> str:
        length = "" if self.mean_length is None else f", mean length {self.mean_length:,.0f}"
        return f"{self.kind}, {_percent(self.null_share)} null, {self.num_distinct:,} distinct{length}"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Columns that look right, from the schema and the first rows of a few files; no key where nothing fits.

    `reasons` says of "text", "domain" and "key" why; `others` names the columns that came next.
    """

    url: str
    text: str
    domain: str
    key: str | None
    num_files: int
    num_rows: int
    num_looked_at: int
    reasons: Mapping[str, str]
    others: Mapping[str, Sequence[str]]


def propose(url: str, storage_options: Mapping[str, Any] | None = None) -> Proposal:
    """Look at the lake and propose its text, domain and key columns.

    Raises:
        InputError: no Parquet files there, or no column that could be the text or the domain.
    """
    with translated():
        corpus = read_corpus(url, storage_options)
        columns = _peek(corpus)
    texts = sorted((each for each in columns if each.is_text), key=_text_rank)
    if not texts:
        listed = ", ".join(f"{each.name} ({each})" for each in columns)
        raise InputError(
            f"{url} has no string column that could hold text, with a value in half of the rows",
            hint=f"its columns are {listed}: write the text as a column of strings",
        )
    text = texts[0]
    labels = sorted(
        (each for each in columns if each.name != text.name and each.is_label),
        key=lambda each: (each.num_distinct < 2, each.null_share),
    )
    partitions = sorted({key for file in corpus.files for key in file.partition})
    named = _preferred(_DOMAIN_NAMES, [*partitions, *(each.name for each in labels)])
    domains = sorted(dict.fromkeys([*partitions, *(each.name for each in labels)]), key=lambda name: name != named)
    if not domains:
        listed = ", ".join(f"{each.name} ({each})" for each in columns)
        raise InputError(
            f"{url} has no column or hive partition that could name the domain of a row",
            hint=f"its columns are {listed}: add one of few short strings, weights are learned between domains",
        )
    keys = [each for each in columns if each.is_key and each.name not in (text.name, domains[0])]
    key = next((each for each in keys if each.name == _preferred(_KEY_NAMES, [each.name for each in keys])), None)
    label = next((each for each in labels if each.name == domains[0]), None)
    return Proposal(
        url=url,
        text=text.name,
        domain=domains[0],
        key=key.name if key else None,
        num_files=len(corpus.files),
        num_rows=corpus.num_rows,
        num_looked_at=max(each.num_rows for each in columns),
        reasons={
            "text": f"{text}; {_why_text(text)}",
            "domain": f"{_label_said(label, corpus, domains[0])}; {_why_domain(domains[0])}",
            "key": f"{key}; every row looked at has its own" if key else _why_no_key(keys),
        },
        others={
            "text": [each.name for each in texts[1 : 1 + _MOST_OTHERS]],
            "domain": domains[1 : 1 + _MOST_OTHERS],
            "key": [each.name for each in keys if key is None or each.name != key.name][:_MOST_OTHERS],
        },
    )


def write_config(proposal: Proposal, path: Path, *, overwrite: bool = False) -> None:
    """Write the proposal as a commented configuration file.

    Raises:
        ConfigError: the file exists and `overwrite` is not set.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists", hint="name another with --out, or allow it to be replaced (--overwrite)")
    try:
        path.write_text(render(proposal), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def render(proposal: Proposal) -> str:
    """The configuration file's text."""
    likeliest = next(iter(proposal.others.get("key", ())), "id")
    key = f"key = {toml_string(proposal.key)}" if proposal.key else f"# key = {toml_string(likeliest)}"
    return f"""\
# Lake Curator. Every key can also be set by the environment, e.g. CURATOR__LEARN__STEPS=500.
# Columns are proposed from {proposal.num_looked_at:,} rows; check them, then `curator ingest` reads all.

[lake]
url = {toml_string(proposal.url)}        # {proposal.num_files} files, {proposal.num_rows:,} rows
# The text of a row: {_comment(proposal, "text")}.
text = {toml_string(proposal.text)}
# The column or hive partition that weights are learned for: {_comment(proposal, "domain")}.
domain = {toml_string(proposal.domain)}
# A unique, stable key; without it a hash of domain and text: {_comment(proposal, "key")}.
{key}
# id_hash = "sha256"        # that hash, where texts may be made to collide; default: "xxh3_128"
# mode = "table"        # keep all columns in the catalog (table), or nothing between sessions (view); default: "index"
# destination = "s3://bucket/curated"        # where versions are published; default: _curator inside the lake
# single_writer = true        # where the storage ignores conditional writes, and only one process at a time writes it
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

# [learn.weights]
# budget_tokens = 10_000_000_000        # what you will train on: no domain is then repeated more than four times

# [learn.line_search]
# places = []        # publish what was learned without judging it on target rows kept out

# [learn.blocks]
# size = 1        # layers that train at a time; 0: all

# [refresh]        # when `curator refresh` learns again, and what it does not publish
# max_age_days = 30
# max_share_change = 0.1        # of the domains' shares of rows
# max_feature_drift = 0.1        # of the text of new rows, for it to learn again
# max_drift = 0.5        # of the domain weights, unless forced
# max_val_rise = 0.01        # nats per token by which models may be worse for the new domain weights

[compare]        # the models that `curator compare` trains on each mixture
seeds = 3        # an interval needs at least 2
# steps = 300
# tokens_per_step = 4096
"""


def toml_string(value: str) -> str:
    """A TOML string: JSON's, but TOML has no surrogate pairs."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(proposal: Proposal, role: str) -> str:
    """Why a column was proposed, and what else there is, on one line whatever stands in the names."""
    others = proposal.others[role]
    return printable("; or ".join([proposal.reasons[role], *([", ".join(others)] if others else [])]))


def _peek(corpus: Corpus) -> list[Peeked]:
    """The columns in the first rows of a few files, which lie as far apart as they can."""
    files = [file for file in corpus.files if file.num_rows]
    if not files:
        raise InputError(f"{corpus.store.url} holds no rows")
    step = max(1, len(files) // _PEEK_FILES)
    looked_at = files[::step][:_PEEK_FILES]
    most = -(-_PEEK_ROWS // len(looked_at))
    batches = [batch for file in looked_at for batch in _first_rows(corpus, file, most)]
    names = dict.fromkeys(name for batch in batches for name in batch.schema.names)
    return [_peeked(name, [batch[name] for batch in batches if name in batch.schema.names]) for name in names]


def _first_rows(corpus: Corpus, file: ParquetFile, num_rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of at most so many rows together; a file may have small row groups."""
    for batch in iter_batches(corpus.store, file, file.schema.names, batch_rows=num_rows):
        yield batch.slice(0, num_rows)
        num_rows -= batch.num_rows
        if num_rows <= 0:
            return


def _peeked(name: str, parts: Sequence[pa.Array[Any]]) -> Peeked:
    """What is to be known of a column; of files that differ in its type, in the first one's."""
    plain = [_plain(part) for part in parts]
    column = pa.chunked_array([part for part in plain if part.type == plain[0].type])
    is_string = pa.types.is_string(column.type)
    is_counted = is_string or pa.types.is_integer(column.type)
    lengths = pc.utf8_length(column) if is_string else None
    return Peeked(
        name=name,
        kind=str(column.type),
        num_rows=len(column),
        null_share=column.null_count / max(1, len(column)),
        num_distinct=pc.count_distinct(column).as_py() if is_counted else 0,
        mean_length=None if lengths is None else pc.mean(lengths).as_py() or 0.0,
        longest=None if lengths is None else pc.max(lengths).as_py() or 0,
        is_counted=is_counted,
    )


def _plain(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def _text_rank(column: Peeked) -> tuple[int, float]:
    """Usual names come first, in their order, then the longest."""
    name = column.name.lower()
    return _TEXT_NAMES.index(name) if name in _TEXT_NAMES else len(_TEXT_NAMES), -(column.mean_length or 0.0)


def _preferred(wanted: tuple[str, ...], names: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _why_text(column: Peeked) -> str:
    return "a usual name" if column.name.lower() in _TEXT_NAMES else "the longest strings"


def _label_said(column: Peeked | None, corpus: Corpus, name: str) -> str:
    if column is not None:
        return str(column)
    values = {file.partition[name] for file in corpus.files if name in file.partition}
    return f"hive partition, {len(values):,} distinct"


def _why_domain(name: str) -> str:
    return "a usual name" if name.lower() in _DOMAIN_NAMES else "few short values"


def _why_no_key(keys: Sequence[Peeked]) -> str:
    return "none has a usual name" if keys else "no column has a value of its own in every row"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share in (0, 1) or 0.01 <= share <= 0.99 else f"{100 * share:.2g} %"
