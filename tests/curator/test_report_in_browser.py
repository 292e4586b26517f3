"""The page in a real Chromium: it runs nothing, asks for nothing, and fits a phone."""

from __future__ import annotations

import json
import re

import chromium
import pytest
from report_cases import a_comparison, lake_with_rows

import curator

PROGRAM = chromium.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: make chromium, or set CHROMIUM")
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
HOSTILE = (
    "<script>document.title='taken'</script>",
    '"><img src=http://127.0.0.1:9/x>',
    f"{BIDI}evil",
    "x" * 100_000,
    "W" * 40,
    "語" * 40,
    "مرحبا بالعالم",
)
LINE = "m" * 1_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    names = [*HOSTILE, "references"]
    texts = {name: [*HOSTILE[:3], LINE, *(f"{place} {name[:40]}" for place in range(20))] for name in names}
    lake = lake_with_rows(
        folder, {name: [f"{n} {text}" for text in each] for n, (name, each) in enumerate(texts.items())}
    )
    compared = lake / "_curator" / "comparisons" / "c"
    compared.mkdir(parents=True)
    (compared / "comparison.json").write_text(json.dumps(a_comparison(HOSTILE[0]).to_json()))
    with curator.open_lake(str(lake)) as opened:
        opened.run("latest").report(folder / "report.html")
    return folder / "report.html"


def asked_for(browser):
    return [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]


def said(browser):
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event for kind in kinds for event in browser.told(kind)]


def test_a_page_that_asks_and_fails_is_noticed(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<img src=http://127.0.0.1:9/x><script>console.error('a'); undefined.b</script>")
    browser.open(tmp_path / "bad.html")
    assert "http://127.0.0.1:9/x" in asked_for(browser)
    assert len(said(browser)) >= 2


def test_the_page_runs_nothing_and_asks_for_nothing(browser, page):
    browser.open(page)
    assert asked_for(browser) == [page.resolve().as_uri()]
    assert said(browser) == []
    assert browser.evaluate("document.title").startswith("Report on run")
    drawn = "[...document.querySelectorAll('svg[role=img]')].filter(each => each.checkVisibility()).length"
    assert browser.evaluate(drawn) == 6 + len(HOSTILE) + 1


WITHIN = """[...document.querySelectorAll('svg')].filter(svg => svg.checkVisibility()).flatMap(svg =>
  [...svg.querySelectorAll('text')].map(text => {
    const box = text.getBBox(), room = svg.viewBox.baseVal;
    return [Math.min(box.x, room.width - box.x - box.width), text.textContent];
  })).sort((one, other) => one[0] - other[0])"""
"""How far every text of a drawing is from its left or right edge, the nearest one first."""
APART = """[...document.querySelectorAll('svg g:has(.bar)')].filter(g => g.checkVisibility()).map(g => {
  const [label, shown] = [...g.querySelectorAll('text')].map(text => text.getBBox());
  const bar = g.querySelector('.bar').getBBox();
  return Math.min(bar.x - label.x - label.width, shown.x - bar.x - bar.width);
})"""
"""How far the label and the figure of every bar are from it."""
CUT = """[...document.querySelectorAll('h1, h2, h3, p, dt, dd, pre, caption, figcaption, li')].filter(
  each => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== 'inline'
).map(each => each.outerHTML)"""
"""What is wider than its own box, where nothing scrolls."""


@pytest.mark.parametrize("width", [360, 390, 1100])
def test_the_page_never_scrolls_sideways_and_cuts_nothing(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.evaluate("document.documentElement.clientWidth") == width
    assert browser.evaluate(CUT) == []


@pytest.mark.parametrize("width", [360, 1100])
def test_texts_of_drawings_are_inside_them_and_lie_on_nothing(browser, page, width):
    browser.open(page, width=width)
    within, apart = browser.evaluate(WITHIN), browser.evaluate(APART)
    assert len(within) > 100
    assert within[0][0] >= -0.5, within[:5]  # figures end at the edge, but for a fraction of a pixel
    assert len(apart) > 2 * len(HOSTILE)
    assert min(apart) >= 4


HIDDEN = """[...document.querySelectorAll('figure svg')].filter(svg => svg.checkVisibility())
  .map(svg => svg.getBoundingClientRect().width - svg.parentElement.clientWidth)"""
"""How much wider each chart is than its place, where one would have to scroll."""
LINES = """[...document.querySelectorAll('td bdi')].filter(bdi => bdi.innerText === 'references')
  .map(bdi => bdi.getClientRects().length)"""
"""On how many lines a short name stands in each cell of a table."""


@pytest.mark.parametrize("width", [360, 390, 700, 1100])
def test_charts_are_seen_without_a_scroll_and_short_names_are_whole(browser, page, width):
    browser.open(page, width=width)
    hidden, lines = browser.evaluate(HIDDEN), browser.evaluate(LINES)
    assert len(hidden) >= 5
    assert max(hidden) <= 0.5
    assert set(lines) == {1}


def test_a_command_is_copied_as_it_stands(browser, page):
    browser.open(page, width=360)
    copied = browser.evaluate("document.querySelector('pre code').innerText")
    assert copied.startswith("curator ")
    assert "\n" not in copied
    assert copied == browser.evaluate("document.querySelector('pre code').textContent")


def test_marks_that_turn_text_around_are_spelled_out(browser, page):
    browser.open(page)
    told = browser.evaluate("document.documentElement.outerHTML")
    assert not set(BIDI) & set(told)
    assert "\\u202e" in browser.evaluate("document.body.innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_what_is_behind_them(browser, page, scheme):
    browser.open(page, scheme=scheme)
    names = browser.evaluate(
        """(() => { const style = getComputedStyle(document.documentElement), found = {};
        for (const name of ['paper', 'card', 'ink', 'soft', 'spelled', 'good', 'mixed', 'bad', 'idle', 'c0'])
          found[name] = style.getPropertyValue('--' + name).trim();
        return found; })()"""
    )
    letters = {name for name in names if name not in ("paper", "card")}
    ratios = {(name, on): contrast(names[name], names[on]) for name in letters for on in ("paper", "card")}
    assert min(ratios.values()) >= 4.5, ratios  # WCAG 2.2, level AA


def contrast(one, other):
    """Of two colours, by WCAG."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_is_dark_where_that_is_preferred_and_white_on_paper(browser, page):
    grounds = {}
    for scheme, media in [("light", "screen"), ("dark", "screen"), ("dark", "print")]:
        browser.open(page, scheme=scheme, media=media)
        grounds[scheme, media] = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert grounds == {
        ("light", "screen"): "rgb(251, 251, 250)",
        ("dark", "screen"): "rgb(21, 24, 28)",
        ("dark", "print"): "rgb(255, 255, 255)",
    }


def test_the_page_prints_on_few_sheets_with_nothing_cut_off(browser, page):
    browser.open(page, width=718, media="print")  # A4 between margins of a centimetre
    assert browser.evaluate("document.documentElement.scrollWidth") <= 718
    wide = "[...document.querySelectorAll('.scroll')].map(each => each.scrollWidth - each.clientWidth)"
    assert max(browser.evaluate(wide)) <= 0
    browser.open(page)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF-")
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 60
    assert len(printed) < 5_000_000
