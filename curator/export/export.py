"""One export: a run's weights, the domains' places in the trainer's world, and a file that appears whole."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curator.errors import ConfigError
from curator.export.format import Entry, Format
from curator.export.formats import FORMATS
from curator.export.shares import MAX_EPOCHS, Share, Unit, shares
from curator.files import write_result
from curator.selection import bucket_domains

if TYPE_CHECKING:
    from curator.run import Run


DESCRIPTION = "croissant"
"""What `curator export` writes of a version instead of a run (`curator.export.croissant`)."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, or would be.

    `weights` are those in the file, by domain, in the `unit` that `reader` means. `left_out` has no weight at all, and
    is not in the file, unless its reader has to know of it.
    `epochs` are the passes over each domain at the budget that was named, else empty.
    """

    run_id: str
    format: str
    reader: str
    unit: str
    path: str
    weights: dict[str, float]
    left_out: list[str]
    epochs: dict[str, float]
    text: str

    def __repr__(self) -> str:
        leading = sorted(self.weights.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{domain} {weight:.3g}" for domain, weight in leading[:3])
        more = f" and {len(leading) - 3} more" if len(leading) > 3 else ""
        return f"Export({self.format!r} in {self.path!r}, {self.unit}: {shown}{more})"

    @property
    def repeated(self) -> list[str]:
        """Domains that the budget repeats more often than is good for a model."""
        return [domain for domain, epochs in self.epochs.items() if epochs > MAX_EPOCHS]


def export(
    run: Run,
    format: str,  # noqa: A002 - the word that users say
    path: str | Path,
    *,
    places: str | Mapping[str, str] = "{domain}",
    budget_tokens: int | None = None,
    quantiles: int | None = None,
    unit: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Export:
    """Write the domain weights of `run` for a trainer.

    Args:
        run: a finished run.
        format: one of `FORMATS`.
        path: a local file; its folder must exist.
        places: where the trainer finds a domain: a template with `{domain}` in it, or a path for each domain.
        budget_tokens: tokens that will be trained on, to tell how often each domain is repeated.
        quantiles: write so many buckets of every domain by row weight, "domain/q1" …, instead of domains
            (`curator.selection.Quantiles`); the run must have been published.
        unit: rows, sequences …: what the reader counts, where that depends on how the data was prepared; the format's
            first one if None.
        overwrite: whether a file that is there may be replaced.
        dry_run: write nothing.

    Raises:
        ConfigError: no such format, a unit that it does not have, a domain without a place, a place that the format
            cannot hold, or a file that is there already.
        NotFoundError: buckets of a run that was not published.
    """
    known = find_format(format)
    path = Path(path)
    if budget_tokens is not None and budget_tokens < 1:
        raise ConfigError(f"budget_tokens={budget_tokens}: it must be at least 1")
    counted = _unit(known, format, unit)
    domains = run.record["domains"] if quantiles is None else bucket_domains(run, quantiles)
    found = shares(domains)
    left_out = sorted(share.domain for share in found if share.tokens == 0 and not known.zeros)
    entries = [
        Entry(place=_place(share, places, known), weight=counted.of(share), share=share)
        for share in found
        if share.tokens > 0 or known.zeros
    ]
    _check_distinct(entries)
    heading = f"domain weights of {run.lake.url}, run {run.run_id}, for {known.reader}\nunit: {counted.meaning}"
    text = known.render(entries, heading)
    write_result(path, text, overwrite=overwrite, dry_run=dry_run)
    return Export(
        run_id=run.run_id,
        format=format,
        reader=known.reader,
        unit=counted.meaning,
        path=str(path),
        weights={entry.share.domain: entry.weight for entry in entries},
        left_out=left_out,
        epochs={entry.share.domain: entry.share.epochs(budget_tokens) for entry in entries} if budget_tokens else {},
        text=text,
    )


def find_format(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: naming the nearest there is.
    """
    if name == DESCRIPTION:
        raise ConfigError(f"{name} describes a published version and is not made of a run", hint="call Lake.describe")
    if name not in FORMATS:
        there_are = [*FORMATS, DESCRIPTION]
        near = difflib.get_close_matches(name, there_are, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there_are)}"
        raise ConfigError(f"no export format {name!r}", hint=hint)
    return FORMATS[name]


def _unit(known: Format, name: str, unit: str | None) -> Unit:
    names = [each.name for each in known.units]
    if unit is not None and unit not in names:
        raise ConfigError(f"the format {name} has no unit {unit!r}", hint=f"its weights are {' or '.join(names)}")
    return known.units[0 if unit is None else names.index(unit)]


def _place(share: Share, places: str | Mapping[str, str], known: Format) -> str:
    if isinstance(places, str):
        if "{domain}" not in places:
            raise ConfigError(
                f"the places {places!r} have no {{domain}} in them, which is to be replaced",
                hint=f"each is {known.place}",
            )
        return places.replace("{domain}", share.domain)
    if share.domain not in places:
        raise ConfigError(f"no place was named for domain {share.domain!r}", hint=f"name {known.place}")
    return str(places[share.domain])


def _check_distinct(entries: list[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.place in seen:
            raise ConfigError(
                f"the place {entry.place!r} was named for two domains", hint="name another for one of them"
            )
        seen.add(entry.place)
