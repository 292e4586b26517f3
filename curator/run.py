"""What a lake remembers of its past: finished runs and published versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from connectors import duck
from connectors.store import Store, open_object
from curator import catalog, notebook, row_gaps
from curator.errors import MissingExtraError, StorageError, UsageError, one_line, translated

if TYPE_CHECKING:
    from curator.export import Export
    from curator.lake import Lake
    from curator.leaks import LeakReport
    from curator.report import Report
    from curator.scorer import Domains, Scorer
    from optim.row_gaps import Floats

Way = Literal["clusters", "text", "copies"]


class RowScorer(Protocol):
    """Weighs rows that a run has not measured, by their texts."""

    def index(self, labels: pa.Array) -> Domains:
        """The places of the domains of rows among those of the run, (N,), −1 for one that it did not know."""

    def row_weights(self, texts: pa.Array, domain_N: Domains) -> Floats:
        """In-domain weights v (N,), on the scale on which the run's rows have mean 1 over their domain's tokens."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One published version, as `Lake.history` lists it.

    `location` is the folder of its Parquet files; `restores` the version that a rollback went back to, else None;
    `gone_since` the version by which its files were let go (`curator gc --keep`), None while it can be read.
    """

    version: int
    created_at: str
    run_id: str
    snapshot_id: str
    num_files: int
    num_rows: int
    location: str
    restores: int | None
    gone_since: int | None


@dataclass(frozen=True)
class Run:
    """A finished learning run of a lake."""

    lake: Lake
    record: Mapping[str, Any]

    @property
    def run_id(self) -> str:
        """The run's name within its lake."""
        return str(self.record["run_id"])

    @property
    def run_dir(self) -> Path:
        """The folder that the run was made in: trajectory, workers' log, record and weights."""
        return Path(self.record["run_dir"])

    @property
    def verdict(self) -> str:
        """converged, not converged, unstable or no gain, and why, in a sentence."""
        return f"{self.record['verdict']['status']}: {self.record['verdict']['reason']}"

    @property
    def leaks(self) -> LeakReport | None:
        """What was found of the target in the lake; None for a run of before anything was looked for."""
        from curator.leaks import LeakReport

        return LeakReport.from_json(self.record["leaks"]) if "leaks" in self.record else None

    @property
    def domain_weights(self) -> duck.Relation:
        """The domain table (`curator.weights.DomainWeight`), largest weight first, as a relation."""
        connection = duck.connect()
        catalog.create_run_tables(connection, [dict(self.record)])
        return connection.sql("SELECT * EXCLUDE run_id FROM domain_weights ORDER BY domain_weight DESC")

    def samples(self) -> pa.Table:
        """The weight of every row (`curator.weights.SCHEMA`), its identities checked."""
        from curator.weights import SCHEMA, WEIGHTS, DomainWeight, WeightTable

        path = f"{catalog.RUN_FOLDER}/{self.run_id}/{WEIGHTS}"
        try:
            with translated(), open_object(self.lake.destination, path) as source:
                samples = pq.read_table(source, columns=SCHEMA.names).cast(SCHEMA)
        except (pa.ArrowException, ValueError) as error:
            raise StorageError(
                f"{self.lake.destination.describe(path)} is damaged ({one_line(error)})",
                hint="learn again, or restore it",
            ) from error
        WeightTable(samples=samples, domains=tuple(DomainWeight(**row) for row in self.record["domains"])).check()
        return samples

    @property
    def note_on_ranks(self) -> str | None:
        """What to know before rows of a domain are chosen by their weight: that they all weigh the same, if they do."""
        if self.record["learn"].get("granularity", "domain") != "domain":
            return None
        return (
            f"run {self.run_id} weighed domains alone, so all rows of a domain weigh the same and which of them are "
            "chosen is arbitrary; learn with --granularity sample, or cluster"
        )

    @property
    def ways_to_score(self) -> tuple[Way, ...]:
        """How it can weigh rows that it has not measured, the usual way first.

        "clusters": by the cluster that their text is nearest to. "text": by what a scorer expects of their text.
        "copies": under the copies that it kept, as those that it measured; the usual way if it measured all rows
        and what it takes is installed.
        """
        if self.record.get("clusters"):
            return ("clusters",)
        files = row_gaps.files(self.record)
        has_text, has_copies = row_gaps.SCORER in files, row_gaps.COPIES in files
        found: dict[Way, bool] = {"text": has_text, "copies": has_copies}
        ways = tuple(way for way, is_there in found.items() if is_there)
        measured_all = has_copies and self.record["rows"]["share"] == 1
        return ways[::-1] if measured_all and not _missing_for_copies() else ways

    def scorer(self, way: Way | None = None) -> RowScorer:
        """What weighs rows in one of its `ways_to_score`, by default the usual one.

        Raises:
            UsageError: the run has none, or not this one, and why.
            StorageError: it is gone or damaged, or of another version of this package.
            MissingExtraError: the copies need packages that are not installed.
        """
        ways = self.ways_to_score
        if not ways:
            raise UsageError(f"run {self.run_id} cannot score rows: {_why_no_scorer(self.record)}")
        chosen = way or ways[0]
        if chosen not in ways:
            raise UsageError(f"run {self.run_id} cannot score rows by {way}", hint=f"it can by {' or '.join(ways)}")
        return _read_scorer(chosen, self.lake.destination, f"{catalog.RUN_FOLDER}/{self.run_id}")

    def text_scorer(self) -> Scorer:
        """That of the way "text", which also says what gap it expects; raises as `scorer` does."""
        from curator.scorer import Scorer

        found = self.scorer("text")
        assert isinstance(found, Scorer)
        return found

    def export(self, format: str, path: str | Path, **settings: Any) -> Export:  # noqa: A002 - the word that users say
        """Write the domain weights as the file that a trainer reads (see `curator.export.export`)."""
        from curator.export import export

        return export(self, format, path, **settings)

    def report(self, path: str | Path = "report.html", *, overwrite: bool = False, dry_run: bool = False) -> Report:
        """Write one HTML file about the run that opens anywhere (see `curator.report.report`)."""
        from curator.report import report

        return report(self, path, overwrite=overwrite, dry_run=dry_run)

    def __repr__(self) -> str:
        top = sorted(self.record["domains"], key=lambda row: -row["domain_weight"])[:3]
        leading = ", ".join(f"{row['domain']} {row['domain_weight']:.2f}" for row in top)
        return f"Run({self.run_id!r}: {leading}; {self.record['verdict']['status']})"

    def _repr_html_(self) -> str:
        """What notebooks show: the verdict, and the domains, largest weight first."""
        rows = sorted(self.record["domains"], key=lambda row: -row["domain_weight"])
        columns = ("domain", "natural share", "learned weight", "95 % interval", "ratio")
        cells = [
            (row["domain"], row["natural_share"], row["domain_weight"], _interval(row), row["ratio"]) for row in rows
        ]
        return notebook.table(f"Run {self.run_id}", columns, cells, [self.verdict])


def _read_scorer(way: Way, store: Store, home: str) -> RowScorer:
    if way == "clusters":
        from curator.clusters import Clusters

        return Clusters.read(store, f"{home}/{row_gaps.CLUSTERS}")
    if way == "text":
        from curator.scorer import Scorer

        return Scorer.read(store, f"{home}/{row_gaps.SCORER}")
    if missing := _missing_for_copies():
        raise MissingExtraError(
            f"scoring by kept copies needs the package {missing[0]!r}", hint="pip install 'lake-curator[train]'"
        )
    from curator.copies import KeptCopies

    return KeptCopies.read(store, f"{home}/{row_gaps.COPIES}", home.rpartition("/")[2])


def _missing_for_copies() -> list[str]:
    return [name for name in ("torch", "safetensors", "tokenizers", "transformers") if find_spec(name) is None]


def _interval(domain: Mapping[str, Any]) -> str:
    low, high = domain.get("ci_low"), domain.get("ci_high")
    return "" if low is None or high is None else f"{low:.3f} … {high:.3f}"


def _why_no_scorer(record: Mapping[str, Any]) -> str:
    rows = record.get("rows")
    if not rows:
        return "it weighed domains alone; learn with --granularity sample, or cluster"
    if not rows.get("scorer"):
        return "it was learned without a scorer; learn with learn.rows.scorer = true"
    more = "measure more rows (learn.rows.max_rows), or under more pairs of copies (learn.rows.pairs)"
    return f"{rows['scorer']['refusal']}; {more}"
