"""How long a run takes, over all the processes that worked on it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from curator.files import write_atomically
from curator.progress import Progress, ProgressCallback

_FILE = "seconds"
_SECONDS_BETWEEN_NOTES = 5.0


class Stopwatch:
    """Goes on from what the run folder says, and notes there how far it is whenever progress is told.

    So a process that is killed loses no more than the time since it last told any. Time that workers of `torchrun`
    spend elsewhere is not counted.

    Args:
        folder: of the run.
        on_progress: told what the stopwatch is told.
        already: seconds that this process has spent on the run before there was a folder.
    """

    def __init__(self, folder: Path, on_progress: ProgressCallback, already: float = 0.0) -> None:
        self._path = folder / _FILE
        self._tell = on_progress
        self._start = time.monotonic() - already - self._noted()
        self._last = self._start

    def __call__(self, progress: Progress) -> None:
        """Tell on, and note the time now and then."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_NOTES:
            self._last = now
            with suppress(OSError):  # a full disk ends a run where it matters, not here
                write_atomically(self._path, f"{self.seconds:.3f}")
        self._tell(progress)

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return time.monotonic() - self._start

    def _noted(self) -> float:
        try:
            return float(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0
