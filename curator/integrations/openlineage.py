"""Lineage events of learning, publishing and refreshing, where OpenLineage's own variables ask for them.

A call is a run of a job: START when it begins, then COMPLETE with what it made, FAIL, or ABORT where the user stopped
it. Datasets are named as OpenLineage's naming says (`s3://bucket` and the key, `file` and the path). An event that
cannot be sent is told by a warning of the logger `curator`; it never ends the work that it is about.

Source: openlineage.io/docs/spec/naming, and the Python client's environment variables.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connectors.store import redact_url
from curator import __version__
from curator.errors import InterruptedRunError, one_line

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

VARIABLES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT", "OPENLINEAGE__TRANSPORT__TYPE")
"""Any of these asks for events; `OPENLINEAGE_DISABLED=true` takes it back."""
_PRODUCER = f"https://pypi.org/project/lake-curator/{__version__}"
_SCHEMES = {"s3a": "s3", "gcs": "gs"}
_log = logging.getLogger("curator")
_outer: ContextVar[tuple[str, str, str] | None] = ContextVar("outer_run", default=None)
"""Namespace, job and run id of the run that the current one is part of."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is read or written: its address, and where they are known its version, rows and bytes."""

    url: str
    version: str | None = None
    num_rows: int | None = None
    size_bytes: int | None = None

    @property
    def name(self) -> tuple[str, str]:
        """Namespace and name."""
        url = redact_url(self.url.removeprefix("delta:"))
        if url.startswith("iceberg:"):
            return "iceberg", url.removeprefix("iceberg:")
        scheme, separator, rest = url.partition("://")
        if not separator or scheme == "file":
            return "file", str(Path(rest or url).expanduser().absolute())
        authority, _, path = rest.partition("/")
        return f"{_SCHEMES.get(scheme, scheme)}://{authority}", path.strip("/") or "/"


@dataclass(kw_only=True)
class Told:
    """What a call has to say at its end: what it made, the version of the lake that it read, why it made nothing."""

    outputs: list[Dataset] = field(default_factory=list)
    snapshot_id: str | None = None
    refused: str = ""


@contextmanager
def lineage(command: str, lake_url: str, *others: str) -> Iterator[Told]:
    """Send events about a call that reads the lake and `others`, if they are asked for."""
    told = Told()
    client = _client()
    if client is None:
        yield told
        return
    run = _Run(client, f"{command} {Dataset(url=lake_url).name[1].rpartition('/')[2]}")
    urls = [lake_url, *filter(None, others)]
    run.emit("START", [Dataset(url=url) for url in urls], [])
    outer = _outer.set((run.namespace, run.job, run.run_id))
    try:
        yield told
    except BaseException as error:
        is_stopped = isinstance(error, KeyboardInterrupt | InterruptedRunError)
        said = one_line(error) if isinstance(error, Exception) else type(error).__name__
        run.emit("ABORT" if is_stopped else "FAIL", [Dataset(url=url) for url in urls], [], said)
        raise
    finally:
        _outer.reset(outer)
    read = [Dataset(url=url, version=None if place else told.snapshot_id) for place, url in enumerate(urls)]
    run.emit("FAIL" if told.refused else "COMPLETE", read, told.outputs, told.refused)


class _Run:
    """One run of a job, whose events share an id."""

    def __init__(self, client: OpenLineageClient, job: str) -> None:
        from openlineage.client.uuid import generate_new_uuid

        self.run_id = str(generate_new_uuid())
        self.namespace = os.environ.get("OPENLINEAGE_NAMESPACE") or "lake-curator"
        self.job = job
        self._client = client
        self._parent = _outer.get() or _parent_in_environment()

    def emit(self, state: str, inputs: Sequence[Dataset], outputs: Sequence[Dataset], error: str = "") -> None:
        """Send an event; what goes wrong is warned of."""
        _warned(lambda: self._client.emit(self._event(state, inputs, outputs, error)), f"{state} of {self.job!r}")

    def _event(self, state: str, inputs: Sequence[Dataset], outputs: Sequence[Dataset], error: str) -> Any:
        from openlineage.client import event_v2 as events
        from openlineage.client.facet_v2 import error_message_run, parent_run

        facets: dict[str, Any] = {}
        if error:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message=error, programmingLanguage="python")
        if self._parent:
            namespace, job, run_id = self._parent
            facets["parent"] = parent_run.ParentRunFacet(
                run=parent_run.Run(runId=run_id), job=parent_run.Job(namespace=namespace, name=job)
            )
        return events.RunEvent(
            eventType=events.RunState[state],
            eventTime=datetime.now(UTC).isoformat(),
            run=events.Run(runId=self.run_id, facets=facets),
            job=events.Job(namespace=self.namespace, name=self.job),
            producer=_PRODUCER,
            inputs=[_input(each) for each in inputs],
            outputs=[_output(each) for each in outputs],
        )


def _input(found: Dataset) -> Any:
    from openlineage.client.event_v2 import InputDataset

    namespace, name = found.name
    return InputDataset(namespace=namespace, name=name, facets=_version(found))


def _output(made: Dataset) -> Any:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    namespace, name = made.name
    counted: dict[str, Any] = {}
    if made.num_rows is not None:
        counted["outputStatistics"] = statistics.OutputStatisticsOutputDatasetFacet(
            rowCount=made.num_rows, size=made.size_bytes
        )
    return OutputDataset(namespace=namespace, name=name, facets=_version(made), outputFacets=counted)


def _version(dataset: Dataset) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset as version

    if dataset.version is None:
        return {}
    return {"version": version.DatasetVersionDatasetFacet(datasetVersion=dataset.version)}


def _client() -> OpenLineageClient | None:
    """OpenLineage's client, configured by its own variables and files; None where nobody asked, or it cannot be."""
    is_disabled = os.environ.get("OPENLINEAGE_DISABLED", "").lower() == "true"
    if is_disabled or not any(os.environ.get(name) for name in VARIABLES):
        return None
    try:
        from openlineage.client import OpenLineageClient
    except ModuleNotFoundError as error:
        _log.warning("no lineage is sent, it needs %r: pip install 'lake-curator[openlineage]'", error.name)
        return None
    made: list[OpenLineageClient] = []
    _warned(lambda: made.append(OpenLineageClient()), "configuration")
    return made[0] if made else None


def _warned(action: Callable[[], Any], what: str) -> None:
    """Do it; whatever the client or its transport raises is told and goes no further."""
    try:
        action()
    except Exception as error:  # of requests, kafka, boto, attrs …: no list would be whole, and the work must go on
        _log.warning("lineage was not sent (%s): %s: %s", what, type(error).__name__, one_line(error))


def _parent_in_environment() -> tuple[str, str, str] | None:
    """What a scheduler that sends lineage itself says of the run that this one is part of: namespace/job/run id."""
    namespace, _, rest = os.environ.get("OPENLINEAGE_PARENT_ID", "").partition("/")
    job, _, run_id = rest.rpartition("/")
    return (namespace, job, run_id) if namespace and job and run_id else None
