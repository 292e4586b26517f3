"""The words of texts as 64-bit hashes, the same in every process, and hashes of the sequences that they form.

Words are runs of letters, digits and marks after Unicode NFKC and case folding; in scripts without spaces every
character is a word. Shapes: N texts,
W words of all texts together.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain

import numpy as np
import xxhash
from numpy.typing import NDArray

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters."""
_LAST_MARK = 0x1FFFF
"""No combining mark comes after it but variation selectors, which say nothing."""
_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


class HashedWords:
    """The words of some texts; a text without any counts as a word of its own."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = [_words(text) for text in texts]
        self._length_N = np.fromiter(map(len, words), np.int64, len(words))
        count = int(self._length_N.sum())
        self._hash_W = np.fromiter(map(_hash, chain.from_iterable(words)), np.uint64, count)
        self._first_N = np.cumsum(self._length_N) - self._length_N
        self._row_W = np.repeat(np.arange(len(texts)), self._length_N)
        self._place_W = np.arange(count) - self._first_N[self._row_W]

    def whole(self) -> Hashes:
        """A hash of each text's words in their order, (N,)."""
        if not len(self._first_N):
            return self._hash_W
        powers = _powers(int(self._length_N.max()))
        return np.asarray(np.add.reduceat(self._hash_W * powers[self._place_W], self._first_N), dtype=np.uint64)

    def sequences(self, length: int) -> tuple[Hashes, Indices]:
        """Hashes of every sequence of `length` words within a text, and the text that each stands in."""
        starts = np.flatnonzero(self._place_W + length <= self._length_N[self._row_W])
        hashes = np.zeros(len(starts), dtype=np.uint64)
        for offset, power in enumerate(_powers(length)):
            hashes += self._hash_W[starts + offset] * power
        return hashes, self._row_W[starts]


@lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    """Python's own hash of a string differs from process to process."""
    return xxhash.xxh3_64_intdigest(word.encode())


def _powers(count: int) -> Hashes:
    """The first `count` powers of the base, modulo 2^64."""
    with np.errstate(over="ignore"):
        return np.cumprod(np.full(count, _BASE, dtype=np.uint64), dtype=np.uint64)


def _words(text: str) -> list[str]:
    """At least one; a text without any is its own."""
    if text.isascii():
        return _ascii_word().findall(text.lower()) or [text.strip()]
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _word().findall(folded) or [folded.strip()]


@cache
def _ascii_word() -> re.Pattern[str]:
    return re.compile(r"\w+", re.ASCII)


@cache
def _word() -> re.Pattern[str]:
    r"""What `_words` finds; `\w` alone would end a word at each vowel sign of Hindi."""
    marks = "".join(c for c in map(chr, range(_LAST_MARK + 1)) if unicodedata.category(c) in ("Mn", "Mc"))
    return re.compile(f"[{_UNSPACED}]|(?:[^\\W{_UNSPACED}]|(?![{_UNSPACED}])[{marks}])+")
