"""What a row's text looks like, as numbers: out of Arrow's buffers by numpy, without a Python object a word.

Two kinds. *Dense* (`NAMES`): length, shares of kinds of characters, length of words, and how usual the row's sequences
of bytes and words are in the lake and in the target, as means of log frequencies. *Hashed*: which share of its
sequences falls into each of a few buckets. A row's features depend on its own text alone, to the bit: not on the rows
beside it, nor on their order.

A row must not be found usual for having been counted itself, or rows that come later would look odd. So the lake's
rows are counted in two halves, by a hash of their texts, and a row is always compared with the other half.

A word is a run of ASCII letters, digits and bytes beyond ASCII, without case; what has no spaces is one long word, and
is told by its bytes. Of a row the first `LONGEST` bytes are looked at. Shapes: N rows, U places (bytes or words of all
rows, end to end), K kinds of sequences that are counted, M buckets of counts, F dense and H hashed features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

LONGEST = 1 << 16
"""Bytes of a row that are looked at; the last character may be cut."""
BUCKET_BITS = 18
NUM_BUCKETS = 1 << BUCKET_BITS
"""Of counted sequences."""
NUM_HASHED = 512
"""Buckets of hashed features for bytes, and as many for words."""
BYTE_LENGTHS = (1, 2, 3, 4, 5)
WORD_LENGTHS = (1, 2)
COUNTED = ("bytes_3", "bytes_5", "words_1", "words_2")
"""The kinds of sequences whose frequencies are looked up."""
_SHARES = ("digits", "spaces", "punctuation", "capitals", "beyond_ascii")
NAMES = (
    "log_bytes",
    *_SHARES,
    "word_length",
    *(f"{kind}_in_lake" for kind in COUNTED),
    *(f"{kind}_in_target" for kind in COUNTED),
)

_CHUNK_BYTES = 1 << 18
"""Text at a time: its arrays stay near the processor's caches, whatever a batch holds."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BASE = np.uint64(0xD6E8FEB86659FD93)
_INVERSE = np.uint64(pow(0xD6E8FEB86659FD93, -1, 1 << 64))
_PAIR = np.uint64(0xBF58476D1CE4E5B9)
_UNSEEN = 0.5
"""Added to every count, as for a sequence that was seen half a time."""
_STEPS = 512
"""A log frequency is kept in steps of 1/512, from 0 downwards: in 16 bits, of which a row's sum has no more than 32."""
_FIELD_BITS = 21
_FIELDS = 3
"""Counts of up to `LONGEST` that one number holds side by side."""

_UNCHECKED: Literal["clip"] = "clip"
"""Every place is within its table; numpy looks up a small one in two thirds of the time if it need not raise."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Value = TypeVar("Value", np.int64, np.uint64, np.float64)


def unit_hashes(ids: pa.Array, purpose: str) -> Floats:
    """A number in [0, 1) for each id, (N,): the same everywhere, another one for another purpose (of eight letters)."""
    data, offset_N = _bytes_of(ids)
    salt = np.frombuffer(purpose.encode().ljust(8)[:8], np.uint64)
    mixed_N = (_segment_hashes(data, offset_N[:-1], offset_N[1:]) ^ salt) * _GOLDEN
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(32))) * _PAIR
    return (mixed_N >> np.uint64(11)).astype(np.float64) / (1 << 53)


def text_hashes(texts: pa.Array, purpose: str) -> Floats:
    """A number in [0, 1) for each text, (N,): equal ones have the same, everywhere, and another for another purpose."""
    data_U, offset_N = _bytes_of(texts)
    data, seed, ends = data_U.data, xxhash.xxh3_64_intdigest(purpose.encode()), offset_N.tolist()
    found = [xxhash.xxh3_64_intdigest(data[first:end], seed) for first, end in pairwise(ends)]
    return (np.array(found, np.uint64) >> np.uint64(11)).astype(np.float64) / (1 << 53)


def halves(texts: pa.Array) -> Indices:
    """Which half of the lake each row is counted in, 0 or 1, (N,): equal ones in one, to come out alike."""
    return (text_hashes(texts, "half") < 0.5).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Grams:
    """All sequences of `length` bytes or words within rows, as buckets (U,) of `NUM_BUCKETS`, one at every place.

    Row i has the places from `offset_N[i]` to before `offset_N[i + 1]`. A sequence that would end beyond its row is in
    no row: the last length − 1 places of each count for nothing.
    """

    bucket_U: Indices
    offset_N: Indices
    length: int

    @cached_property
    def count_N(self) -> Indices:
        """Sequences of each row."""
        count_N: Indices = np.maximum(np.diff(self.offset_N) - self.length + 1, 0)
        return count_N

    def means(self, table_M: Floats) -> Floats:
        """The mean over each row's sequences, (N,), of their values in a table of any power of two up to the buckets.

        0 for a row without sequences.
        """
        return self._sums(table_M) / np.maximum(self.count_N, 1)

    def mean_logs(self, pair_M: Hashes) -> tuple[Floats, Floats]:
        """Mean log frequencies of each row's sequences, (N,), in the lake and in the target (`Frequencies.pairs_2KM`).

        Sums of whole numbers, two in one: exact in any order, and looked up once.
        """
        sum_N, count_N = self._sums(pair_M), -_STEPS * np.maximum(self.count_N, 1.0)
        return (sum_N >> np.uint64(32)) / count_N, (sum_N & np.uint64(0xFFFFFFFF)) / count_N

    def counts(self) -> Indices:
        """How many sequences fall into each bucket, (M,)."""
        beyond_M = np.bincount(self.bucket_U[self._beyond], minlength=NUM_BUCKETS)
        return np.bincount(self.bucket_U, minlength=NUM_BUCKETS) - beyond_M

    def shares(self, size: int) -> Floats:
        """The share of each row's sequences that falls into each of `size` buckets, (N, size)."""
        num_rows = len(self.offset_N) - 1
        cell_U = np.repeat(np.arange(num_rows) * size, np.diff(self.offset_N)) + self._coarse(size)
        found = np.bincount(cell_U, minlength=num_rows * size)
        found -= np.bincount(cell_U[self._beyond], minlength=num_rows * size)
        return found.reshape(num_rows, size) / np.maximum(self.count_N, 1)[:, None]

    def _sums(self, table_M: NDArray[Value]) -> NDArray[Value]:
        value_U = np.take(table_M, self._coarse(len(table_M)), mode=_UNCHECKED)
        value_U[self._beyond] = 0
        return _row_sums(value_U, self.offset_N)

    @cached_property
    def _beyond(self) -> Indices:
        first_N, end_N = self.offset_N[:-1], self.offset_N[1:]
        places = [(end_N - back)[end_N - back >= first_N] for back in range(1, self.length)]
        return np.concatenate([np.empty(0, np.int64), *places])

    def _coarse(self, size: int) -> Indices:
        return self.bucket_U if size == NUM_BUCKETS else self.bucket_U >> (BUCKET_BITS - size.bit_length() + 1)


class Rows:
    """A chunk of rows, small enough for its arrays."""

    def __init__(self, texts: pa.Array) -> None:
        data_U, self._offset_N = _bytes_of(texts)
        self._bytes = data_U.tobytes()
        self._data_U = data_U.astype(np.int64)

    @cached_property
    def bytes(self) -> tuple[Grams, ...]:
        """Their sequences of `BYTE_LENGTHS` bytes."""
        count, longest = len(self._data_U), max(BYTE_LENGTHS)
        padded = np.concatenate([self._data_U, np.zeros(longest - 1, np.int64)]).view(np.uint64)
        product_U, part_U, found = np.zeros(count, np.uint64), np.empty(count, np.uint64), []
        for length in BYTE_LENGTHS:  # a code is the bytes themselves, so that the lengths cannot be taken for others
            np.multiply(padded[length - 1 : length - 1 + count], _golden_times(1 << (8 * (length - 1))), out=part_U)
            product_U += part_U
            bucket_U = _upper_bits(product_U + _golden_times(length << 40))
            found.append(Grams(bucket_U=bucket_U, offset_N=self._offset_N, length=length))
        return tuple(found)

    @cached_property
    def words(self) -> tuple[Grams, ...]:
        """Their sequences of `WORD_LENGTHS` words."""
        first_W, end_W = self._word_places
        offset_N = np.searchsorted(first_W, self._offset_N).astype(np.int64)
        hash_W = _segment_hashes(_looked_up(self._bytes, _tables().lower), first_W, end_W)
        pair_W = hash_W * _PAIR + np.append(hash_W[1:], np.uint64(0))
        return (
            Grams(bucket_U=_upper_bits(hash_W * _GOLDEN), offset_N=offset_N, length=1),
            Grams(bucket_U=_upper_bits(pair_W * _GOLDEN), offset_N=offset_N, length=2),
        )

    @property
    def counted(self) -> tuple[Grams, ...]:
        """The sequences of `COUNTED`."""
        return self.bytes[2], self.bytes[4], *self.words

    def shape(self) -> Floats:
        """The dense features that need no frequencies, (N, 7)."""
        size_N = np.diff(self._offset_N)
        packed = [_row_sums(np.take(table, self._data_U, mode=_UNCHECKED), self._offset_N) for table in _tables().kinds]
        fields = [
            (sum_N >> (_FIELD_BITS * field)) & ((1 << _FIELD_BITS) - 1) for sum_N in packed for field in range(_FIELDS)
        ]
        shares = np.column_stack(fields[: len(_SHARES)]) / np.maximum(size_N, 1)[:, None]
        first_W, end_W = self._word_places
        letters_N = _row_sums(end_W - first_W, self.words[0].offset_N)
        return np.column_stack([np.log1p(size_N), shares, letters_N / np.maximum(self.words[0].count_N, 1)])

    @cached_property
    def _word_places(self) -> tuple[Indices, Indices]:
        """Where each word begins, and where it has ended, (W,) each."""
        in_word_U = _looked_up(self._bytes, _tables().in_word).view(np.bool_)
        row_starts = np.zeros(len(in_word_U) + 1, dtype=bool)
        row_starts[self._offset_N] = True
        after_U, before_U = np.append(in_word_U[1:], False), np.append(False, in_word_U[:-1])
        first_W = np.flatnonzero(in_word_U & (~before_U | row_starts[:-1]))
        end_W = np.flatnonzero(in_word_U & (~after_U | row_starts[1:])) + 1
        return first_W, end_W


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """Log frequencies in steps of −1/`_STEPS`: (2, K, M) in the halves of the lake, and (K, M) in the target."""

    lake_2KM: NDArray[np.uint16]
    target_KM: NDArray[np.uint16]

    @cached_property
    def pairs_2KM(self) -> Hashes:
        """Both in one number, the lake's above the target's."""
        return (self.lake_2KM.astype(np.uint64) << np.uint64(32)) | self.target_KM.astype(np.uint64)


class Counter:
    """Adds up how often sequences occur."""

    def __init__(self) -> None:
        self._lake_2KM = np.zeros((2, len(COUNTED), NUM_BUCKETS), np.int64)
        self._target_KM = np.zeros((len(COUNTED), NUM_BUCKETS), np.int64)

    def add_lake(self, texts: pa.Array, half_N: Indices) -> None:
        """Count rows of the lake in their halves."""
        for half, _, rows in _chunks(texts, half_N):
            _count(rows, self._lake_2KM[half])

    def add_target(self, texts: pa.Array) -> None:
        """Count rows of the target."""
        for _, _, rows in _chunks(texts, np.zeros(len(texts), np.int64)):
            _count(rows, self._target_KM)

    def frequencies(self) -> Frequencies:
        """The logs of what was counted."""
        return Frequencies(lake_2KM=_log_frequencies(self._lake_2KM), target_KM=_log_frequencies(self._target_KM))


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of N rows: dense (N, F), in the order of `NAMES`, and hashed (N, H) or what they are projected on."""

    dense_NF: Floats
    hashed: Floats


def describe(
    texts: pa.Array, half_N: Indices, frequencies: Frequencies, coefficient_H: Floats | None = None
) -> Features:
    """The features of rows; with coefficients, `hashed` is their product with the hashed ones, (N,).

    Args:
        texts: strings; null counts as empty.
        half_N: of the rows (`halves`).
        frequencies: of the lake and the target.
        coefficient_H: (2 · `NUM_HASHED`,); the product needs no matrix and is several times as fast.
    """
    num_rows = len(texts)
    dense_NF = np.zeros((num_rows, len(NAMES)))
    hashed = np.zeros((num_rows, 2 * NUM_HASHED) if coefficient_H is None else num_rows)
    for half, place, rows in _chunks(texts, half_N):
        pairs = zip(rows.counted, frequencies.pairs_2KM[1 - half], strict=True)
        in_lake, in_target = zip(*(grams.mean_logs(pair_M) for grams, pair_M in pairs), strict=True)
        dense_NF[place] = np.column_stack([rows.shape(), *in_lake, *in_target])
        hashed[place] = _hashed(rows, coefficient_H)
    return Features(dense_NF=dense_NF, hashed=hashed)


def content(texts: pa.Array) -> Floats:
    """What rows speak of, (N, 2 · `NUM_HASHED`): roots of the shares of bytes in threes and of words, by bucket.

    Of roots, whose squares sum to 1 in each half, frequent sequences do not make up the whole distance between rows.
    """
    root_NH = np.zeros((len(texts), 2 * NUM_HASHED))
    for _, place, rows in _chunks(texts, np.zeros(len(texts), np.int64)):
        shares = [grams.shares(NUM_HASHED) for grams in (rows.bytes[2], rows.words[0])]
        root_NH[place] = np.sqrt(np.concatenate(shares, axis=1))
    return root_NH


def _hashed(rows: Rows, coefficient_H: Floats | None) -> Floats:
    """The mean over the lengths of sequences, for bytes and for words."""
    if coefficient_H is None:
        blocks = [np.mean([grams.shares(NUM_HASHED) for grams in kind], axis=0) for kind in (rows.bytes, rows.words)]
        return np.concatenate(blocks, axis=1)
    parts = zip((rows.bytes, rows.words), np.split(coefficient_H, 2), strict=True)
    product_N: Floats = np.sum([np.mean([grams.means(part) for grams in kind], axis=0) for kind, part in parts], axis=0)
    return product_N


def _count(rows: Rows, count_KM: Indices) -> None:
    for kind, grams in enumerate(rows.counted):
        count_KM[kind] += grams.counts()


def _log_frequencies(counts: Indices) -> NDArray[np.uint16]:
    total = counts.sum(axis=-1, keepdims=True) + _UNSEEN * NUM_BUCKETS
    steps: NDArray[np.uint16] = np.rint(-_STEPS * np.log((counts + _UNSEEN) / total)).astype(np.uint16)
    return steps


def _chunks(texts: pa.Array, half_N: Indices) -> Iterator[tuple[int, Indices, Rows]]:
    """(half, places, rows) in chunks of one half each, of about `_CHUNK_BYTES`."""
    for half in (0, 1):
        place_N = np.flatnonzero(half_N == half)
        if not len(place_N):
            continue
        chosen = texts.take(pa.array(place_N))
        size_N = pc.fill_null(pc.binary_length(chosen), 0).to_numpy(zero_copy_only=False)
        chunk_N = np.cumsum(np.minimum(size_N, LONGEST)) // _CHUNK_BYTES
        starts = np.flatnonzero(np.diff(chunk_N, prepend=-1))
        for first, end in zip(starts, [*starts[1:], len(place_N)], strict=True):
            yield half, place_N[first:end], Rows(chosen.slice(int(first), int(end - first)))


def _bytes_of(texts: pa.Array) -> tuple[NDArray[np.uint8], Indices]:
    """The bytes of strings end to end, each cut at `LONGEST`, and where each starts, (N + 1,)."""
    stored = pc.fill_null(texts.cast(pa.large_string()).cast(pa.large_binary()), b"")
    if len(stored) and pc.max(pc.binary_length(stored)).as_py() > LONGEST:
        stored = pc.binary_slice(stored, 0, LONGEST)
    _, offsets, data = stored.buffers()
    offset_N = np.frombuffer(offsets, np.int64)[stored.offset : stored.offset + len(stored) + 1]
    whole = np.frombuffer(data or b"", np.uint8)
    return whole[offset_N[0] : offset_N[-1]], offset_N - offset_N[0]


def _row_sums(value_U: NDArray[Value], offset_N: Indices) -> NDArray[Value]:
    """The sum over each row's places, (N,)."""
    total_N = np.zeros(len(offset_N) - 1, value_U.dtype)
    filled = np.flatnonzero(np.diff(offset_N))
    if len(filled):
        total_N[filled] = np.add.reduceat(value_U, offset_N[filled])
    return total_N


def _golden_times(number: int) -> np.uint64:
    """Modulo 2⁶⁴."""
    return np.uint64(number * int(_GOLDEN) & (1 << 64) - 1)


def _upper_bits(product_U: Hashes) -> Indices:
    """The buckets, of a code's product with the golden ratio: its lowest bits reach them, too (Knuth, 6.4)."""
    product_U >>= np.uint64(64 - BUCKET_BITS)
    return product_U.view(np.int64)


def _looked_up(data: bytes, table: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data.translate(table), np.uint8)


def _segment_hashes(data_U: NDArray[np.uint8], first_W: Indices, end_W: Indices) -> Hashes:
    """Σ (byte + 1)·base^place from each `first` to before its `end`, modulo 2⁶⁴: the same wherever a segment lies."""
    weighted_U = data_U.astype(np.uint64)
    weighted_U += np.uint64(1)
    weighted_U *= _powers(len(data_U), _BASE)
    before = np.zeros(len(data_U) + 1, np.uint64)
    np.cumsum(weighted_U, out=before[1:])
    hash_W: Hashes = (before[end_W] - before[first_W]) * _powers(len(data_U) + 1, _INVERSE)[first_W]
    return hash_W


def _powers(count: int, base: np.uint64) -> Hashes:
    """The first `count` powers, modulo 2⁶⁴."""
    return _all_powers(1 << max(count - 1, 1).bit_length(), int(base))[:count]


@cache
def _all_powers(count: int, base: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """Of each byte: whether it is of a word, and without case, for `bytes.translate`; a 1 in the field of its kind."""

    in_word: bytes
    lower: bytes
    kinds: tuple[Indices, ...]


@cache
def _tables() -> _Tables:
    byte = np.arange(256)
    is_digit, is_capital = (byte >= 48) & (byte < 58), (byte >= 65) & (byte < 91)
    is_small, is_beyond = (byte >= 97) & (byte < 123), byte >= 128
    is_space = np.isin(byte, [9, 10, 11, 12, 13, 32])
    in_word = is_digit | is_capital | is_small | is_beyond
    shares = np.stack([is_digit, is_space, ~in_word & ~is_space, is_capital, is_beyond]).astype(np.int64)
    places = _FIELD_BITS * (np.arange(len(shares)) % _FIELDS)
    return _Tables(
        in_word=in_word.astype(np.uint8).tobytes(),
        lower=np.where(is_capital, byte + 32, byte).astype(np.uint8).tobytes(),
        kinds=tuple(np.add.reduceat(shares << places[:, None], np.arange(0, len(shares), _FIELDS))),
    )
