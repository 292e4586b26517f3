"""The page in a real Chromium: it runs nothing, asks for nothing, and fits a phone."""

from __future__ import annotations

import json

import chromium
import pytest
from report_cases import a_comparison, lake_with_rows

import curator

PROGRAM = chromium.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM")
HOSTILE = ("<script>document.title='taken'</script>", '"><img src=http://127.0.0.1:9/x>', "\u202eevil", "x" * 100_000)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    names = [*HOSTILE, "plain"]
    texts = {name: [*HOSTILE[:3], *(f"{place} {name[:40]}" for place in range(20))] for name in names}
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
    assert browser.evaluate("document.querySelectorAll('svg[role=img]').length") == 6 + len(HOSTILE) + 1


@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_never_scrolls_sideways(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBBox().x))") >= 0


def test_the_page_is_dark_where_that_is_preferred(browser, page):
    grounds = {}
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        grounds[scheme] = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert grounds == {"light": "rgb(251, 251, 250)", "dark": "rgb(21, 24, 28)"}
