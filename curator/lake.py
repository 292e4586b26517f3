"""Lake: one corpus in object storage, one place where its versions go, and one DuckDB catalog.

The session object of the SDK. Everything the command line does goes through it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from connectors import duck
from connectors import errors as connector_errors
from connectors.connector import Connector, lake_place, open_connector
from connectors.parquet import check_schemas
from connectors.plain import Corpus, check_corpus_unchanged
from connectors.store import Store, open_store, redact_url, substore, write_object
from curator import catalog, notebook, row_gaps, trajectory
from curator.answers import BATCH_ROWS, Format, Saved, check_place, format_of, python_values, save
from curator.config import CompareConfig, LakeConfig, LearnConfig, RefreshConfig, TargetConfig, override, parse
from curator.errors import ConfigError, InputError, NotFoundError, StorageError, UsageError, one_line, translated
from curator.memory import ArrowStream, keep_target
from curator.places import (
    JOB,
    VIEWS,
    make_work_folder,
    remember_columns,
    remembered_columns,
    remembered_ways,
    state_folder,
    work_folder,
    would_be_read_as_lake,
)
from curator.progress import Progress, ProgressCallback, silent
from curator.run import Run, Version, Way
from curator.session import Session

if TYPE_CHECKING:
    import polars as pl

    from curator.begun import LastVersion
    from curator.compare import ComparisonPlan
    from curator.comparison import Comparison
    from curator.export.croissant import Description
    from curator.forecast import Forecast
    from curator.garbage import Removal
    from curator.integrations.openlineage import Told
    from curator.materialize import Materialization
    from curator.mixtures import Spec
    from curator.publish import Publication
    from curator.refresh import Refresh
    from curator.score import Scores
    from curator.selection import Selection
    from curator.sidecar import Mode
    from curator.status import Status
    from curator.tokens import RowBatch
    from curator.verify import Verification
    from curator.versions import Rollback

Target = str | os.PathLike[str] | TargetConfig | ArrowStream
"""An address of Parquet files, settings that name one, or a table in memory, whose text is kept in the work folder."""
_BATCH_ROWS = 1024
"""Rows whose texts are in memory at a time."""


def open_lake(
    url: str | os.PathLike[str],
    *,
    text: str | None = None,
    domain: str | None = None,
    key: str | None = None,
    id_hash: Literal["xxh3_128", "sha256"] | None = None,
    mode: Literal["index", "table", "view"] | None = None,
    destination: str | None = None,
    single_writer: bool | None = None,
    skip_bad_rows: bool | None = None,
    min_domain_rows: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    config: LakeConfig | None = None,
) -> Lake:
    """Open a corpus; nothing is read or written yet but the settings it was last used with.

    Args:
        url: folder, file or glob of Parquet files, any fsspec URL; `delta:` and the path or URL of a Delta table; or
            `iceberg:` and the name of an Iceberg table, with its catalog's (`iceberg:[URI#]CATALOG.NAMESPACE.TABLE`).
        text: column with the text; by default as last used, else "text".
        domain: column or hive partition with the domain; by default as last used, else "domain".
        key: column with a unique, stable key; by default a hash of domain and text identifies a row.
        id_hash: that hash, "xxh3_128" (fast) or "sha256" (no two texts can be made to share it); by default as last
            used, else "xxh3_128".
        mode: what the catalog keeps of the lake: "index", ids and lengths of its rows; "table", their columns, too, so
            that queries do not read the lake (one to four times its compressed size on disk); "view", nothing, so that
            every session indexes anew, in a temporary folder. By default as last used, else "index".
        destination: where versions and run records go; by default `_curator` inside the lake, or for a
            single file or a glob a folder beside its files that is named by it, `_curator_FILE`.
        single_writer: vouch that only one process at a time ever writes the destination, and the table if the lake is
            one; then versions also go where the storage ignores conditional writes, which is refused otherwise.
        skip_bad_rows: leave out rows without text or domain instead of refusing them.
        min_domain_rows: least usable rows of a domain that is learned on.
        storage_options: passed to fsspec (credentials, endpoint); never logged or stored.
        config: settings to start from, such as those of a file.

    Raises:
        InputError: there is nothing at a local `url`.
        UsageError: `url` is no address.
        MissingExtraError: the URL's scheme needs a package that is not installed.
    """
    given = {
        "text": text,
        "domain": domain,
        "key": key,
        "id_hash": id_hash,
        "mode": mode,
        "destination": destination,
        "single_writer": single_writer,
        "skip_bad_rows": skip_bad_rows,
        "min_domain_rows": min_domain_rows,
        "storage_options": dict(storage_options) if storage_options else None,
    }
    base, url = config or LakeConfig(), _address(url, "the lake")
    with translated():
        options = storage_options or base.storage_options
        root, part = lake_place(url, options)
        if root.is_local and not Path(root.path).exists():
            raise InputError(
                f"{redact_url(url)} does not exist",
                hint="give a folder, file or glob of Parquet files, or a URL such as s3://…",
            )
        target = destination or base.destination
        place = open_store(target, options) if target else substore(root, state_folder(part))
        if would_be_read_as_lake(root, url, place):
            raise ConfigError(
                f"destination {place.url} lies inside the lake {redact_url(url)}, which would take what is published "
                f"there for more of its rows",
                hint="choose a folder elsewhere, or one whose name starts with '_'",
            )
        workdir = work_folder(place)
        chosen = base.model_dump(exclude_unset=True) | {k: v for k, v in given.items() if v is not None}
        if {"text", "domain"} <= chosen.keys():
            chosen = remembered_ways(workdir) | chosen
        else:
            chosen = remembered_columns(workdir, place) | chosen
        settings = parse(LakeConfig, chosen | {"url": url}, "the arguments")
        if settings.text == settings.domain:
            raise ConfigError(
                f"column {settings.text!r} is named both as the text and as the domain",
                hint="a row needs two columns, name them with --text and --domain",
            )
        connector = open_connector(url, options, destination=place, columns=catalog.WEIGHT_COLUMNS)
        return Lake(settings, root=root, destination=place, workdir=workdir, connector=connector)


class Lake:
    """A corpus with its catalog; a context manager. Made by `open_lake`."""

    def __init__(
        self, config: LakeConfig, *, root: Store, destination: Store, workdir: Path, connector: Connector
    ) -> None:
        self.config = config
        self.destination = destination
        self.workdir = workdir
        self.connector = connector
        self._root = root
        self._session = Session(config, connector, destination, workdir, (self.url, self.address))

    @property
    def url(self) -> str:
        """The lake's address, without credentials."""
        return self._root.url

    @property
    def address(self) -> str:
        """What the lake was opened by and commands name it by, without credentials."""
        return redact_url(self.config.url)

    @property
    def command_address(self) -> str:
        """What follows a command's name to reach this lake: its address, and its destination if that was named."""
        given = self.config.destination
        place = f" --destination {shlex.quote(redact_url(given))}" if given else ""
        return f"{shlex.quote(self.address)}{place}"

    def __enter__(self) -> Lake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Lake({self.url!r}, text={self.config.text!r}, domain={self.config.domain!r})"

    def _repr_html_(self) -> str:
        """What notebooks show; nothing is read for it."""
        config = self.config
        rows = [
            ("text column", config.text),
            ("domain column", config.domain),
            ("key", config.key or f"{config.id_hash} of domain and text"),
            ("catalog keeps", config.mode),
            ("versions and runs", self.destination.url),
            ("work folder", self.workdir),
        ]
        return notebook.table(f"Lake {self.address}", (), rows)

    def close(self) -> None:
        """Let go of the catalog, and in mode "view" of what it holds."""
        self._session.close()

    # what is there ------------------------------------------------------------------------------------------------

    @property
    def corpus(self) -> Corpus:
        """The lake's files as last listed; listed now if they were not yet."""
        with translated():
            return self._session.corpus

    @property
    def catalog_path(self) -> Path:
        """Where the catalog's file is or will be; in mode "view" a temporary one, until the lake is closed."""
        with translated():
            return self._session.path

    @property
    def text_name(self) -> str:
        """The text's column in `samples`, where the lake's own columns with names of the index are `original_…`."""
        taken = ("sample_id", "file_id", "row", "usable")
        return f"original_{self.config.text}" if self.config.text.casefold() in taken else self.config.text

    @property
    def snapshot_id(self) -> str:
        """Names the content of the lake: equal for equal files (path, size, version, footer) read by equal settings."""
        parts = [self.config.text, self.config.domain, self.config.key or "", str(self.config.skip_bad_rows)]
        if self.config.id_hash != "xxh3_128":  # ids of before there was a choice keep their name
            parts.append(self.config.id_hash)
        parts += [f"{file.path}\0{file.size_bytes}\0{file.version}\0{file.footer_hash}" for file in self.corpus.files]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()

    def runs(self) -> list[Run]:
        """Every finished run, oldest first."""
        with translated():
            return [Run(self, record) for record in catalog.read_run_records(self.destination)]

    def run(self, run_id: str) -> Run:
        """One run, by its id or "latest".

        Raises:
            NotFoundError: naming the nearest id, or how to go on with a run that was stopped.
        """
        runs = self.runs()
        if run_id == "latest" and runs:
            return runs[-1]
        by_id = {run.run_id: run for run in runs}
        if run_id not in by_id:
            near = difflib.get_close_matches(run_id, by_id, n=1) or list(by_id)[-1:]
            hint = f"the nearest is {near[0]!r}" if near else "it has no run yet: `curator learn` makes one"
            begun = self.workdir / "runs" / run_id
            if run_id and (begun / JOB).is_file():
                hint = (
                    f"one of that name was begun and has not ended: `curator learn {self.command_address} "
                    f"--resume {shlex.quote(str(begun))}` goes on with it"
                )
            raise NotFoundError(f"{self.url} has no run {run_id!r}", hint=hint)
        return by_id[run_id]

    def history(self) -> list[Version]:
        """Every published version, oldest first."""
        with translated():
            return [Version(**row) for row in catalog.version_rows(self.connector)]

    # work ---------------------------------------------------------------------------------------------------------

    def ingest(self, on_progress: ProgressCallback = silent) -> duck.IngestReport:
        """Bring the row index up to date with the files: new and changed ones are read, others left alone.

        Raises:
            InputError: a missing or mistyped column, a corrupt file, or rows that cannot be used.
            TryAgainError: another process writes the catalog.
        """
        with translated():
            corpus = self._session.list_again(
                lambda done, total: on_progress(Progress(stage="list", done=done, total=total, detail="files"))
            )
            config = self.config
            check_schemas(corpus.files, text=config.text, domain=config.domain, key=config.key)
            make_work_folder(self.workdir)
            with self._session.writing() as connection:
                report = duck.ingest(
                    connection,
                    corpus,
                    text=config.text,
                    domain=config.domain,
                    key=config.key,
                    id_hash=config.id_hash,
                    bad_rows="skip" if config.skip_bad_rows else "error",
                    copy_rows=config.mode == "table",
                    on_progress=lambda done, total: on_progress(
                        Progress(stage="ingest", done=done, total=total, detail="rows")
                    ),
                    on_copied=lambda done, total: on_progress(
                        Progress(stage="copy", done=done, total=total, detail="rows")
                    ),
                )
            remember_columns(self.workdir, config)
            return report

    def learn(
        self,
        target: Target,
        *,
        target_text: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        config: LearnConfig | None = None,
        on_progress: ProgressCallback = silent,
        **settings: Any,
    ) -> Run:
        """Learn what every domain is worth for `target`; the lake is ingested first if its files changed.

        Args:
            target: what the model should be good at: the address of Parquet files, or a table in memory of any library
                that has Arrow's stream, whose text is kept in the work folder, named by its content.
            target_text: their text column; by default the lake's.
            run_dir: an empty or new folder for the run; by default one in the lake's work folder.
            config: settings to start from.
            on_progress: told how far the work is.
            **settings: fields of `curator.config.LearnConfig`, such as method, model, steps, seed, tensor_parallel.

        Raises:
            ConfigError: an unknown setting, or one that is not allowed.
            InputError: a lake, target, model or layout that cannot be used.
            LearningError: the run failed or diverged.
            InterruptedRunError: stopped by the user.
        """
        chosen = override(config or LearnConfig(), **settings)
        return self.learn_after(None, self._goal(target, target_text), chosen, run_dir, on_progress)

    def learn_after(
        self,
        last: LastVersion | None,
        target: TargetConfig,
        config: LearnConfig,
        run_dir: str | os.PathLike[str] | None,
        on_progress: ProgressCallback,
        *,
        warm_start: bool = False,
    ) -> Run:
        """`learn`, whose result is compared with the version `last`, and begins at its weights with `warm_start`."""
        from curator.integrations.openlineage import lineage
        from curator.learn import learn

        folder = Path(run_dir) if run_dir else None
        with lineage("learn", self.config.url, target.url) as told, translated():
            run_id = learn(self, target, config, folder, on_progress, last=last, warm_start=warm_start)
            self._tell_run(told, run_id)
        return self.run(run_id)

    def _tell_run(self, told: Told, run_id: str) -> None:
        from curator.integrations.openlineage import Dataset

        told.snapshot_id = self.snapshot_id
        told.outputs.append(Dataset(url=self.destination.describe(f"{catalog.RUN_FOLDER}/{run_id}"), version=run_id))

    def prepare(
        self,
        target: Target,
        *,
        run_dir: str | os.PathLike[str],
        target_text: str | None = None,
        config: LearnConfig | None = None,
        on_progress: ProgressCallback = silent,
        **settings: Any,
    ) -> Path:
        """Do all of `learn` that comes before the workers, which are to run on other machines; returns the run folder.

        Run `torchrun … -m curator.worker RUN_DIR` there (the folder holds a `slurm.sh` that does), with as many
        processes as the layout has workers, then `resume(RUN_DIR)` here. The run folder and this lake's work folder
        have to be on a file system that all of them share. Arguments and errors are those of `learn`.
        """
        from curator.prepare import prepare

        goal = self._goal(target, target_text)
        chosen = override(config or LearnConfig(), **settings)
        with translated():
            return prepare(self, goal, chosen, Path(run_dir), on_progress, elsewhere=True).folder

    def resume(self, run_dir: str | os.PathLike[str], *, on_progress: ProgressCallback = silent, **layout: Any) -> Run:
        """Go on with a run that was stopped or killed, from its newest checkpoint (or its start, if it has none).

        Args:
            run_dir: the run's folder.
            on_progress: told how far the work is.
            **layout: tensor_parallel, pipeline_parallel, data_parallel and other settings of
                `curator.config.EXECUTION_FIELDS`; everything else stays as it was begun with.

        Raises:
            ConfigError: there is no unfinished run in `run_dir`, or a setting that a begun run cannot change.
            InputError: the lake has changed since the run began.
            LearningError: the run failed, or a checkpoint cannot be used.
            InterruptedRunError: stopped by the user.
        """
        from curator.integrations.openlineage import lineage
        from curator.learn import resume

        with lineage("learn", self.config.url) as told, translated():
            run_id = resume(self, Path(run_dir), layout, on_progress)
            self._tell_run(told, run_id)
        return self.run(run_id)

    def compare(
        self,
        *mixtures: Spec,
        target: Target,
        test: Target,
        each_domain: bool = False,
        config: CompareConfig | None = None,
        on_progress: ProgressCallback = silent,
        **settings: Any,
    ) -> Comparison:
        """Train fresh models on mixtures of the domains and measure them on held-out rows of the target.

        Args:
            *mixtures: specs of `curator.mixtures` ("natural", a run id, "domain:NAME", a .json file …), or
                (name, {domain: weight}); "uniform" is always among them; by default "natural" and, if there is a
                run, "latest".
            target: the rows that weights were learned for; they train the tokenizer and are kept out of the lake.
            test: held-out rows of the same kind; those that stand in the target or the lake are left out.
            each_domain: compare every domain alone, too.
            config: settings to start from.
            on_progress: told how far the work is.
            **settings: fields of `curator.config.CompareConfig`, such as steps, seeds, model.

        Raises:
            ConfigError: an unknown setting or mixture.
            InputError: a lake, target, test part or model that cannot be used.
            LearningError: a training failed.
            InterruptedRunError: stopped by the user; the same call goes on with what was finished.
        """
        from curator.compare import compare

        chosen = override(config or CompareConfig(), **settings)
        with translated():
            specs = mixtures or self._usual_mixtures()
            return compare(
                self, specs, self._goal(target), self._goal(test), chosen, on_progress, each_domain=each_domain
            )

    def plan_comparison(
        self,
        *mixtures: Spec,
        target: Target,
        test: Target,
        each_domain: bool = False,
        config: CompareConfig | None = None,
        on_progress: ProgressCallback = silent,
        **settings: Any,
    ) -> ComparisonPlan:
        """What `compare` would train with these arguments, and how much of it is there already; nothing is trained."""
        from curator.compare import plan

        chosen = override(config or CompareConfig(), **settings)
        with translated():
            specs = mixtures or self._usual_mixtures()
            return plan(self, specs, self._goal(target), self._goal(test), chosen, on_progress, each_domain=each_domain)

    def forecast(
        self,
        target: Target,
        *,
        target_text: str | None = None,
        config: LearnConfig | None = None,
        calibration_steps: int | None = None,
        on_progress: ProgressCallback = silent,
        **settings: Any,
    ) -> Forecast:
        """Say what `learn` with these arguments will take: rows, tokens, steps, seconds, bytes of a version.

        The run's own workers take a few steps on some of the rows; nothing of them is kept.

        Args:
            target: what the model should be good at.
            target_text: its text column; by default the lake's.
            config: how to learn.
            calibration_steps: steps that are timed; by default 8, with 0 no time is told.
            on_progress: told how far the work is.
            **settings: fields of `curator.config.LearnConfig`, such as steps.

        Raises:
            ConfigError, InputError: what `learn` would refuse before its workers start.
            LearningError: the workers failed.
        """
        from curator.forecast import CALIBRATION_STEPS, forecast

        chosen = override(config or LearnConfig(), **settings)
        num_steps = CALIBRATION_STEPS if calibration_steps is None else calibration_steps
        with translated():
            goal = self._goal(target, target_text)
            return forecast(self, goal, chosen, on_progress, calibration_steps=num_steps)

    def _goal(self, given: Target, text: str | None = None) -> TargetConfig:
        """What was given as a target, a table in memory as the file that it is kept in."""
        if isinstance(given, TargetConfig):
            return given
        if isinstance(given, ArrowStream):
            with translated():
                kept = keep_target(given, text or self.config.text, self.workdir)
            return TargetConfig(url=str(kept), text=text)
        return TargetConfig(url=_address(given, "the target"), text=text)

    def _usual_mixtures(self) -> Sequence[Spec]:
        return ("natural", "latest") if self.runs() else ("natural",)

    def comparisons(self) -> list[Comparison]:
        """Every comparison, oldest first."""
        from curator.comparison import Comparison

        with translated():
            return [Comparison.from_json(record) for record in catalog.read_comparison_records(self.destination)]

    def publish(
        self,
        run: Run | str,
        *,
        mode: Mode = "copy",
        bloom_filters: Collection[str] = (),
        dry_run: bool = False,
        on_progress: ProgressCallback = silent,
    ) -> Publication:
        """Write a run's weights into new Parquet files and make them the lake's newest version, atomically.

        Args:
            run: the run, its id, or "latest".
            mode: "copy" writes copies of the lake's files with the weights as columns; "sidecar" writes the weights
                alone (sample_id, row, the three columns), to be joined by file and row number as long as the lake's
                files stay as they are.
            bloom_filters: of "sample_weight", "domain_weight" and "weight_run_id", those that get a bloom filter in the
                copies. A run that was published without is published once more with them.
            dry_run: say what would be written.
            on_progress: told how far the work is.

        Raises:
            UsageError: an unknown mode or column, or a mode that a table cannot have or the file of views in the work
                folder show.
            NotFoundError: no such run.
            StorageError: the destination cannot be written; the version before stays.
        """
        from curator.integrations.openlineage import Dataset, lineage
        from curator.publish import publish
        from curator.views import renew_views

        if mode not in ("copy", "sidecar"):
            raise UsageError(f"mode {mode!r} is unknown", hint='"copy" and "sidecar" are allowed')
        with translated():
            self._check_mode(mode, bloom_filters)
            chosen = self.run(run) if isinstance(run, str) else run
            if dry_run:
                return publish(self, chosen, on_progress, mode=mode, bloom_filters=bloom_filters, dry_run=True)
        weights = self.destination.describe(f"{catalog.RUN_FOLDER}/{chosen.run_id}")
        with lineage("publish", self.config.url, weights) as told, translated():
            made = publish(self, chosen, on_progress, mode=mode, bloom_filters=bloom_filters)
            renew_views(self)
            told.snapshot_id = made.snapshot_id
            told.outputs.append(
                Dataset(
                    url=made.location, version=str(made.version), num_rows=made.num_rows, size_bytes=made.size_bytes
                )
            )
        return made

    def refresh(
        self,
        target: Target,
        *,
        target_text: str | None = None,
        learn: LearnConfig | None = None,
        config: RefreshConfig | None = None,
        force: bool = False,
        dry_run: bool = False,
        on_progress: ProgressCallback = silent,
        **settings: Any,
    ) -> Refresh:
        """Bring the published weights up to date: what a scheduled job calls, as often as it likes.

        The weights are learned again if a rule of `curator.rules` says so, else those of the last run are kept; either
        way they are published for the rows that the lake has now, if they pass the gates. Where nothing changed,
        nothing is done. A call that was killed is gone on with by the next one.

        Args:
            target: what the model should be good at.
            target_text: its text column; by default the lake's.
            learn: how to learn.
            config: when to learn, and what not to publish.
            force: learn again without a reason, and let the domain weights change by any amount.
            dry_run: say what would be done.
            on_progress: told how far the work is.
            **settings: fields of `curator.config.RefreshConfig`, such as max_age_days.

        Raises:
            ConfigError: an unknown setting, or one that is not allowed.
            InputError: a lake, target or model that cannot be used.
            LearningError: the run failed or diverged.
            InterruptedRunError: stopped by the user.
            StorageError: the destination cannot be written; the version before stays.
            TryAgainError: another refresh is at work, or the lake changed meanwhile.
        """
        from curator.integrations.openlineage import Dataset, lineage
        from curator.refresh import refresh

        chosen = override(config or RefreshConfig(), **settings)
        goal, how = self._goal(target, target_text), learn or LearnConfig()
        with translated():
            self._check_mode(chosen.mode, chosen.bloom_filters)
            if dry_run:
                return refresh(self, goal, how, chosen, on_progress, force=force, dry_run=True)
        with lineage("refresh", self.config.url, goal.url) as told, translated():
            done = refresh(self, goal, how, chosen, on_progress, force=force, dry_run=False)
            told.snapshot_id = done.snapshot_in
            if done.outcome == "published" and done.location:
                made = Dataset(url=done.location, version=str(done.version), num_rows=done.rows_written)
                told.outputs.append(made)
            if done.outcome == "refused":
                told.refused = "; ".join(gate.said for gate in done.gates if not gate.passed)
        return done

    def status(
        self,
        target: Target | None = None,
        *,
        target_text: str | None = None,
        learn: LearnConfig | None = None,
        config: RefreshConfig | None = None,
        on_progress: ProgressCallback = silent,
    ) -> Status:
        """The newest version, what has no or stale weights, and what `refresh` with these arguments would do.

        Without a target, that of the last run is taken not to have changed.

        Raises:
            InputError: a lake or target that cannot be used.
            StorageError: the log is damaged, or the storage did not answer.
        """
        from curator.status import status

        with translated():
            goal = None if target is None else self._goal(target, target_text)
            return status(self, goal, learn or LearnConfig(), config or RefreshConfig(), on_progress)

    def rollback(self, version: int, *, dry_run: bool = False) -> Rollback:
        """Make the content of an older version the newest again, atomically; nothing is removed.

        Raises:
            NotFoundError: no such version.
            StorageError: one of its files is gone, or the destination cannot be written.
            TryAgainError: another version was published meanwhile.
        """
        from curator.versions import rollback
        from curator.views import renew_views

        with translated():
            done = rollback(self, version, dry_run=dry_run)
            if not dry_run:
                renew_views(self)
            return done

    def write_views(self, out: str | os.PathLike[str] | None = None) -> Path:
        """Write a DuckDB file that any DuckDB from 1.5 on opens read-only, without this package; returns its path.

        It has the view `samples` (the newest version: domain, the lake's own columns, the weights) and the tables
        `domain_weights`, `runs` and `versions`. It is replaced as a whole. A reader of a version on object storage
        needs DuckDB's httpfs and its own credentials; none are written.

        Args:
            out: the file; by default `curator.duckdb` in the work folder, which is renewed by every `publish` and
                `rollback` from then on.

        Raises:
            NotFoundError: nothing was published yet.
            UsageError: the newest version is of sidecars.
            StorageError: the file cannot be written.
        """
        from curator.views import write_views

        place = self.workdir / VIEWS if out is None else Path(out)
        with translated():
            write_views(self, place)
        return place

    def describe(
        self,
        path: str | os.PathLike[str] = "croissant.json",
        *,
        version: int | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> Description:
        """Write a published version's description in Croissant (see `curator.export.croissant`)."""
        from curator.export.croissant import describe

        with translated():
            return describe(self, Path(path), version=version, overwrite=overwrite, dry_run=dry_run)

    def verify(
        self,
        version: int | None = None,
        *,
        as_of: str | datetime | None = None,
        deep: bool = False,
        on_progress: ProgressCallback = silent,
    ) -> Verification:
        """Check that a version is what was published; what is wrong is returned, not raised.

        Objects, sizes, rows, footers, weight columns and their identities are errors; source files that changed
        since are notes.

        Args:
            version: its number; by default the newest.
            as_of: as for `sql`.
            deep: decode every column, not the weights only.
            on_progress: told how far the work is.

        Raises:
            NotFoundError: no such version.
            InputError: the log is damaged.
            StorageError: the storage did not answer.
        """
        from curator.verify import verify

        with translated():
            return verify(self, version, as_of, on_progress, deep=deep)

    def gc(self, grace: str | timedelta = "24h", *, keep: int | None = None, dry_run: bool = False) -> Removal:
        """Remove what crashed publications left in the destination; versions, runs and all else stay.

        With `keep`, old versions are let go as well, by one more version with the content of the newest: history still
        lists them, and nobody can read or restore them. That is final.

        Garbage is copies and manifests that no version names, temporary files, and on S3 unfinished multipart uploads.
        The copies of a table are left to its own cleaning: VACUUM (Delta), or removing orphan files (Iceberg).

        Args:
            grace: only what is older goes, such as "24h" or "7d"; a publication that is under way is younger. With
                less than 24 hours be sure that nobody is publishing.
            keep: how many different versions stay readable, the newest ones; by default all.
            dry_run: say what would be removed.

        Raises:
            UsageError: `grace` is not a duration, or `keep` is less than 1 or given for a table.
            StorageError: the log is damaged, or the destination cannot be written.
        """
        from curator.garbage import collect
        from curator.views import renew_views

        with translated():
            if keep is not None:
                self._check_owns_log(
                    "letting go of versions is",
                    "VACUUM (Delta), or expiring snapshots and removing orphan files (Iceberg), does that",
                )
            done = collect(self, grace, keep, dry_run=dry_run)
            if done.versions and not dry_run:
                renew_views(self)
            return done

    def sql(
        self,
        query: str,
        params: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        as_of: str | datetime | None = None,
    ) -> duck.Relation:
        """Ask the lake: `samples`, `domain_weights`, `runs`, `diagnostics`, `clusters`, `comparisons` and more.

        What was published, learned or compared by then is seen, whoever did it, and files that are not as they were
        ingested are refused: a listing of the lake and of its records finds out at every call. The relation is lazy,
        so fetch it before the lake changes, with `.pl()`, `.df()`, `.to_arrow_table()` or `.fetchall()` (`fetch` looks
        again afterwards); it lives until the lake is closed, ingested or published again. Macros select rows by weight,
        `FROM token_budget(…)` and others (`curator.macros`), and `FROM at_version(3)` is `samples` as that version was
        published.

        Args:
            query: DuckDB SQL.
            params: values of `$name` in the query.
            version: number of the version that `samples` shows as it was published; by default it shows the lake's
                rows of today with the newest weights.
            as_of: ISO date (its first moment) or datetime, in UTC unless it says otherwise: the newest version
                committed at or before it.

        Raises:
            UsageError: the query is not valid, in DuckDB's words.
            NotFoundError: no such version.
            InputError: the lake has not been ingested, or its files changed since.
        """
        with translated():
            return self._ask(self._session_at(version, as_of), query, params)

    def _ask(self, session: duck.Connection, query: str, params: Mapping[str, Any] | None = None) -> duck.Relation:
        from curator.versions import create_versions_asked

        create_versions_asked(session, self, query)
        try:
            relation = session.sql(query, params=dict(params) if params else None)
        except duck.Error as error:
            raise UsageError(f"the query cannot be run: {one_line(error)}") from error
        if relation is None:
            raise UsageError("the statement has no rows to show", hint="ask with SELECT")
        return relation

    def fetch(
        self,
        query: str,
        *,
        version: int | None = None,
        as_of: str | datetime | None = None,
        confined: bool = False,
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The column names and rows of a query's answer; arguments and errors are those of `sql`.

        A file that was replaced while it was read is a TryAgainError.

        `confined` is for queries of others: one SELECT, which sees nothing but this lake, no other file, no network
        and no variable of Python. This lake's session then stays so.
        """
        table = self.read(query, version=version, as_of=as_of, confined=confined).read_all()
        return table.schema.names, list(zip(*map(python_values, table.columns), strict=True))

    def read(
        self,
        query: str,
        *,
        version: int | None = None,
        as_of: str | datetime | None = None,
        confined: bool = False,
    ) -> pa.RecordBatchReader:
        """A query's answer as Arrow batches, as they come; arguments and errors are those of `fetch`.

        Read it once, to its end, while the lake is open. Polars, pandas, DuckDB and others take it as it is.
        """
        with translated():
            session = self._session_at(version, as_of)
            if confined:
                duck.check_select(session, query)
                self._session.confine(session)
            relation = self._ask(session, query)
            try:
                reader = relation.to_arrow_reader(BATCH_ROWS)
            except duck.Error as error:
                check_corpus_unchanged(self.corpus)
                raise UsageError(f"the query failed: {one_line(error)}") from error
        return pa.RecordBatchReader.from_batches(reader.schema, self._batches(reader))

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        with translated():
            try:
                yield from reader
            except (duck.Error, pa.ArrowException, OSError) as error:  # what Arrow makes of DuckDB's
                check_corpus_unchanged(self.corpus)
                raise UsageError(f"the query failed: {one_line(error)}") from error
            check_corpus_unchanged(self.corpus)

    def save(
        self,
        query: str,
        out: str | os.PathLike[str],
        *,
        format: Format | None = None,  # noqa: A002 - the word that users say
        version: int | None = None,
        as_of: str | datetime | None = None,
        confined: bool = False,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Saved:
        """Write a query's answer to a file, wholly or not at all, without having all of it in memory.

        Args:
            query: as for `sql`.
            out: path or URL of the file.
            format: "csv", "json" (an array of objects) or "parquet"; by default what the file's name ends with.
            version: as for `sql`.
            as_of: as for `sql`.
            confined: as for `fetch`.
            overwrite: replace a file that is there.
            storage_options: for `out`; by default the lake's, if it is of the same kind.

        Raises:
            ConfigError: an unknown format, or a file that is there or has no folder.
            UsageError: the query is not valid, `out` lies in the lake, or a column has a type that the format lacks.
            StorageError: `out` cannot be written.
        """
        kind = format_of(os.fspath(out), format)
        with translated():
            place = self._place_for(out, storage_options)
            check_place(self, place, overwrite=overwrite)
            return save(self.read(query, version=version, as_of=as_of, confined=confined), place, kind)

    def select(
        self, selection: Selection, *, version: int | None = None, as_of: str | datetime | None = None
    ) -> duck.Relation:
        """The rows of a selection (`curator.selection`) as a lazy relation; arguments and errors are those of `sql`."""
        return self.sql(f"FROM {selection.call}", version=version, as_of=as_of)

    def materialize(
        self,
        selection: Selection,
        out: str | os.PathLike[str],
        *,
        version: int | None = None,
        as_of: str | datetime | None = None,
        repeat_rows: bool = True,
        overwrite: bool = False,
        dry_run: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        on_progress: ProgressCallback = silent,
    ) -> Materialization:
        """Write the rows of a selection as Parquet with a manifest, a batch at a time.

        A local folder appears whole or not at all; elsewhere the manifest is written last, and names the files.

        Args:
            selection: of a published version.
            out: folder or URL, empty or not there.
            version: its number; by default the newest.
            as_of: as for `sql`.
            repeat_rows: write a row as often as it is selected; otherwise once, with the column `repeats`.
            overwrite: replace what an earlier call wrote to `out`.
            dry_run: count rows and tokens by domain; write nothing.
            storage_options: for `out`; by default the lake's, if it is of the same kind.
            on_progress: told how far the work is.

        Raises:
            NotFoundError: nothing was published yet, or no such version.
            UsageError: `out` is not empty, is not of an earlier call, or lies in the lake; or no row is selected, or a
                mixture names a domain that the lake does not have.
            InputError: rows of the version have no id any more, since the lake's files have changed.
            StorageError: `out` cannot be written, or a published file is gone.
        """
        from curator.materialize import materialize
        from curator.versions import find_version

        with translated():
            place = self._place_for(out, storage_options)
            return materialize(
                self,
                selection,
                place,
                find_version(self, version, as_of),
                on_progress,
                repeat_rows=repeat_rows,
                overwrite=overwrite,
                dry_run=dry_run,
            )

    def score(
        self,
        run: Run | str,
        out: str | os.PathLike[str],
        *,
        way: Way | None = None,
        workers: int | None = None,
        ray: str | None = None,
        dry_run: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        on_progress: ProgressCallback = silent,
    ) -> Scores:
        """Weigh every row that the lake has now within its domain, by a run's scorer; the lake is ingested first.

        A shard (`curator.score.SCHEMA`) for each of the lake's files is written to `out`, at the file's path, whole or
        not at all. Shards that are there and still hold are left: the same call goes on where a killed one was, and
        after the lake has grown.

        Args:
            run: one that weighed rows, its id, or "latest".
            out: folder or URL.
            way: how rows that the run has not measured are weighed, one of its `ways_to_score`; by default the first.
            workers: processes, by default 1; with more than one, a script that calls this needs
                `if __name__ == "__main__":`. With `ray`, the most tasks at a time, by default one a processor.
            ray: address of a Ray cluster whose machines score, all of which can reach the lake and `out`: "auto" for
                the one that this machine belongs to, HOST:PORT, or "local" for one of this machine alone.
            dry_run: say what would be written.
            storage_options: for `out`; by default the lake's, if it is of the same kind.
            on_progress: told how far the work is, and how fast.

        Raises:
            NotFoundError: no such run.
            UsageError: the run has no scorer, or none of that way, or `out` lies in the lake or has other files in a
                shard's place.
            StorageError: the scorer is damaged, or `out` cannot be written.
            TryAgainError: a worker was killed, a file changed meanwhile, or there is no such cluster.
            MissingExtraError: `ray` is given and not installed, or the copies are to score without torch.
        """
        from curator.score import score

        if workers is not None and workers < 1:
            raise UsageError(f"workers={workers} cannot work", hint="at least 1 is needed")
        with translated():
            chosen = self.run(run) if isinstance(run, str) else run
            place = self._place_for(out, storage_options)
            return score(self, chosen, place, on_progress, way=way, workers=workers, ray=ray, dry_run=dry_run)

    def scan(self, *, version: int | None = None, as_of: str | datetime | None = None) -> pl.LazyFrame:
        """A published version as a polars LazyFrame: all columns of the lake and the three weight columns.

        Args:
            version: its number; by default the newest.
            as_of: as for `sql`.

        Raises:
            NotFoundError: nothing was published yet, or no such version.
        """
        from curator.scan import scan_version
        from curator.versions import find_version

        with translated():
            found = find_version(self, version, as_of)
            return scan_version(self, self.connector.read_manifest(found))

    # what the work is built from ----------------------------------------------------------------------------------

    @property
    def connection(self) -> duck.Connection:
        """A read-only session of the catalog: the row index, and `lake_rows` over the text; opened on first use.

        Raises:
            InputError: the lake has not been ingested, or its files changed since.
            TryAgainError: another process writes the catalog.
        """
        if self._session.is_to_be_ingested:
            self.ingest()
        with translated():
            return self._session.connection

    def forget_views(self) -> None:
        """Let the next query see the runs and versions that are there then."""
        self._session.forget_views()

    def release(self) -> None:
        """Close the catalog so that other processes can write it; it opens again by itself."""
        self._session.release()

    def _session_at(self, version: int | None, as_of: str | datetime | None) -> duck.Connection:
        """The session that answers a query, up to date with what others did since the last one."""
        self._session.let_go_of_the_old()
        if self._session.is_to_be_ingested:
            self.ingest()
        if version is None and as_of is None:
            return self._session.with_views()
        return self._session.at_version(self, version, as_of)

    def check_destination(self) -> None:
        """Find out before hours of work, not after, whether their result can be written.

        Raises:
            StorageError: the destination cannot be written.
        """
        with self.writing():
            self.connector.check_writable(single_writer=self.config.single_writer)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within it, a place that is not there means a destination that cannot be written."""
        with translated():
            try:
                yield
            except connector_errors.NotFoundError as error:
                raise StorageError(
                    f"destination {self.destination.url} cannot be written ({error})",
                    hint="choose another --destination",
                ) from error

    def check_run_dir(self, run_dir: Path | None) -> None:
        """Refuse a run folder whose Parquet files would be taken for rows of this lake.

        Raises:
            ConfigError: it lies inside the lake.
        """
        if run_dir and would_be_read_as_lake(self._root, self.config.url, open_store(str(run_dir.absolute()))):
            raise ConfigError(
                f"run folder {run_dir} lies inside the lake {self.url}, which would take the run's files for more of "
                "its rows",
                hint="name a folder elsewhere with --run-dir",
            )

    def _place_for(self, out: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Store:
        """Where results go, with the lake's storage options if it is of the same kind and none are given."""
        url = os.fspath(out)
        options = storage_options
        if options is None and "://" in url and url.partition("://")[0] == self._root.url.partition("://")[0]:
            options = self.config.storage_options
        place = open_store(url, options)
        if would_be_read_as_lake(self._root, self.config.url, place):
            raise UsageError(
                f"{place.url} lies inside the lake {self.url}, which would take what is written there for more of "
                "its rows",
                hint="choose a folder elsewhere, or one whose name starts with '_'",
            )
        return place

    def _check_mode(self, mode: Mode, bloom_filters: Collection[str]) -> None:
        """Refuse sidecars where a table or a file of views cannot have them, and bloom filters of what has none."""
        from curator.sidecar import check_no_views

        given = {bloom_filters} if isinstance(bloom_filters, str) else set(bloom_filters)
        unknown = sorted(given - set(catalog.WEIGHT_COLUMNS))
        if unknown:
            allowed = ", ".join(map(repr, catalog.WEIGHT_COLUMNS))
            raise UsageError(f"{unknown[0]!r} is no column that gets a bloom filter", hint=f"name some of {allowed}")
        if mode == "sidecar":
            if bloom_filters:
                raise UsageError("bloom filters are for copies, and a sidecar has none", hint="publish copies")
            self._check_owns_log("sidecars are", "publish copies")
            check_no_views(self)

    def _check_owns_log(self, what: str, instead: str) -> None:
        if not self.connector.owns_log:
            raise UsageError(f"{what} for plain Parquet, and {self.url} is a table with a log of its own: {instead}")

    def domain_counts(self) -> list[tuple[str, int]]:
        """(domain, usable rows), sorted by name."""
        rows = self.connection.execute(
            "SELECT domain, count(*) FROM sample_index WHERE usable GROUP BY domain ORDER BY domain"
        ).fetchall()
        return [(str(domain), int(count)) for domain, count in rows]

    def text_batches(self, domains: Sequence[str], *, condition: str = "") -> Iterator[RowBatch]:
        """Every usable row that meets an SQL `condition` ("AND …"); `domain` as an index into `domains`.

        Raises:
            TryAgainError: after the last row, that a file was replaced since it was listed: texts of other rows were
                read for those of the index.
        """
        from curator.tokens import RowBatch

        names = pa.array(list(domains))
        for batch in self._stream(condition):
            yield RowBatch(
                sample_id=batch["sample_id"],
                text=cast("list[str]", batch["text"].to_pylist()),
                domain=pc.index_in(batch["domain"].cast(pa.string()), names).to_numpy().astype(np.int32),
            )

    def texts_of(self, ids: pa.Array) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
        """(places in `ids`, texts) of the rows with these ids, in Arrow batches, in any order; others are left out."""
        connection, text = self.connection, duck.quote_identifier(self.text_name)
        connection.register("asked", pa.table({"sample_id": ids.cast(pa.string()), "place": np.arange(len(ids))}))
        connection.execute("CREATE OR REPLACE TEMP TABLE asked_rows AS SELECT * FROM asked")
        connection.unregister("asked")
        relation = connection.sql(
            f"SELECT a.place, l.{text} AS text FROM lake_rows l JOIN asked_rows a USING (sample_id)"
        )
        for batch in relation.to_arrow_reader(_BATCH_ROWS):
            yield batch["place"].to_numpy(), batch["text"]
        with translated():
            check_corpus_unchanged(self.corpus)

    def text_sample(self, num_bytes: int) -> Iterator[str]:
        """Texts of about `num_bytes` bytes from every domain: the rows whose ids come first."""
        first = (
            "SELECT sample_id FROM (SELECT sample_id, sum(num_bytes) OVER "
            "(PARTITION BY domain ORDER BY md5(sample_id), sample_id) - num_bytes AS before "
            f"FROM sample_index WHERE usable) WHERE before < {int(num_bytes)}"
        )
        for batch in self._stream(f"AND sample_id IN ({first})"):
            yield from cast("list[str]", batch["text"].to_pylist())

    def record_run(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Make a finished run known to the lake: weights and steps first, the record that names it last."""
        from curator.drift import CONTENT
        from curator.learn import RECORD
        from curator.weights import WEIGHTS

        home = f"{catalog.RUN_FOLDER}/{record['run_id']}"
        rows, looks = row_gaps.files(record), (CONTENT,) if record.get("content") else ()
        for name in (WEIGHTS, trajectory.TABLE, *rows, *looks, RECORD):
            path = f"{home}/{name}"
            if self.destination.is_local and Path(self.destination.full_path(path)) == folder / name:
                continue
            write_object(self.destination, path, (folder / name).read_bytes())
        self.release()

    def _stream(self, condition: str) -> Iterator[pa.RecordBatch]:
        text = duck.quote_identifier(self.text_name)
        relation = self.connection.sql(
            f"SELECT sample_id, domain, {text} AS text FROM lake_rows WHERE usable {condition}"
        )
        yield from relation.to_arrow_reader(_BATCH_ROWS)
        with translated():
            check_corpus_unchanged(self.corpus)


def _address(given: object, what: str) -> str:
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if what == "the lake":
        raise UsageError(
            f"the lake is given as a {type(given).__name__}, and its versions are Parquet files",
            hint="give the address of such files, as text or a path; curator.write_corpus(table, FOLDER) makes them",
        )
    raise UsageError(
        f"{what} is given as a {type(given).__name__}",
        hint="give the address of Parquet files, as text or a path, or a table that has Arrow's stream: a DataFrame of "
        "polars (collect a LazyFrame first) or of pandas from 2.2 on, a pyarrow Table, a relation of DuckDB",
    )
