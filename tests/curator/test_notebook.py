"""What notebooks show: figures of the objects, and hostile names as text and nothing else."""

import re
from html.parser import HTMLParser

import pytest
from lake_cases import write_rows
from report_cases import a_comparison, a_record

import curator
from curator.run import Run

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=https://example.com/x onerror=alert(1)>",
    "a & b \"c\" 'd' <!-- ",
    "&lt;script&gt;",
    "\u202eevil",
]
PLAIN = {"div", "p", "b", "table", "thead", "tbody", "tr", "td", "th"}


class Page(HTMLParser):
    """The tags, attributes and cells of a page, as a browser would see them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = set(), [], [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self._open.append(tag)
        self.texts.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts[-1] += data


@pytest.fixture
def lake(tmp_path):
    write_rows(tmp_path / "lake" / "a.parquet", text=["x"], domain=["y"])
    with curator.open_lake(tmp_path / "lake", text=HOSTILE[0], domain=HOSTILE[1]) as opened:
        yield opened


def page_of(shown):
    page = Page(shown._repr_html_())
    assert page.tags <= PLAIN
    assert page.attributes == []
    return page


def test_a_run_shows_its_verdict_and_its_domains_largest_weight_first(lake):
    page = page_of(Run(lake, a_record(("news", "code"))))
    cells = page.texts
    assert cells.index("code") < cells.index("news")
    assert cells[cells.index("code") : cells.index("code") + 5] == ["code", "0.500", "0.667", "0.600 … 0.733", "1.333"]
    assert any(text.startswith("converged") for text in cells)


def test_names_that_are_hostile_are_text(lake):
    record = a_record(HOSTILE)
    record["verdict"] = {"status": "converged", "reason": HOSTILE[1]}
    for shown in (Run(lake, record), a_comparison(HOSTILE[0], comparison_id=HOSTILE[1]), lake):
        texts = page_of(shown).texts
        assert any(HOSTILE[0] in text for text in texts)
        assert any(HOSTILE[1] in text for text in texts)
    assert {*HOSTILE[:-1], r"\u202eevil"} <= set(page_of(Run(lake, record)).texts)


def test_many_domains_and_long_names_stay_small(lake):
    shown = Run(lake, a_record([f"{d:04}{'x' * 5000}" for d in range(300)]))._repr_html_()
    assert len(shown) < 20_000
    assert "280 more rows are not shown." in shown


def test_a_comparison_shows_the_best_mixture_first(lake):
    found = a_comparison()
    texts = page_of(found).texts
    assert texts.index("learned") < texts.index("uniform")
    assert set(found.sentences) <= set(texts)


def test_a_lake_is_shown_without_a_look_at_it(tmp_path):
    write_rows(tmp_path / "lake" / "a.parquet", text=["x"], domain=["y"])
    with curator.open_lake(tmp_path / "lake") as lake:
        before = sorted(path.name for path in tmp_path.rglob("*"))
        texts = page_of(lake).texts
        assert {f"Lake {tmp_path / 'lake'}", "text", "domain", "index"} <= set(texts)
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert not re.search(r"https?:", lake._repr_html_())
