import os
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.words import HashedWords

TEXTS = st.lists(st.text("ab 水火,", max_size=12), max_size=6)


def words_of(text):
    """As the module's docstring says, for the characters used here."""
    spaced = "".join(f" {c} " if c in "水火" else " " if c in " ," else c for c in text)
    return spaced.split() or [text.strip()]


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_equal_sequences_have_equal_hashes_and_others_do_not(texts):
    words = [words_of(text) for text in texts]
    hashed = HashedWords(texts)
    for length in (1, 2, 3):
        hashes, row = hashed.sequences(length)
        expected = [(tuple(w[i : i + length]), n) for n, w in enumerate(words) for i in range(len(w) - length + 1)]
        assert row.tolist() == [n for _, n in expected]
        name = {}
        for (sequence, _), value in zip(expected, hashes.tolist(), strict=True):
            assert name.setdefault(sequence, value) == value
        assert len(set(name.values())) == len(name)
    whole = dict(zip(map(tuple, words), hashed.whole().tolist(), strict=True))
    assert len(set(whole.values())) == len(whole)


def test_case_and_forms_of_a_character_make_no_difference():
    first, second = HashedWords(["Straße ﬁn", "STRASSE fin"]).whole()
    assert first == second


def test_hashes_are_the_same_in_every_process():
    program = "from curator.words import HashedWords; print(*HashedWords(['to be or', 'not to be']).sequences(2)[0])"
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {" ".join(map(str, HashedWords(["to be or", "not to be"]).sequences(2)[0])).encode() + b"\n"}
    assert HashedWords([]).whole().dtype == np.uint64
