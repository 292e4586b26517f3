"""What a report says of the weights of rows, whatever stands in them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_cases import RUN_ID, a_record, lake_with, lake_with_rows, parsed, table

import curator
from curator import row_gaps
from curator.errors import StorageError

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202eevil\u2066 \u200bhidden",
    "line\nbreak\ttab \x1b[31m",
    "{{ 7 * 7 }} {% raw %}",
    "long " * 10_000,
]
TEXTS = {"news": [f"news text {i}" for i in range(8)], "<b>web": [*HOSTILE, *(f"web text {i}" for i in range(14))]}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    with curator.open_lake(str(lake_with_rows(folder, TEXTS))) as lake:
        lake.run(RUN_ID).report(folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_heaviest_and_lightest_rows_stand_with_their_texts(page):
    heaviest, lightest = table(parsed(page), "The rows that weigh most"), table(parsed(page), "The rows that weigh lea")
    assert heaviest[0] == ["text", "domain", "sample_id", "weight", "gap", "standard error"]
    assert len(heaviest) == len(lightest) == 9
    assert {row[0] for row in heaviest[1:3]} == {"news text 7", "web text 13"}
    assert [row[3] for row in heaviest[1:3]] == ["8.00", "8.00"]
    assert [row[3] for row in lightest[1:3]] == ["0.12", "0.12"]
    weights = [float(row[3]) for row in heaviest[1:]]
    assert weights == sorted(weights, reverse=True)
    (news,) = [row for row in heaviest if row[0] == "news text 7"]
    assert news[4:] == ["+0.030", "0.020"]
    assert len(news[2]) == 32


def test_texts_are_inert_and_short(page):
    tree = parsed(page)
    assert not {node.name for node in tree.all()} & {"script", "img", "b"}
    assert all(not name.startswith("on") for node in tree.all() for name in node.attributes)
    assert all(char.isprintable() or char == "\n" for char in page)
    shown = [row[0] for row in table(tree, "The rows that weigh least")[1:]]
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[4], r"\u202eevil\u2066 \u200bhidden"} <= set(shown)
    assert ("long " * 40)[:180] + "…" in shown
    assert len(page) < 400_000


def test_every_domain_has_its_histogram_with_all_its_rows(page):
    drawings = [svg for svg in parsed(page).all("svg") if svg.all("title")[0].text.startswith("Row weights of ")]
    assert [svg.all("title")[0].text for svg in drawings] == ["Row weights of <b>web", "Row weights of news"]
    for svg, num in zip(drawings, (20, 8), strict=True):
        counts = [int(rect.text.split(": ")[1].split()[0]) for rect in svg.all("rect")]
        assert sum(counts) == num
        heights = [float(rect.attributes["height"]) for rect in svg.all("rect")]
        assert [height / max(heights) for height in heights] == pytest.approx(
            [c / max(counts) for c in counts], abs=0.01
        )


def test_reliability_and_what_was_measured_are_told(page):
    assert "28 rows were measured, 50.0 % of the lake, under 6 pairs of copies" in parsed(page).text
    assert "the others keep their domain's mean. Reliability 0.43: that share of the scatter" in parsed(page).text


def test_rows_that_a_scorer_weighs_are_told_and_tables_of_older_runs_are_read(tmp_path):
    scorer = {"is_usable": True, "num_rows": 70, "spearman": 0.61, "spearman_low": 0.5, "spearman_high": 0.7}
    scorer |= {"slope": 0.912, "explained": 0.436}
    folder = lake_with_rows(tmp_path, TEXTS, more_figures={"num_scored": 1234, "num_alike": 21, "scorer": scorer})
    place = folder / "_curator" / "runs" / RUN_ID / "row_gaps.parquet"
    pq.write_table(pq.read_table(place).drop_columns(["loss"]), place)  # as runs wrote it before they kept losses
    newer = folder / "_curator" / "runs" / "20270101T000000-000000"
    newer.mkdir()
    (newer / "run.json").write_text(json.dumps(a_record(list(TEXTS), run_id=newer.name)))
    pq.write_table(
        pa.Table.from_pylist([{"run_id": newer.name, "loss": 1.5}], schema=row_gaps.SCHEMA), newer / place.name
    )
    with curator.open_lake(str(folder)) as lake:
        lake.run(RUN_ID).report(tmp_path / "report.html")
        losses = lake.sql("SELECT run_id, any_value(loss) FROM row_gaps GROUP BY 1 ORDER BY 1").fetchall()
    assert losses == [(RUN_ID, None), (newer.name, 1.5)]
    text = parsed((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "On 70 measured rows kept out its predictions rank the rows as the gaps do by Spearman 0.61 (95 %" in text
    assert "interval 0.50 to 0.70), a gap rises by 0.91 for a predicted rise of 1, and they account for 44 %" in text
    assert "1,234 more by their text. On 70" in text
    assert "repeats. 21 of the measured rows say nearly the same as another and share its" in text
    assert "keep their domain" not in text


def test_texts_that_cannot_be_read_are_said_to_be_missing(tmp_path):
    """The lake changed since: its rows may be others, so that none is shown; the weights are those of the run."""
    folder = lake_with_rows(tmp_path, TEXTS)
    (folder / "a.parquet").rename(folder / "b.parquet")
    with curator.open_lake(str(folder)) as lake:
        lake.run(RUN_ID).report(tmp_path / "report.html")
    tree = parsed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Texts are not shown: " in tree.text
    assert {row[0] for row in table(tree, "The rows that weigh most")[1:]} == {"–"}
    assert table(tree, "The rows that weigh most")[1][3] == "8.00"


def test_a_run_of_domains_alone_says_nothing_of_rows(tmp_path):
    with curator.open_lake(str(lake_with(tmp_path, a_record()))) as lake:
        lake.run(RUN_ID).report(tmp_path / "report.html")
    assert "Row weights" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_damaged_table_of_rows_is_named(tmp_path):
    folder = lake_with_rows(tmp_path, TEXTS)
    (folder / "_curator" / "runs" / RUN_ID / "row_gaps.parquet").write_bytes(b"PAR1 no")
    with curator.open_lake(str(folder)) as lake, pytest.raises(StorageError, match=r"row_gaps\.parquet is damaged"):
        lake.run(RUN_ID).report(tmp_path / "report.html")
