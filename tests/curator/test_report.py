"""A page about a run: its figures are the record's, hostile names stay text, nothing is asked of the network."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lake_cases import curator as command
from lake_cases import refusal, values_of
from report_cases import (
    RUN_ID,
    a_comparison,
    a_record,
    contrast,
    lake_with,
    parsed,
    some_steps,
    table,
)

import curator
from connectors.store import open_store
from curator import trajectory
from curator.errors import ConfigError, StorageError
from curator.report.advice import Compared, Findings, advice
from curator.report.charts import Line, lines_chart
from curator.report.steps import read_steps
from curator.report.svg import Axis
from curator.report.text import breadth, brief, fitted, shown

HOSTILE = (
    "<script>document.title='taken'</script>",
    '"><img src=http://127.0.0.1:9/x onerror=alert(1)>',
    "</title></style></svg><script>alert(1)</script>",
    "]]><svg onload=alert(1)>",
    "&lt;b&gt; &#x202e;",
    "\u202eevil\u2066 \u200bhidden",
    "line\nbreak\ttab\x00\x1b[31m",
    "{{ 7 * 7 }}{% raw %}",
    "עברית (a)",
    "\ud800",
    "x" * 1_000_000,
)


def report_on(tmp_path, record, steps=(), comparisons=(), **settings):
    """(what was returned, the page as it was written)."""
    with curator.open_lake(str(lake_with(tmp_path, record, steps, comparisons))) as lake:
        done = lake.run("latest").report(tmp_path / "report.html", **settings)
    return done, (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report with everything that there can be on it, as (record, comparison, result, page)."""
    record, compared = a_record(), a_comparison()
    done, page = report_on(tmp_path_factory.mktemp("whole"), record, some_steps(300, 3), [compared])
    return record, compared, done, page


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """A page in which every domain, a mixture, the target and the verdict are hostile."""
    names = [*HOSTILE, "plain"]
    record = a_record(names)
    record["target"]["url"] = record["verdict"]["reason"] = record["learn"]["model"] = HOSTILE[0]
    record["leaks"]["examples"] = list(HOSTILE)
    record["line_search"] = None
    steps = some_steps(40, len(names))
    comparisons = [
        a_comparison(name, comparison_id=f"c{number}", most_repeated=name) for number, name in enumerate(HOSTILE[:5])
    ]
    folder = tmp_path_factory.mktemp("hostile")
    lake = lake_with(folder, record, [], comparisons)
    home = lake / "_curator" / "runs" / RUN_ID
    record_names = [row["domain"].encode(errors="replace").decode() for row in record["domains"]]
    (home / "trajectory.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    trajectory.write(home, RUN_ID, record_names)  # Parquet refuses the lone surrogate, JSON does not
    with curator.open_lake(str(lake)) as opened:
        opened.run("latest").report(folder / "report.html")
    return folder / "report.html"


def test_the_domain_table_has_the_figures_of_the_record(whole):
    record, _, _, page = whole
    rows = table(parsed(page), "All domains")
    expected = [
        [
            row["domain"],
            f"{row['natural_share']:.3f}",
            f"{row['domain_weight']:.3f}",
            f"{row['ci_low']:.3f} … {row['ci_high']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['num_samples']:,}",
            f"{row['num_tokens']:,}",
            f"{row['tokens_seen']:,}",
        ]
        for row in reversed(record["domains"])
    ]
    assert [row[:-1] for row in rows[1:]] == expected
    gap_TD = np.array([step["gaps"] for step in some_steps(300, 3)])[1:]
    assert [row[-1] for row in rows[1:]] == [f"{gap:+.3f}" for gap in gap_TD.mean(axis=0)[::-1]]
    assert table(parsed(page), "To be seen more often")[1:] == [["mail", "1.50"]]
    assert table(parsed(page), "To be seen less often")[1:] == [["news", "0.50"]]


def test_verdict_line_search_leaks_and_provenance_are_those_of_the_record(whole):
    record, _, _, page = whole
    tree = parsed(page)
    said = tree.text
    assert record["verdict"]["reason"] in said
    assert "-0.169 nats per token, 95 % interval -0.269 … -0.069, which excludes 0: it is taken" in said
    assert table(tree, "What was tried")[1:] == [
        ["0 (prior)", "6.188", "5", "", ""],
        ["0.5", "6.083", "5", "-0.169", "taken"],
        ["1", "6.160", "3", "-0.041", ""],
    ]
    assert "Of 9,009 rows that were looked at: 5 rows of the lake (0.06%) also stand in the target" in said
    assert table(tree, "Leaking rows by domain")[1:] == [["news", "5"]]
    tiles = {tile.all("dt")[0].text: [each.text for each in tile.all("dd")] for tile in tree.all("dl")[0].all("div")}
    assert tiles["Target loss of w"] == ["4.781", "6.924 at the start"]
    assert tiles["Signal to noise"] == ["8.5", "by chance up to 3.1"]
    assert tiles["Time"] == ["5 min", "6,201,018 tokens of compute"]
    facts = dict(table(tree, "The run")[1:])
    assert facts["run"] == RUN_ID
    assert (facts["seed"], facts["snapshot"], facts["layout"]) == ("17", "448baf21d3c3", "TP=1 PP=1 DP=2")
    assert facts["software"] == "torch 2.13.0, megatron-core 0.16.1"
    assert ["learning_rate", "0.1"] in table(tree, "Settings: learn.weights")


def test_a_comparison_is_shown_as_it_says_itself(whole):
    _, compared, done, page = whole
    tree = parsed(page)
    assert table(tree, "Mixtures")[1:] == [result.cells for result in compared.ranked]
    assert compared.conditions in tree.text
    assert compared["learned"].sentence in tree.text
    assert done.comparisons == [compared.comparison_id]


def test_comparisons_are_the_newest_first_and_only_those_with_the_run(tmp_path):
    others = f"20261125T075016-d5839a,{RUN_ID},20261125T075019-eec555"
    compared = [
        a_comparison("one", comparison_id="c1", created_at="2026-11-25T13:00:00+00:00"),
        a_comparison("two", run_id="another", comparison_id="c2", created_at="2026-11-25T14:00:00+00:00"),
        a_comparison("three", run_id=others, comparison_id="c3", created_at="2026-11-25T15:00:00+00:00"),
    ]
    done, page = report_on(tmp_path, a_record(), (), compared)
    assert done.comparisons == ["c3", "c1"]
    assert "three is this run and 2 others" in page
    assert "Comparison c2" not in page


def test_charts_draw_every_domain_at_its_weight(whole):
    record, _, _, page = whole
    charts = [svg for svg in parsed(page).all("svg") if svg.all("title")[0].text.startswith("Learned weight")]
    assert [chart.attributes["class"] for chart in charts] == ["wide", "narrow"]
    weights = sorted((row["domain_weight"] for row in record["domains"]), reverse=True)
    for chart in charts:
        bars = [float(rect.attributes["width"]) for rect in chart.all("rect")]
        np.testing.assert_allclose(np.array(bars) / bars[0], np.array(weights) / weights[0], rtol=1e-3)
        assert [text.text for text in chart.all("text") if "value" in (text.attributes.get("class") or "")] == [
            f"{weight:.3f}" for weight in weights
        ]


def test_the_page_is_marked_up_for_every_reader(whole):
    tree = parsed(whole[3])
    (html,) = tree.all("html")
    assert html.attributes["lang"] == "en"
    levels = [int(node.name[1]) for node in tree.all("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [node.attributes["id"] for node in tree.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert all(each.all("caption") for each in tree.all("table"))
    assert all(head.attributes["scope"] in ("row", "col") for head in tree.all("th"))
    assert [svg.attributes.get("class") for svg in tree.all("svg")].count("narrow") == len(tree.all("svg")) - 6
    for svg in tree.all("svg"):
        assert svg.attributes["role"] == "img"
        assert {svg.attributes["aria-labelledby"], svg.attributes["aria-describedby"]} <= set(ids)
        assert all(child.text for child in svg.all("title", "desc"))
    anchors = [node.attributes["href"] for node in tree.all("a")]
    assert anchors
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(ids)


def test_colours_can_be_told_from_what_they_lie_on():
    style = files("curator.report").joinpath("page.css").read_text()
    light, dark, _ = (
        dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for ground in ("paper", "card"):
            for name in ("ink", "soft", "good", "mixed", "bad", "idle", "spelled", "c0"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground)
            for number in range(8):
                assert contrast(scheme[f"c{number}"], scheme[ground]) >= 3, (number, ground)


def test_the_page_asks_for_nothing_beyond_itself(whole, hostile_page):
    for page in (whole[3], hostile_page.read_text(encoding="utf-8")):
        tree = parsed(page)
        (policy,) = [node for node in tree.all("meta") if "http-equiv" in node.attributes]
        assert policy.attributes["http-equiv"] == "Content-Security-Policy"
        assert policy.attributes["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
        for node in tree.all():
            for name, value in node.attributes.items():
                assert name not in ("src", "srcset", "style", "action", "data", "xmlns")
                assert name != "href" or value.startswith("#") or value == "data:,"
        (style,) = tree.all("style")
        assert not re.search(r"url\(|@import|https?:", style.text)


def test_hostile_names_are_text_and_nothing_else(hostile_page):
    page = hostile_page.read_text(encoding="utf-8")
    assert len(page) < 400_000
    tree = parsed(page)
    used = {node.name for node in tree.all()}
    assert not used & {"script", "img", "iframe", "object", "embed", "form", "b"}
    assert all(not name.startswith("on") for node in tree.all() for name in node.attributes)
    assert all(char.isprintable() or char == "\n" for char in page)
    rows = table(tree, "All domains")[1:]
    names = {row[0] for row in rows}
    assert {*HOSTILE[:5], *HOSTILE[7:9]} <= names
    assert r"\u202eevil\u2066 \u200bhidden" in names
    assert r"line\nbreak\ttab\x00\x1b[31m" in names
    assert r"\ud800" in names
    assert f"{'x' * 200}… (1,000,000 characters)" in names
    body = [node for node in tree.all("table")[0].all("th") if node.attributes["scope"] == "row"]
    assert all(cell.children[0].name == "bdi" for cell in body)


def test_a_run_without_steps_or_a_line_search_says_nothing_of_them(tmp_path):
    record = a_record(summary=None, backend=None, compute_tokens=0.0, line_search=None)
    record["learn"] = {"method": "dsir", "model": "tiny", "steps": 300, "seed": 0}
    for row in record["domains"]:
        row |= {"ci_low": None, "ci_high": None, "tokens_seen": None}
    _, page = report_on(tmp_path, record)
    tree = parsed(page)
    assert [node.text for node in tree.all("h2")] == [
        "The weights were found, but nothing has shown yet that they help",
        "What to do next",
        "Domain weights",
        "Leaks",
        "Provenance",
    ]
    assert table(tree, "All domains")[0] == ["domain", "natural share", "learned weight", "ratio", "rows", "tokens"]


def test_a_record_of_before_leaks_and_methods_were_known_has_a_report(tmp_path):
    record = {key: value for key, value in a_record().items() if key not in ("leaks", "line_search", "compute_tokens")}
    record["learn"] = {key: value for key, value in record["learn"].items() if key not in ("method", "weights")}
    _, page = report_on(tmp_path, record, some_steps(5, 3))
    assert "Leaks" not in [node.text for node in parsed(page).all("h2")]
    assert "w is the copy that sees the target" in page


def test_many_domains_are_cut_with_a_note(tmp_path):
    names = [f"d{number:04}" for number in range(1000)]
    _, page = report_on(tmp_path, a_record(names), some_steps(3, 1000))
    tree = parsed(page)
    rows = table(tree, "The 100 domains with the largest weights and the 100 with the smallest; 800 between them")
    assert [rows[1][0], rows[-1][0], len(rows)] == ["d0999", "d0000", 201]
    assert "The first 24 of 1,000 domains." in page
    assert "Grey: the other 52 domains shown of 1,000." in page
    assert len(page) < 300_000


@pytest.mark.parametrize(("num_steps", "stretch"), [(7, 1), (300, 1), (301, 2), (1000, 4)])
def test_steps_are_means_over_stretches(tmp_path, num_steps, stretch):
    steps = some_steps(num_steps, 3)
    for step in steps[::7]:
        step["gaps"] = None
    record = a_record()
    lake = lake_with(tmp_path, record, steps)
    found = read_steps(open_store(str(lake / "_curator")), RUN_ID, ["news", "code", "mail"])
    assert found.stretch == stretch
    first = [number * stretch for number in range(-(-num_steps // stretch))]
    weight_TD = np.array([step["weights"] for step in steps])
    np.testing.assert_allclose(found.weights_PD, [weight_TD[at : at + stretch].mean(axis=0) for at in first])
    np.testing.assert_allclose(found.step_P, [np.mean(range(at, min(at + stretch, num_steps))) for at in first])
    aux = [[s["aux_val_loss"] for s in steps[at : at + stretch] if s["aux_val_loss"] is not None] for at in first]
    np.testing.assert_allclose(found.aux_val_loss_P, [np.mean(part) if part else np.nan for part in aux])
    gap_TD = np.array([step["gaps"] for step in steps if step["gaps"]])
    np.testing.assert_allclose(found.gap_D, gap_TD.mean(axis=0))


def test_damaged_steps_are_named(tmp_path):
    lake = lake_with(tmp_path, a_record(), some_steps(3, 3))
    path = lake / "_curator" / "runs" / RUN_ID / "trajectory.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with curator.open_lake(str(lake)) as opened, pytest.raises(StorageError, match=r"trajectory\.parquet is damaged"):
        opened.run(RUN_ID).report(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


FOUND = Findings(
    status="converged",
    num_domains=3,
    is_stepwise=True,
    place=1.0,
    compared=None,
    num_leaks_kept=0,
    steps=300,
    weights_rate=0.1,
    budget_tokens=10**9,
    versions=(),
    lake="lake",
    run_id="r1",
    target="t.parquet",
    options="",
)
BETTER = Compared(judgement="better", low=-0.3, high=-0.1, num_seeds=3)
WORSE = Compared(judgement="worse", low=0.1, high=0.3, num_seeds=3)
NO_GAIN = Compared(judgement="no gain", low=-0.009, high=0.071, num_seeds=3)
OPEN = Compared(judgement="no gain", low=-0.239, high=0.071, num_seeds=3)
PUBLISH = "curator publish lake --run r1"
LEARN = "curator learn lake --target t.parquet --steps 600"
COMPARE = "curator compare lake --target t.parquet --test TEST.parquet --mixture natural --mixture r1"


@pytest.mark.parametrize(
    ("changes", "tone", "headline", "first", "commands"),
    [
        ({}, "good", "The weights settled, and models", "Publish these weights", [PUBLISH, COMPARE]),
        ({"compared": BETTER}, "good", "The weights settled, and models", "Publish these weights", [PUBLISH]),
        (
            {"versions": (2, 3)},
            "good",
            "The weights settled, and",
            "Train on the published weights (versions 2, 3)",
            [COMPARE],
        ),
        ({"compared": WORSE}, "bad", "The weights settled, but the newest", "Do not train on these weights", []),
        (
            {"compared": NO_GAIN},
            "bad",
            "The weights settled, but the newest comparison found no gain over",
            "Do not train on these weights",
            [],
        ),
        (
            {"compared": OPEN},
            "mixed",
            "The weights settled, and models trained on them beat those of the prior, but the newest comparison leaves "
            "open whether they beat equal parts of all domains: 95 % interval [-0.239, +0.071] nats per token over 3 "
            "seeds",
            "Before you rely on these weights, compare them again on more test rows or with more seeds",
            [f"{COMPARE} --seeds 6"],
        ),
        (
            {"compared": OPEN, "place": None},
            "mixed",
            "The weights settled, but the newest comparison leaves open whether they beat equal parts of all domains",
            "Before you rely on these weights, compare them again",
            [f"{COMPARE} --seeds 6"],
        ),
        (
            {"compared": OPEN, "place": None, "status": "not converged"},
            "bad",
            "The weights had not settled, and the newest comparison leaves open",
            "Before you rely on these weights, compare them again",
            [LEARN, f"{COMPARE} --seeds 6"],
        ),
        (
            {"compared": OPEN, "place": 0.0, "status": "no gain"},
            "idle",
            "No gain: the weights are those that the run began with",
            "There is nothing to publish",
            [],
        ),
        ({"place": None}, "mixed", "The weights settled, but nothing", "Compare these weights", [COMPARE]),
        (
            {"place": None, "is_stepwise": False},
            "mixed",
            "The weights were found, but",
            "Compare these weights",
            [COMPARE],
        ),
        (
            {"place": None, "compared": BETTER},
            "good",
            "The weights settled, and",
            "Publish these weights",
            [PUBLISH],
        ),
        (
            {"status": "not converged"},
            "mixed",
            "The weights had not settled, but models",
            "Publish these weights and train on them; learn again with more steps (learn.steps; this run had 300)",
            [PUBLISH, LEARN, COMPARE],
        ),
        (
            {"status": "not converged", "place": None},
            "bad",
            "The weights had not settled, and nothing",
            "Do not use these weights yet: learn again with more steps",
            [LEARN, COMPARE],
        ),
        (
            {"status": "unstable", "place": None},
            "bad",
            "The run was not stable, and nothing",
            "Do not use these weights yet: learn again with a learning rate of the data weights below 0.1",
            [COMPARE],
        ),
        (
            {"status": "no gain", "place": 0.0},
            "idle",
            "No gain",
            "There is nothing to publish",
            [COMPARE.removesuffix(" --mixture r1")],
        ),
    ],
)
def test_advice_follows_from_the_verdict(changes, tone, headline, first, commands):
    given = advice(dataclasses.replace(FOUND, **changes))
    assert given.tone == tone
    assert given.headline.startswith(headline)
    assert given.sentences[0].startswith(first)
    assert list(given.commands) == commands
    assert 1 <= len(given.sentences) <= 3


@pytest.mark.parametrize(
    ("changes", "tone", "headline", "commands"),
    [
        ({}, "mixed", "The rows were weighed, but", [PUBLISH, "curator materialize lake --top-k 0.5 --out HEAVIER"]),
        ({"versions": (1,)}, "mixed", "The rows were", ["curator materialize lake --top-k 0.5 --out HEAVIER"]),
        (
            {"status": "no gain"},
            "idle",
            "No gain: nothing but noise",
            ["curator learn lake --target t.parquet --granularity sample --steps 600"],
        ),
        ({"status": "unstable"}, "bad", "The run was not stable", []),
    ],
)
def test_advice_on_the_rows_of_one_domain_names_no_mixture(changes, tone, headline, commands):
    of_rows = {"num_domains": 1, "place": None, "num_leaks_kept": 2, "options": " --granularity sample"}
    given = advice(dataclasses.replace(FOUND, **of_rows, **changes))
    assert (given.tone, list(given.commands)) == (tone, commands)
    assert given.headline.startswith(headline)
    assert len(given.sentences) == 2
    assert "mixture" not in " ".join(given.sentences)
    assert given.sentences[1].startswith("The lake kept 2 rows")


def test_leaks_that_were_kept_and_a_missing_budget_are_told():
    kept = advice(dataclasses.replace(FOUND, num_leaks_kept=5, budget_tokens=None)).sentences
    assert kept[-1].startswith("The lake kept 5 rows that also stand in the target")
    unnamed = advice(dataclasses.replace(FOUND, budget_tokens=None)).sentences
    assert unnamed[-1].startswith("Name the tokens that you will train on")
    assert "Name the tokens" not in " ".join(advice(FOUND).sentences)


def test_commands_name_a_lake_with_spaces_and_its_destination(tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    lake = lake_with(folder, a_record())
    (lake / "_curator").rename(folder / "else where")
    with curator.open_lake(str(lake), destination=str(folder / "else where")) as opened:
        done = opened.run("latest").report(tmp_path / "report.html")
    assert done.commands[0] == f"curator publish '{lake}' --destination '{folder / 'else where'}' --run {RUN_ID}"


def test_learning_again_keeps_what_the_run_was_begun_with(tmp_path):
    record = a_record()
    record["verdict"]["status"] = "not converged"
    record["learn"] |= {"granularity": "sample", "method": "scalebio", "blocks": {"size": 2}}
    record["target"]["text"] = "its body"
    with curator.open_lake(str(lake_with(tmp_path, record))) as opened:
        commands = opened.run("latest").report(tmp_path / "report.html").commands
    kept = "--granularity sample --seed 17 --block-size 2 --target-text 'its body' --steps 600"
    assert f"curator learn {tmp_path / 'lake'} --target /targets/some.parquet {kept}" in commands


def test_a_file_that_is_there_is_kept_unless_it_may_go(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    lake = lake_with(tmp_path, a_record())
    with curator.open_lake(str(lake)) as opened:
        run = opened.run("latest")
        with pytest.raises(ConfigError, match="is there already"):
            run.report(tmp_path / "report.html")
        assert (tmp_path / "report.html").read_text() == "mine"
        dry = run.report(tmp_path / "report.html", overwrite=True, dry_run=True)
        assert (tmp_path / "report.html").read_text() == "mine"
        done = run.report(tmp_path / "report.html", overwrite=True)
        assert done.size_bytes == (tmp_path / "report.html").stat().st_size
        assert dataclasses.replace(dry, size_bytes=0) == dataclasses.replace(done, size_bytes=0)
        with pytest.raises(ConfigError, match="its folder does not exist"):
            run.report(tmp_path / "nowhere" / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "report.html"]


def test_the_command_reports_on_a_learned_run(learned, tmp_path):
    asked = ["report", learned.lake, "--out", tmp_path / "page.html"]
    done = values_of(command(tmp_path, *asked, "--json"))
    assert (done["status"], done["run_id"]) == ("ok", learned.run_id)
    tree = parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    with curator.open_lake(str(learned.lake)) as lake:
        domains = lake.run(learned.run_id).record["domains"]
    rows = {row[0]: row[2] for row in table(tree, "All domains")[1:]}
    assert rows == {row["domain"]: f"{row['domain_weight']:.3f}" for row in domains}
    assert {"How the weights moved", "Loss on the target", "Gap of each domain"} <= {h.text for h in tree.all("h2")}
    assert "is there already" in refusal(command(tmp_path, *asked), 2)
    shown_ = command(tmp_path, *asked, "--overwrite", "--dry-run").stdout
    assert done["headline"] in shown_
    assert "would write" in shown_
    assert all(line in shown_ for line in done["commands"])
    assert "the nearest is" in refusal(command(tmp_path, "report", learned.lake, "--run", "other"), 2)


@given(st.text(max_size=60), st.integers(1, 40))
def test_text_is_shown_whole_and_inert(text, columns):
    tree = parsed(str(shown(text)))
    assert {node.name for node in tree.all()} <= {"bdi", "span"}
    assert tree.text.isprintable()
    assert tree.text == "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert len(brief(text, columns)) <= columns
    assert brief(text, columns).isprintable()
    assert breadth(fitted(text, columns)) <= columns
    assert fitted(text, 2.0 * len(repr(text)) + 2) == brief(text, 10_000)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.integers(2, 10))
def test_an_axis_has_room_for_all_and_few_round_ticks(values, most):
    axis = Axis.over(values, 100.0, 500.0)
    assert all(100 - 1e-6 <= axis(value) <= 500 + 1e-6 for value in values)
    ticks = axis.ticks(most)
    assert len(ticks) <= most + 1
    assert ticks == sorted(set(ticks))


def test_names_of_lines_do_not_lie_on_each_other():
    lines = [Line(label=f"n{d}", points=[(0, 1.0), (1, 0.001 * d)], colour=f"c{d}") for d in range(8)]
    charts = parsed(str(lines_chart("x", "t", "d", lines, x_name="step", y_name="y"))).all("svg")
    assert [chart.attributes["class"] for chart in charts] == ["wide", "narrow"]
    for chart in charts:
        labels = [text for text in chart.all("text") if re.fullmatch(r"n\d", text.text)]
        places = [float(text.attributes["y"]) for text in labels]
        assert [text.text for text in labels] == [f"n{d}" for d in range(7, -1, -1)]
        assert all(below - above >= 16 for above, below in itertools.pairwise(places))
        height = float(chart.attributes["viewbox"].split()[3])
        assert places[-1] <= height - 4
