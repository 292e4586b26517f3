"""Lakes, targets and their test parts for the experiments, from the project's data folder (`CURATOR_DATA`).

Each builder gives rows (text, domain) of the lake, the target's rows and its test rows; all three are disjoint. What
the experiments are after is in the docstrings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(os.environ.get("CURATOR_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Parts:
    """A lake of (text, domain), its target and the target's test part; `hand` are mixtures that people would try."""

    lake: Rows
    target: list[str]
    test: list[str]
    hand: dict[str, dict[str, float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """As `lake/part.parquet`, `target.parquet` and `test.parquet`."""
        (folder / "lake").mkdir(parents=True)
        texts, domains = zip(*self.lake, strict=True)
        pq.write_table(pa.table({"text": texts, "domain": domains}), folder / "lake" / "part.parquet")
        for name, rows in (("target", self.target), ("test", self.test)):
            pq.write_table(pa.table({"text": rows}), folder / f"{name}.parquet")


def is_ready(work: Path) -> bool:
    """Whether the data are there, else says so; catalogs go to the work folder, unless `CURATOR_HOME` is set."""
    if not DATA.is_dir():
        print(f"no data in {DATA}; set CURATOR_DATA")
        return False
    os.environ.setdefault("CURATOR_HOME", str(work.resolve() / "home"))
    return True


def alike(*names: str) -> dict[str, float]:
    """Equal parts of some domains."""
    return dict.fromkeys(names, 1 / len(names))


def multilingual_easy() -> Parts:
    """Catalan among eight languages: the source in the target's language has to win."""
    parts = _languages("ca", ("ca", "es", "fr", "de", "pl", "et", "eu", "tr"))
    return Parts(*parts, hand={"ca alone": alike("ca"), "ca es fr": {"ca": 0.6, "es": 0.2, "fr": 0.2}})


def multilingual_hard() -> Parts:
    """Catalan without Catalan among twelve languages: the related ones have to win, and none alone."""
    languages = ("es", "fr", "gl", "pt", "it", "ro", "nl", "et", "tr", "pl", "de", "eu")
    return Parts(*_languages("ca", languages), hand={"es fr gl": alike("es", "fr", "gl")})


def domains() -> Parts:
    """Ten kinds of English text, biomedical abstracts as the target, which none of them is."""
    lake = [(text, file.stem) for file in sorted((DATA / "domains").glob("*.parquet")) for text in _texts(file)]
    target, test = (_texts(DATA / "domains_target" / f"biomedical_{part}.parquet") for part in ("val", "test"))
    hand = {
        "medquad cs": alike("medquad", "cs_abstracts"),
        "medquad cs wikipedia speeches": alike("medquad", "cs_abstracts", "wikipedia", "speeches"),
    }
    return Parts(lake, target, test, hand)


def instruct(num_domains: int | None = None) -> Parts:
    """Twelve kinds of instructions, GSM8K's word problems as the target; none of them is GSM8K.

    `num_domains` leaves that many of the twelve, flan_cot's word problems always among them.
    """
    lake: Rows = []
    for domain, texts in _by_domain(("gpteacher", "flan_cot", "text2sql", "nl2bash")).items():
        lake += [(text, domain) for text in _up_to(500_000, _shuffled(texts, 3))]
    target = _shuffled([text for text, _ in _instructions("gsm8k")], 4)[:400]
    names = sorted({domain for _, domain in lake}, key=lambda name: (name != "flan_cot_aqua", name))
    kept = set(names[:num_domains])
    lake = [(text, domain) for text, domain in lake if domain in kept]
    return Parts(lake, target, [text for text, _ in _instructions("gsm8k_test")])


def dutch() -> Parts:
    """Dutch without Dutch among thirteen languages; nothing of the product was chosen by looking at it."""
    languages = ("de", "en", "fr", "es", "pt", "it", "ro", "pl", "et", "tr", "eu", "gl", "ca")
    return Parts(*_languages("nl", languages), hand={"de en": alike("de", "en")})


def reviews() -> Parts:
    """Nine kinds of English text, film reviews, which are none of them, as the target; nothing was chosen by it."""
    files = sorted((DATA / "domains").glob("*.parquet"))
    lake = [(text, file.stem) for file in files if file.stem != "movie_reviews" for text in _texts(file)]
    rows = _shuffled(_texts(DATA / "domains" / "movie_reviews.parquet"), 5)
    return Parts(lake, rows[:105], rows[105:], hand={"austen speeches": alike("austen", "speeches")})


def code() -> Parts:
    """Twelve kinds of instructions, GPTeacher's coding tasks, which are none of them, as the target; as above."""
    lake: Rows = []
    by_domain = _by_domain(("gpteacher", "flan_cot", "text2sql", "nl2bash", "gsm8k"))
    rows = _shuffled(by_domain.pop("gpteacher_code"), 6)
    for domain, texts in by_domain.items():
        lake += [(text, domain) for text in _up_to(500_000, _shuffled(texts, 3))]
    hand = {"bash toolformer": alike("nl2bash_bash", "gpteacher_toolformer")}
    return Parts(lake, rows[:400], rows[400:1400], hand)


def denoise() -> Parts:
    """Half of the rows clean, a sixth each with another row's response, scrambled words and random characters."""
    return with_noise(0.5)


def with_noise(share: float) -> Parts:
    """`denoise` with that share of the rows damaged, a third of them in each way."""
    pairs, target, test = clean_pairs()
    rng = np.random.default_rng(10)
    num_damaged = round(share * len(pairs))
    lake: Rows = []
    for place, (instruction, response) in enumerate(pairs):
        kind = ("mispaired", "scrambled", "characters")[place % 3] if place < num_damaged else "clean"
        if kind == "mispaired":
            response = pairs[(place + 600) % len(pairs)][1]
        elif kind != "clean":
            response = damaged(response, kind, rng)
        lake.append((f"{instruction}\n{response}", kind))
    return Parts(lake, target, test, hand={"clean alone": alike("clean")})


def partitions() -> Parts:
    """The paper's denoising: ten partitions, a row of partition i corrupted with probability min(1, .2·i)."""
    pairs, target, test = clean_pairs()
    rng = np.random.default_rng(11)
    lake: Rows = []
    for place, (instruction, response) in enumerate(pairs):
        partition = place % 10
        if rng.random() < min(1.0, 0.2 * partition):
            response = damaged(response, "characters", rng)
        lake.append((f"{instruction}\n{response}", f"part-{partition}"))
    return Parts(lake, target, test)


BUILDERS: dict[str, Callable[[], Parts]] = {
    "denoise": denoise,
    "partitions": partitions,
    "multilingual-easy": multilingual_easy,
    "multilingual-hard": multilingual_hard,
    "domains": domains,
    "instruct": instruct,
    "dutch": dutch,
    "reviews": reviews,
    "code": code,
}


def clean_pairs() -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """6,000 short instruction pairs for the lake, 600 rows of the target and 2,000 of the test part."""
    pairs = []
    for name in ("gsm8k", "gpteacher", "flan_cot"):
        table = pq.read_table(DATA / "instruct" / f"{name}.parquet")
        both = zip(table["instruction"].to_pylist(), table["response"].to_pylist(), strict=True)
        pairs += [(a, b) for a, b in both if 0 < len(b) <= 300 and len(a) <= 400]
    pairs = _shuffled(pairs, 10)
    target, test = ([f"{a}\n{b}" for a, b in part] for part in (pairs[:600], pairs[600:2600]))
    return pairs[2600:8600], target, test


def damaged(text: str, kind: str, rng: np.random.Generator) -> str:
    """With its words in random order, or 30 % of its characters replaced by others of the printable ones."""
    if kind == "scrambled":
        return " ".join(rng.permutation(np.array(text.split(" "), dtype=object)))
    hit = rng.random(len(text)) < 0.3
    return "".join(chr(rng.integers(32, 127)) if bad else char for char, bad in zip(text, hit, strict=True))


def _languages(target: str, sources: Sequence[str]) -> tuple[Rows, list[str], list[str]]:
    """About 500,000 characters of each source; 600 rows of the target, 2,000 of its test part."""
    rows = _shuffled(_texts(DATA / "multilingual" / f"{target}.parquet"), 1)
    lake: Rows = []
    for source in sources:
        own = rows[2600:] if source == target else _shuffled(_texts(DATA / "multilingual" / f"{source}.parquet"), 2)
        lake += [(text, source) for text in _up_to(500_000, own)]
    return lake, rows[:600], rows[600:2600]


def _texts(path: Path) -> list[str]:
    return pq.read_table(path, columns=["text"])["text"].to_pylist()


def _instructions(name: str) -> list[tuple[str, str]]:
    """(Instruction and response, domain) of every row."""
    table = pq.read_table(DATA / "instruct" / f"{name}.parquet")
    columns = (table[column].to_pylist() for column in ("instruction", "response", "domain"))
    return [(f"{instruction}\n{response}", domain) for instruction, response, domain in zip(*columns, strict=True)]


def _by_domain(names: Iterable[str]) -> dict[str, list[str]]:
    """All rows of these files, under file_domain."""
    found: dict[str, list[str]] = {}
    for name in names:
        for text, domain in _instructions(name):
            found.setdefault(f"{name}_{domain}", []).append(text)
    return found


def _shuffled(rows: Sequence, seed: int) -> list:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _up_to(num_chars: int, texts: Iterable[str]) -> list[str]:
    """The first texts that make up about that many characters."""
    taken, total = [], 0
    for text in texts:
        taken.append(text)
        total += len(text)
        if total >= num_chars:
            break
    return taken
