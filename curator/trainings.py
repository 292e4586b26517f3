"""Runs the trainings of a comparison, some side by side; each is kept when it ends, so that none is made twice."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from curator.config import CompareConfig
from curator.errors import InterruptedRunError, LearningError, one_line
from curator.progress import Progress, ProgressCallback
from curator.retrain import Trained, Training
from optim import launch
from optim.errors import OptimError
from optim.presets import PRESETS

Name = tuple[str, int]
"""A mixture and a seed."""

_POLL_SECONDS = 0.5


def finished(wanted: Mapping[Name, Training]) -> dict[Name, Trained]:
    """Those that were made before."""
    kept = {name: Trained.read(training) for name, training in wanted.items()}
    return {name: result for name, result in kept.items() if result is not None}


def train_all(
    wanted: Mapping[Name, Training], config: CompareConfig, device: launch.Device, on_progress: ProgressCallback
) -> dict[Name, Trained]:
    """The result of every training; trainings with equal keys are one.

    Raises:
        LearningError: a training failed; the others are ended.
        InterruptedRunError: stopped by the user.
    """
    done = finished(wanted)
    missing: dict[str, Name] = {}
    for name, training in wanted.items():
        if name not in done:
            missing.setdefault(training.key, name)
    names = list(missing.values())
    stop = threading.Event()
    at_once = min(_at_once(config, device), max(1, len(names)))
    threads = max(1, launch.device_count("cpu") // (at_once * config.layout.world_size))
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_train, name, wanted[name], device, threads, stop) for name in names]
        try:
            _follow(futures, [wanted[name] for name in names], (len(done), len(wanted)), config.steps, on_progress)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "stopped before the comparison ended; finished trainings are kept, the same command goes on with them"
            ) from None
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    return finished(wanted)


def _train(name: Name, training: Training, device: launch.Device, threads: int, stop: threading.Event) -> None:
    """Train and keep the result; the workers' output stays where that fails."""
    if stop.is_set():
        return
    training.folder.mkdir(parents=True, exist_ok=True)
    try:
        result: Trained = launch.launch(
            "curator.retrain:run_training",
            training,
            world_size=training.config.layout.world_size,
            device=device,
            preload=("optim.mcore.backend",),
            threads=threads,
            on_poll=lambda: _stop_if(stop),
            log=training.log,
        )[0]
        result.write(training)
        training.log.unlink(missing_ok=True)
    except _StoppedError:
        training.log.unlink(missing_ok=True)
    except OptimError as error:
        raise LearningError(f"training {name[0]!r} with seed {name[1]} failed: {one_line(error)}") from error
    finally:
        training.progress.unlink(missing_ok=True)


def _follow(
    futures: Sequence[Future[None]],
    trainings: Sequence[Training],
    before: tuple[int, int],
    steps: int,
    on_progress: ProgressCallback,
) -> None:
    """Tell how far the trainings are until all have ended; raises what one of them raised.

    `before` is how many were there already, and how many are wanted: the rest share the trainings to be made.
    """
    there, total = before
    while True:
        ended, pending = wait(futures, timeout=0)
        for future in ended:
            future.result()
        share = (total - there) / max(1, len(futures))
        # One that has taken all its steps is measured on the test rows yet.
        at = [
            steps if future in ended else min(_noted(training.progress), steps - 1)
            for future, training in zip(futures, trainings, strict=True)
        ]
        count = round(there + share * len(ended))
        on_progress(
            Progress(
                stage="train",
                done=round(there * steps + share * sum(at)),
                total=steps * total,
                detail=f"steps, {count} of {total} trainings done",
            )
        )
        if not pending:
            return
        wait(pending, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")


def _at_once(config: CompareConfig, device: launch.Device) -> int:
    if config.at_once is not None:
        return config.at_once
    if device != "cpu" or config.model not in PRESETS:
        return 1
    return max(1, launch.device_count(device) // config.layout.world_size)


def _noted(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


class _StoppedError(Exception):
    """Ends a training whose comparison has ended."""


def _stop_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise _StoppedError
