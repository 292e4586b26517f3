"""Commands about the rows of a lake: index them, ask about them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from curator.cli.options import (
    AsOfOption,
    ConfigOption,
    DestinationOption,
    DomainOption,
    JsonOption,
    KeyOption,
    LakeArgument,
    ModeOption,
    SkipOption,
    TextOption,
    VersionOption,
    lake_and,
    open_given,
    read_settings,
)

if TYPE_CHECKING:
    from curator.lake import Lake


def ingest(
    lake_url: LakeArgument = None,
    text: TextOption = None,
    domain: DomainOption = None,
    key: KeyOption = None,
    mode: ModeOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    *,
    skip_bad_rows: SkipOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the lake into its row index: ids, domains and lengths; only files that changed are read."""
    import dataclasses

    from curator import console

    settings = read_settings(lake_url, config)
    with (
        open_given(
            settings, text=text, domain=domain, key=key, mode=mode, destination=destination, skip_bad_rows=skip_bad_rows
        ) as lake,
        console.progress() as tell,
    ):
        report = lake.ingest(tell)
        counts = lake.domain_counts()
    if as_json:
        values = dataclasses.asdict(report) | {"duplicate_share": report.duplicate_share}
        console.print_json({"status": "ok", **values, "domains": dict(counts)})
        return
    if not counts:
        console.err().print(
            "note: no row can be used: the files hold none, or all were left out; nothing can be learned"
        )
    console.print_rows(["domain", "usable rows"], counts, grouped=True)
    console.out().print(
        f"\n{report.num_files} files, {report.num_rows:,} rows ({report.num_unusable:,} left out); "
        f"{report.added} files new, {report.changed} changed, {report.removed} gone, {report.unchanged} as before"
    )
    if report.rows_copied is not None:
        console.out().print(f"{report.rows_copied:,} rows copied into the catalog, which answers queries by itself")
    if report.num_duplicates:
        console.out().print(
            f"{report.num_duplicates:,} rows ({report.duplicate_share:.2%}) repeat an earlier row of their domain word "
            "for word; SQL has them in the view duplicates"
        )


def sql(
    lake_url: Annotated[
        str | None,
        typer.Argument(
            metavar="LAKE_URL", help="The lake to ask; default: that of ./curator.toml.", show_default=False
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY",
            show_default=False,
            help="SQL over samples, domain_weights, runs, diagnostics, row_gaps, clusters, comparisons, versions, "
            "duplicates.",
        ),
    ] = None,
    destination: DestinationOption = None,
    version: VersionOption = None,
    as_of: AsOfOption = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, csv, json or parquet; default: table, or with --out what FILE ends with.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="File or URL to write.", show_default=False)] = None,
    config: ConfigOption = None,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask SQL: `samples` (every row with its weights), `domain_weights`, `runs`, `diagnostics` and more.

    Rows by their weights: FROM curated(1.0), top_k(0.1), weighted_sample(1000, seed), repeats(1.0, 4, seed),
    token_budget(1000000, 4, seed), mixture(MAP {'web': 0.7, 'code': 0.3}, 1000000, 4, seed), quantiles(4);
    rows as an old version had them: FROM at_version(2).
    """
    import dataclasses

    from curator import answers, console

    shown = answers.shown_format(format_, out, as_json=as_json)
    lake_named, query = lake_and("QUERY", lake_url, query, config)
    with open_given(read_settings(lake_named, config), destination=destination) as lake:
        _note_unpublished(lake, query)
        if out is not None:
            saved = lake.save(
                query, out, format=shown, version=version, as_of=as_of, confined=True, overwrite=overwrite
            )
        elif shown is not None:
            reader = lake.read(query, version=version, as_of=as_of, confined=True)
            answers.write(reader, shown, console.raw_out())
            return
        else:
            names, rows = lake.fetch(query, version=version, as_of=as_of, confined=True)
    if out is not None and as_json:
        console.print_json({"status": "ok", **dataclasses.asdict(saved)})
    elif out is not None:
        console.out().print(
            f"wrote {saved.num_rows:,} rows, {console.size(saved.size_bytes)} of {saved.format} to "
            f"{console.printable(saved.location)}"
        )
    elif as_json:
        console.print_json({"status": "ok", "columns": names, "rows": [list(row) for row in rows]})
    else:
        most = _MOST_ROWS if console.out().is_terminal else len(rows)
        console.print_rows(names, rows[:most])
        if len(rows) > most:
            console.err().print(
                f"{len(rows) - most:,} more rows: add LIMIT, or write all with --out FILE or --format csv"
            )


_MOST_ROWS = 60
"""Of an answer on a terminal; a pipe gets all."""
_OF_WEIGHTS = re.compile(
    r"\b(sample_weight|curated|top_k|weighted_sample|repeats|token_budget|mixture|quantiles)\b", re.IGNORECASE
)


def _note_unpublished(lake: Lake, query: str) -> None:
    """Say so where a question about the weights of rows will find none."""
    from curator import console

    if _OF_WEIGHTS.search(query) and not lake.history():
        console.err().print("note: nothing was published yet, so that no row has a weight; see `curator publish`")
