"""What a report says of a run: its figures, in sections that leave out what the run does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator.leaks import LeakReport
from curator.report.blocks import Block, Figure, Paragraph, Section, Side, Table, Tile
from curator.report.charts import Row, rows_chart
from curator.report.comparisons import comparisons_section
from curator.report.course import gaps_section, line_search_section, losses_section, movement_section
from curator.report.provenance import provenance_section
from curator.report.rows import rows_section
from curator.report.source import Domains, Source
from curator.report.text import NAME, brief, count, decimal, duration, interval, signed, weight

_MOST_ROWS = 200
_MOST_BARS = 24
_MOST_EXAMPLES = 5


def sections(source: Source) -> list[Section]:
    """The page in its order."""
    found = [
        _weights(source),
        _clusters(source.record.get("clusters") or ()),
        rows_section(source.rows, source.domains),
        movement_section(source),
        losses_section(source),
        gaps_section(source),
        line_search_section(source.record.get("line_search")),
        comparisons_section(source.comparisons, source.record["run_id"]),
        _leaks(source.record),
        provenance_section(source.record, source.lake_url, source.destination, source.versions),
    ]
    return [section for section in found if section is not None]


def tiles(source: Source) -> list[Tile]:
    """The figures that are read first."""
    record = source.record
    summary, search = record["summary"] or {}, record.get("line_search")
    found = []
    if search and search["difference"]:
        ends = f"95 % interval {signed(search['difference_low'])} … {signed(search['difference_high'])}"
        found.append(Tile(name="Nats per token against the prior", figure=signed(search["difference"]), beside=ends))
    if summary.get("val_loss_last") is not None:
        begun = f"{decimal(summary.get('val_loss_first'))} at the start"
        found.append(Tile(name="Target loss of w", figure=decimal(summary["val_loss_last"]), beside=begun))
    if summary.get("signal_to_noise") is not None:
        chance = f"by chance up to {decimal(summary.get('chance_signal'), 1)}"
        found.append(Tile(name="Signal to noise", figure=decimal(summary["signal_to_noise"], 1), beside=chance))
    num_rows = sum(row["num_samples"] for row in record["domains"])
    num_tokens = sum(row["num_tokens"] for row in record["domains"])
    found.append(
        Tile(name="Domains", figure=count(len(record["domains"])), beside=f"{num_rows:,} rows, {num_tokens:,} tokens")
    )
    computed = record.get("compute_tokens")
    beside = f"{count(computed)} tokens of compute" if computed else ""
    return [*found, Tile(name="Time", figure=duration(record["seconds"]), beside=beside)]


def _weights(source: Source) -> Section:
    domains, gaps = source.domains, source.gaps
    shown = domains[:_MOST_BARS]
    chart = rows_chart(
        "weights",
        "Learned weight of each domain",
        "; ".join(_weight_said(row) for row in shown),
        [
            Row(
                label=row["domain"],
                value=row["domain_weight"],
                shown=weight(row["domain_weight"]),
                said=_weight_said(row),
                low=row.get("ci_low"),
                high=row.get("ci_high"),
                mark=row["natural_share"],
            )
            for row in shown
        ],
        bars=True,
    )
    told = (
        "Bars: the share of training tokens that each domain should have. Upright lines: the share that it has in the "
        "lake by nature."
    )
    if any(row.get("ci_low") is not None for row in domains):
        told += (
            " Whiskers: the 95 % interval that this run's own noise leaves each domain by itself, not all of them "
            "jointly; other seeds and targets are not in it."
        )
    blocks: list[Block] = [Figure(drawing=chart, caption=f"{told}{_of_all(len(shown), len(domains))}")]
    gaining, losing = _gaining(domains), _losing(domains)
    if gaining and losing and source.record["verdict"]["status"] != "no gain":
        blocks.append(Side([_ratios("To be seen more often", gaining), _ratios("To be seen less often", losing)]))
    return Section(anchor="weights", heading="Domain weights", blocks=[*blocks, _domain_table(domains, gaps)])


def _clusters(clusters: Domains) -> Section | None:
    """The parts by content that got weights of their own; None where there were none."""
    if not clusters:
        return None
    ranked = sorted(clusters, key=lambda row: -row["domain_weight"])
    columns = ["cluster", "words", "natural share", "learned weight", "95 % interval", "ratio", "rows", "tokens"]
    rows = [
        [
            row["cluster"],
            row["words"],
            weight(row["natural_share"]),
            weight(row["domain_weight"]),
            interval(row["ci_low"], row["ci_high"]),
            decimal(row["ratio"], 2),
            count(row["num_samples"]),
            count(row["num_tokens"]),
        ]
        for row in ranked[:_MOST_ROWS]
    ]
    told = (
        "Rows of a domain that use like words make a cluster; each was weighed as a domain is, and a domain's weight "
        "is what its clusters have together. The words are those that set a cluster apart from the rest of its domain."
    )
    left_out = len(ranked) - len(rows)
    caption = "All clusters, largest weight first"
    if left_out:
        caption = (
            f"The {len(rows)} clusters with the largest weights; the table clusters has all {len(ranked):,} in SQL"
        )
    table = Table(caption=caption, columns=columns, rows=rows, num_words=2)
    return Section(anchor="clusters", heading="Clusters by content", blocks=[Paragraph(told), table])


def _weight_said(row: Mapping[str, Any]) -> str:
    within = "" if row.get("ci_low") is None else f" ({interval(row['ci_low'], row['ci_high'])})"
    natural = weight(row["natural_share"])
    return f"{brief(row['domain'], NAME)}: {weight(row['domain_weight'])}{within}, by nature {natural}"


def _gaining(domains: Domains) -> Domains:
    return sorted((row for row in domains if row["ratio"] > 1), key=lambda row: -row["ratio"])[:5]


def _losing(domains: Domains) -> Domains:
    return sorted((row for row in domains if row["ratio"] < 1), key=lambda row: row["ratio"])[:5]


def _ratios(caption: str, domains: Domains) -> Table:
    rows = [[row["domain"], decimal(row["ratio"], 2)] for row in domains]
    return Table(caption=caption, columns=["domain", "weight / natural share"], rows=rows)


def _domain_table(domains: Domains, gaps: Mapping[str, float]) -> Table:
    is_measured = any(row.get("ci_low") is not None for row in domains)
    left_out = max(0, len(domains) - _MOST_ROWS)
    half = _MOST_ROWS // 2
    shown = [*domains[:half], *domains[-half:]] if left_out else domains
    columns = ["domain", "natural share", "learned weight", "95 % interval", "ratio", "rows", "tokens", "tokens drawn"]
    columns += ["mean gap"]
    rows = [
        [
            row["domain"],
            weight(row["natural_share"]),
            weight(row["domain_weight"]),
            interval(row.get("ci_low"), row.get("ci_high")),
            decimal(row["ratio"], 2),
            count(row["num_samples"]),
            count(row["num_tokens"]),
            count(row.get("tokens_seen")),
            signed(gaps.get(row["domain"])),
        ]
        for row in shown
    ]
    kept = [place for place in range(len(columns)) if (is_measured or place not in (3, 7)) and (gaps or place != 8)]
    caption = "All domains, largest weight first"
    if left_out:
        caption = (
            f"The {half} domains with the largest weights and the {half} with the smallest; {left_out:,} between them "
            "are left out, which the table domain_weights has in SQL"
        )
    return Table(
        caption=caption,
        columns=[columns[place] for place in kept],
        rows=[[row[place] for place in kept] for row in rows],
    )


def _of_all(num_shown: int, num_all: int) -> str:
    return f" The first {num_shown} of {num_all:,} domains." if num_all > num_shown else ""


def _leaks(record: Mapping[str, Any]) -> Section | None:
    if "leaks" not in record:
        return None
    found = LeakReport.from_json(record["leaks"])
    blocks: list[Block] = [Paragraph(f"Of {found.num_rows:,} rows that were looked at: {found}.")]
    if found.num_overlapping:
        told = f"{found.num_overlapping:,} more rows share a sequence of 13 words with the target and are no leak."
        blocks.append(Paragraph(told))
    by_domain = sorted(found.by_domain.items(), key=lambda item: -item[1])[:_MOST_ROWS]
    if by_domain:
        blocks.append(
            Table(
                caption="Leaking rows by domain",
                columns=["domain", "rows"],
                rows=[[name, count(number)] for name, number in by_domain],
            )
        )
    if found.examples:
        blocks.append(Paragraph(f"Such as sample_id {', '.join(found.examples[:_MOST_EXAMPLES])}."))
    return Section(anchor="leaks", heading="Leaks", blocks=blocks)
