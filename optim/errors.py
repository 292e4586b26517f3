"""Errors of the optimizer.

OptimError
├── LayoutError       tensor × pipeline × data parallelism that this model or machine cannot have
├── ModelError        a model folder, family or configuration that cannot be used
├── DivergedError     a loss, gradient or weight became NaN or infinite
├── CheckpointError   a checkpoint that cannot be written, or not be used for this run
├── StoppedError      a run was asked to stop and has written a checkpoint
├── WorkerError       a worker process failed; carries its rank and its traceback
└── MissingExtraError torch, transformers or megatron-core is not installed
"""

from __future__ import annotations


class OptimError(Exception):
    """Base of everything this package raises on purpose; as text `message`, and after a semicolon the `hint`.

    As `connectors.errors.Hinted`, which this package may not know.

    Args:
        message: what is wrong and where.
        hint: what to do about it, where the message does not say so already.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}; {hint}")
        self.message = message
        self.hint = hint


class LayoutError(OptimError):
    """The model or the machine cannot be split as asked."""


class ModelError(OptimError):
    """The model cannot be loaded or is of a family that is not supported."""


class DivergedError(OptimError):
    """Training left the finite numbers; nothing it produced should be used."""


class CheckpointError(OptimError):
    """A checkpoint cannot be written, or cannot be used for this run."""


class StoppedError(OptimError):
    """The run was asked to stop; it can be resumed from the checkpoint it has just written."""


class MissingExtraError(OptimError):
    """A package of the `train` extra is missing."""


class WorkerError(OptimError):
    """A worker process failed.

    `rank` is the worker that failed first, `traceback` its formatted traceback ('' when it was killed).
    """

    def __init__(self, message: str, *, rank: int, traceback: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.traceback = traceback

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_worker_error, (str(self), self.rank, self.traceback)


def _rebuild_worker_error(message: str, rank: int, traceback: str) -> WorkerError:
    return WorkerError(message, rank=rank, traceback=traceback)
