"""Text → token ids, kept in a memory-mapped cache that the workers read.

A row is stored as `boundary, t_1 … t_n, boundary`: n + 1 target tokens, each with the one before it as its input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curator.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

BOUNDARY = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer and the id that marks where a row begins and ends."""

    backend: HFTokenizer
    boundary_id: int

    @property
    def vocab_size(self) -> int:
        """Ids are in 0..vocab_size-1."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that turn every text into the same ids."""
        return hashlib.blake2b(self.backend.to_str().encode(), digest_size=8).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Ids of each text with the boundary on both sides."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        edge = [self.boundary_id]
        return [np.array(edge + item.ids + edge, dtype=np.int64) for item in encoded]

    def decode(self, rows: Sequence[NDArray[Any]]) -> list[str]:
        """The text of each row of ids without its boundaries; what the tokenizer normalised stays so."""
        return self.backend.decode_batch([ids.tolist() for ids in rows], skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Write the tokenizer as `tokenizer.json`."""
        path.write_text(self.backend.to_str(), encoding="utf-8")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` learned from `texts`; equal texts give an equal tokenizer."""
    tokenizers = _tokenizers()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOUNDARY],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.encode_special_tokens = True  # a text that spells the boundary is text, it does not end the row
    return Tokenizer(backend=backend, boundary_id=backend.token_to_id(BOUNDARY))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder.

    Raises:
        InputError: the folder has no tokenizer, or one without an end-of-text token.
    """
    _tokenizers()
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer in {folder}", hint="a model folder needs tokenizer.json beside config.json"
        ) from error
    boundary_id = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.bos_token_id
    if boundary_id is None or not hasattr(loaded, "backend_tokenizer"):
        raise InputError(
            f"the tokenizer in {folder} names no end-of-text token", hint="set eos_token in tokenizer_config.json"
        )
    return Tokenizer(backend=loaded.backend_tokenizer, boundary_id=int(boundary_id))


def read_tokenizer(cache: Path) -> Tokenizer:
    """The tokenizer that a token cache was made with."""
    meta = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
    return parse_tokenizer((cache / "tokenizer.json").read_text(encoding="utf-8"), int(meta["boundary_id"]))


def parse_tokenizer(text: str, boundary_id: int) -> Tokenizer:
    """A tokenizer out of what its `save` wrote."""
    backend = _tokenizers().Tokenizer.from_str(text)
    backend.encode_special_tokens = True
    return Tokenizer(backend=backend, boundary_id=boundary_id)


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Some rows on their way into a cache; `domain` indexes the cache's domains."""

    sample_id: pa.Array[Any]
    text: Sequence[str]
    domain: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """Tokenized rows in the order of their sample ids, whatever order they were read in; memory-mapped.

    Row i is `tokens[start[i]:start[i] + num_targets[i] + 1]`; `domain[i]` indexes `domains`. `first_row` is the place
    of row 0 in the whole cache, of which this may be a part.
    """

    folder: Path
    tokens: NDArray[Any]
    start: NDArray[np.int64]
    num_targets: NDArray[np.int64]
    domain: NDArray[np.int32]
    domains: tuple[str, ...]
    vocab_size: int
    first_row: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.domain)

    def domain_tokens(self) -> NDArray[np.int64]:
        """Target tokens of each domain."""
        sums = np.bincount(self.domain, weights=self.num_targets, minlength=len(self.domains))
        return sums.astype(np.int64)

    def sample_ids(self) -> pa.Array[Any]:
        """The id of each row, sorted."""
        whole = pq.read_table(self.folder / "sample_id.parquet")["sample_id"].combine_chunks()
        return whole.slice(self.first_row, self.num_rows)

    def rows(self, first: int, stop: int) -> TokenCache:
        """The part with the rows from `first` to before `stop`."""
        part = slice(first, stop)
        return dataclasses.replace(
            self,
            start=self.start[part],
            num_targets=self.num_targets[part],
            domain=self.domain[part],
            first_row=self.first_row + first,
        )

    def only(self, kept: NDArray[np.int64]) -> TokenCache:
        """The rows at these places; good for its tokens alone, `sample_ids` knows nothing of it."""
        return dataclasses.replace(
            self, start=self.start[kept], num_targets=self.num_targets[kept], domain=self.domain[kept]
        )

    def relabelled(self, folder: Path, domain: NDArray[np.int32], domains: Sequence[str]) -> None:
        """Write the same rows into an empty folder, under other domains; what is the same is linked, where it can be.

        Args:
            folder: that exists.
            domain: (N,) for each row of this cache, all of which it must have.
            domains: their names.
        """
        for source in self.folder.iterdir():
            if source.name not in ("domain.npy", "meta.json"):
                try:
                    os.link(source, folder / source.name)
                except OSError:
                    shutil.copyfile(source, folder / source.name)
        np.save(folder / "domain.npy", domain)
        meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8")) | {"domains": list(domains)}
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    @staticmethod
    def open(folder: Path) -> TokenCache:
        """A cache that `write_cache` finished."""
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return TokenCache(
            folder=folder,
            tokens=np.load(folder / "tokens.npy", mmap_mode="r"),
            start=np.load(folder / "start.npy", mmap_mode="r"),
            num_targets=np.load(folder / "num_targets.npy", mmap_mode="r"),
            domain=np.load(folder / "domain.npy", mmap_mode="r"),
            domains=tuple(meta["domains"]),
            vocab_size=meta["vocab_size"],
        )


def write_cache(folder: Path, tokenizer: Tokenizer, batches: Iterable[RowBatch], domains: Sequence[str]) -> TokenCache:
    """Tokenize at least one batch (which may be empty) into `folder`, which must exist and be empty.

    Memory is bounded by one batch plus the ids and 20 bytes a row.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    lengths: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int32]] = []
    ids: list[pa.Array[Any]] = []
    raw = folder / "tokens.raw"
    with raw.open("wb") as sink:
        for batch in batches:
            encoded = tokenizer.encode(batch.text)
            sink.write(np.concatenate([*encoded, np.empty(0, np.int64)]).astype(dtype).tobytes())
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            labels.append(batch.domain)
            ids.append(batch.sample_id.cast(pa.string()))
    length, sample_id = np.concatenate(lengths), pa.concat_arrays(ids)
    _adopt_as_npy(raw, folder / "tokens.npy", dtype, int(length.sum()))
    order = pc.sort_indices(sample_id).to_numpy()
    np.save(folder / "start.npy", (np.cumsum(length) - length)[order])
    np.save(folder / "num_targets.npy", length[order] - 1)
    np.save(folder / "domain.npy", np.concatenate(labels).astype(np.int32)[order])
    pq.write_table(pa.table({"sample_id": sample_id.take(pa.array(order))}), folder / "sample_id.parquet")
    tokenizer.save(folder / "tokenizer.json")
    meta = {"domains": list(domains), "boundary_id": tokenizer.boundary_id, "vocab_size": tokenizer.vocab_size}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return TokenCache.open(folder)


def _adopt_as_npy(raw: Path, path: Path, dtype: np.dtype[Any], count: int) -> None:
    """Copy a raw token file under a `.npy` header, in pieces."""
    target = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(count,))
    piece = 2**24
    with raw.open("rb") as source:
        for first in range(0, count, piece):
            stop = min(count, first + piece)
            target[first:stop] = np.frombuffer(source.read((stop - first) * dtype.itemsize), dtype)
    target.flush()
    raw.unlink()


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise MissingExtraError("learning needs the package 'tokenizers': pip install 'lake-curator[train]'") from error
    return tokenizers
