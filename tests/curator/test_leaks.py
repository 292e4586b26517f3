"""The leak guard against sets of 13-grams in plain Python."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.leaks import MOST_OWNERS, NGRAM, LeakCounter, LeakGuard, LeakReport

PROSE = "the quick brown fox jumps over a lazy dog while seven wizards brew strong tea beside cold rivers at night"


def numbered(first, count):
    """Words that stand nowhere else."""
    return " ".join(f"word{i}" for i in range(first, first + count))


def grams(text):
    words = text.split()
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def witness(targets, rows):
    """(exact, near, overlapping) of each row and `hit` of each target, from the definition."""
    everything = [gram for target in targets for gram in grams(target)]
    union = set(everything)
    template = {gram for gram in union if everything.count(gram) > MOST_OWNERS}
    found, hit = [], [False] * len(targets)
    for row in rows:
        own = grams(row)
        exact = near = False
        for t, target in enumerate(targets):
            same = row.split() == target.split()
            telling = grams(target) - template
            held = own & telling
            contains = bool(held) and 2 * len(held) >= len(telling)
            exact, near, hit[t] = exact or same, near or contains, hit[t] or same or contains
        shared, telling = own & union, (own & union) - template
        near = not exact and (near or (bool(telling) and 2 * len(telling) >= len(own - template)))
        found.append((exact, near, bool(shared) and not exact and not near))
    return found, hit


def assert_like_the_witness(targets, rows):
    guard = LeakGuard(targets)
    found = guard.find(rows)
    expected, hit = witness(targets, rows)
    assert list(zip(found.exact, found.near, found.overlapping, strict=True)) == expected
    assert guard.hit.tolist() == hit
    return found


def texts(longest):
    """Of two words, so that sequences repeat within a row and between rows."""
    return st.lists(st.sampled_from("ab"), max_size=longest).map(" ".join)


@given(st.lists(texts(40), min_size=1, max_size=14), st.lists(texts(40), max_size=6))
def test_random_rows_of_few_words_are_judged_as_the_definition_says(targets, rows):
    assert_like_the_witness(targets, rows)


@given(st.data())
def test_rows_put_together_from_parts_of_the_target_are_judged_as_the_definition_says(data):
    words = [f"w{i}" for i in range(60)]
    part = st.tuples(st.integers(0, 59), st.integers(1, 40)).map(lambda at: words[at[0] : at[0] + at[1]])
    row = st.lists(part, min_size=1, max_size=3).map(lambda parts: " ".join(word for part in parts for word in part))
    assert_like_the_witness(
        data.draw(st.lists(row, min_size=1, max_size=5)), data.draw(st.lists(row, min_size=1, max_size=5))
    )


def test_what_was_found_does_not_depend_on_the_batches():
    targets = [numbered(0, 30), numbered(10, 30), numbered(100, 20)]
    rows = [numbered(i, 25) for i in range(0, 130, 7)]
    together = LeakGuard(targets)
    expected = together.find(rows)
    alone = LeakGuard(targets)
    found = [alone.find([row]) for row in rows]
    assert [bool(one.near[0]) for one in found] == expected.near.tolist()
    assert alone.hit.tolist() == together.hit.tolist() == [True, True, True]


def test_a_target_inside_a_longer_row_is_a_near_duplicate():
    found = assert_like_the_witness([numbered(0, 40)], [f"{numbered(500, 400)} {numbered(0, 40)} {numbered(1000, 99)}"])
    assert found.near.tolist() == [True]


def test_two_targets_with_a_common_beginning_are_both_found():
    """Each sequence belongs to every target that has it, not to the first alone."""
    targets = [f"{numbered(0, 50)} {numbered(100, 30)}", f"{numbered(0, 50)} {numbered(200, 30)}"]
    guard = LeakGuard(targets)
    guard.find([f"{numbered(900, 300)} {targets[1]}"])
    assert guard.hit.tolist() == [True, True]
    guard = LeakGuard(targets)
    guard.find([f"{numbered(900, 300)} {numbered(30, 20)} {numbered(200, 30)}"])
    assert guard.hit.tolist() == [False, True]


@pytest.mark.parametrize(("shared", "leaks"), [(30, True), (29, False)], ids=["half", "less than half"])
def test_half_of_a_rows_sequences_make_it_a_near_duplicate(shared, leaks):
    """A row of 48 words has 36 sequences; `shared` words in one piece are `shared` − 12 of them."""
    target = numbered(0, 300)
    found = assert_like_the_witness([target], [f"{numbered(100, shared)} {numbered(900, 48 - shared)}"])
    assert (found.near.tolist(), found.overlapping.tolist()) == ([leaks], [not leaks])


def test_boilerplate_is_reported_and_is_no_leak():
    licence = numbered(0, 20)
    targets = [f"{licence} {numbered(100 * t, 80)}" for t in range(1, 40)]
    rows = [f"{licence} {numbered(10_000 + 100 * r, 80)}" for r in range(30)]
    guard = LeakGuard(targets)
    found = guard.find(rows)
    assert not found.leaks.any()
    assert found.overlapping.all()
    assert not guard.hit.any()


@pytest.mark.parametrize(("num_targets", "leaks"), [(10, True), (11, False)])
def test_a_template_that_many_target_rows_share_is_no_leak(num_targets, leaks):
    """Rows that are mostly template; what they ask differs."""
    template = numbered(0, 40)
    targets = [f"{template} {numbered(100 * t, 20)}" for t in range(1, num_targets + 1)]
    rows = [f"{template} {numbered(10_000, 20)}", targets[3], f"{template} {numbered(400, 20)} more"]
    found = assert_like_the_witness(targets, rows)
    assert found.leaks.tolist() == [leaks, True, True]
    assert found.overlapping.tolist() == [not leaks, False, False]


CHANGES = {
    "case": str.upper,
    "title": str.title,
    "spaces": lambda text: "  " + text.replace(" ", "\n\t ") + "\u3000",
    "punctuation": lambda text: f"“{text.replace(' ', ', ')}!”",
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in text),
    "ligatures": lambda text: text.replace("fi", "ﬁ").replace("fl", "ﬂ"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    "text",
    [
        "fine flour",
        "Él niño está aquí, ΐ ὧδε",
        f"{PROSE} façade naïve Straße first fluent Ελληνικά",
        "हिन्दी में लिखा गया",
    ],
)
def test_the_same_words_are_equal_however_they_are_written(change, text):
    guard = LeakGuard([text, "something else"])
    assert guard.find([change(text)]).exact.tolist() == [True]
    assert guard.hit.tolist() == [True, False]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PROSE, PROSE.replace("seven", "eight")),
        ("हिन्दी में", "हन्दी में"),
        ("a b", "ab"),
        ("x = [1, 2]", "x = [1, 3]"),
        ("!!!", "???"),
        ("a b c", "c b a"),
    ],
)
def test_other_words_are_not_equal(one, other):
    found = LeakGuard([one]).find([other])
    assert not found.exact.any()


@pytest.mark.parametrize(
    "text",
    [
        "東京は日本の首都であり、世界でも有数の大都市である。人口は約千四百万人に達する。",
        "กรุงเทพมหานครเป็นเมืองหลวงและนครที่มีประชากรมากที่สุดของประเทศไทย",
        "北京是中华人民共和国的首都也是全国政治文化和国际交往中心历史悠久",
    ],
    ids=["Japanese", "Thai", "Chinese"],
)
def test_scripts_without_spaces_are_compared_by_characters(text):
    other = "これは全く別の文章であり、前のものとは何の関係もない。天気が良い日には散歩に出かけるのが好きだ。"
    found = LeakGuard([text]).find([text, other * 5 + text + other, text[:20] + other, other])
    assert found.exact.tolist() == [True, False, False, False]
    assert found.near.tolist() == [False, True, False, False]
    assert found.overlapping.tolist() == [False, False, True, False]


def test_rows_of_fewer_than_13_words_leak_only_when_they_are_equal():
    short = numbered(0, 12)
    found = LeakGuard([short, "yes"]).find([short, f"{short} more", "yes", "yes yes", numbered(0, 11)])
    assert found.exact.tolist() == [True, False, True, False, False]
    assert not found.near.any()
    assert not found.overlapping.any()


def test_empty_rows_and_no_rows_are_no_leaks():
    guard = LeakGuard([PROSE])
    found = guard.find(["", " \n", "…"])
    assert not (found.leaks | found.overlapping).any()
    assert guard.find([]).leaks.tolist() == []
    assert LeakGuard([]).find([PROSE, ""]).leaks.tolist() == [False, False]


def test_a_report_counts_by_domain_and_adds_up_over_batches():
    target = numbered(0, 40)
    leaks = LeakCounter([target, "short one"], ["first", "second", "third"])
    rows = [target, f"{numbered(100, 60)} {target}", "other", numbered(20, 14) + numbered(300, 60), "Short ONE"]
    excluded = leaks.excluded(["a", "b", "c", "d", "e"], rows, np.array([0, 1, 1, 2, 1], np.int32))
    assert excluded.tolist() == [True, True, False, False, True]
    leaks.excluded(["f"], [target], np.array([1], np.int32))
    report = leaks.report()
    assert (report.num_rows, report.num_exact, report.num_near, report.num_overlapping) == (6, 3, 1, 1)
    assert report.by_domain == {"first": 1, "second": 3}
    assert report.examples == ["a", "b", "e", "f"]
    assert (report.num_leaks, report.share) == (4, 4 / 6)
    assert str(report) == (
        "4 rows of the lake (66.67%) also stand in the target: 3 word for word, 1 nearly (second 3, first 1); left out"
    )
    assert LeakReport.from_json(report.to_json()) == report


def test_kept_rows_are_counted_and_not_excluded():
    leaks = LeakCounter([PROSE], ["one"], keep=True)
    assert leaks.excluded(["a", "b"], [PROSE, "other"], np.zeros(2, np.int32)).tolist() == [False, False]
    assert str(leaks.report()) == (
        "1 row of the lake (50.00%) also stands in the target: 1 word for word, 0 nearly (one 1); kept"
    )


def test_a_report_names_the_most_leaking_domains_and_keeps_twenty_examples():
    names = [f"d{i}" for i in range(6)]
    leaks = LeakCounter(["x"], names)
    domain = np.repeat(np.arange(6, dtype=np.int32), [1, 2, 3, 40, 5, 6])
    leaks.excluded([str(i) for i in range(57)], ["x"] * 57, domain)
    assert str(leaks.report()).endswith("(d3 40, d5 6, d4 5); left out")
    assert leaks.report().examples == [str(i) for i in range(20)]
    assert str(LeakCounter(["x"], names).report()) == "no row of the lake stands in the target"
