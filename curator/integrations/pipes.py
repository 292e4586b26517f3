"""What Dagster is told of a refresh that it started as a process: Dagster Pipes, where its variable is set."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from curator.errors import one_line
from curator.refresh import Refresh

VARIABLE = "DAGSTER_PIPES_CONTEXT"
_log = logging.getLogger("curator")


def metadata(done: Refresh) -> dict[str, Any]:
    """What a materialization says of itself: the refresh without what is None, reasons and gates in words."""
    values = {key: value for key, value in dataclasses.asdict(done).items() if key not in ("reasons", "gates")}
    told = {key: value for key, value in values.items() if value is not None}
    told["reasons"] = [reason.said for reason in done.reasons]
    return told


@contextmanager
def told_to_dagster() -> Iterator[Callable[[Refresh], None]]:
    """What to tell of the refresh that happens within; does nothing where Dagster did not start this process.

    An exception from within is told, too. Where Dagster cannot be told, a warning of the logger `curator` says so.
    """
    with ExitStack() as stack:
        context = _opened(stack) if os.environ.get(VARIABLE) else None
        yield lambda done: _warned(context, done) if context else None


def _opened(stack: ExitStack) -> Any:
    try:
        from dagster_pipes import open_dagster_pipes
    except ModuleNotFoundError:
        _log.warning("Dagster is told nothing, it needs 'dagster-pipes': pip install 'lake-curator[dagster]'")
        return None
    try:
        return stack.enter_context(open_dagster_pipes())
    except Exception as error:  # whatever the channel that the environment names may raise
        _log.warning("Dagster is told nothing: %s: %s", type(error).__name__, one_line(error))
        return None


def _warned(context: Any, done: Refresh) -> None:
    """Tell it; what was published stays so, whatever becomes of the message."""
    try:
        _tell(context, done)
    except Exception as error:  # of dagster-pipes and of the channel alike
        _log.warning("Dagster was not told of the refresh: %s: %s", type(error).__name__, one_line(error))


def _tell(context: Any, done: Refresh) -> None:
    """A materialization of the one asset of the step, unless a gate kept it from being renewed."""
    gates = [f"gate {gate.name} {'passed' if gate.passed else 'refused'}: {gate.said}" for gate in done.gates]
    for said in gates:
        context.log.info(said)
    if done.outcome in ("refused", "planned"):
        context.log.warning(f"{done.outcome}: nothing was published")
        return
    if not context.is_asset_step or len(context.asset_keys) != 1:
        context.log.info(f"{done.outcome}: version {done.version}; the step has no single asset to materialize")
        return
    context.report_asset_materialization(metadata=metadata(done) | {"gates": gates}, data_version=str(done.version))
