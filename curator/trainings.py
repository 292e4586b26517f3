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
"""What a model is trained on, in words, and a seed."""

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
    by_key: dict[str, tuple[Name, Training]] = {}
    for name, training in wanted.items():
        if name not in done:
            by_key.setdefault(training.key, (name, training))
    missing = list(by_key.values())
    stop = threading.Event()
    at_once = min(_at_once(config, device), max(1, len(missing)))
    threads = max(1, launch.device_count("cpu") // (at_once * config.layout.world_size))
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_train, missing[i::at_once], device, threads, stop) for i in range(at_once)]
        try:
            made = [training for _, training in missing]
            _follow(futures, made, (len(done), len(wanted)), config.steps, on_progress)
        except KeyboardInterrupt:
            raise InterruptedRunError("stopped before all models were trained; finished ones are kept") from None
        finally:
            stop.set()
    return finished(wanted)


def _train(share: Sequence[tuple[Name, Training]], device: launch.Device, threads: int, stop: threading.Event) -> None:
    """Train one after the other and keep the results; the workers' output stays where that fails."""
    if not share:
        return
    first = share[0][1]
    first.folder.mkdir(parents=True, exist_ok=True)
    try:
        launch.launch(
            "curator.retrain:run_trainings",
            [training for _, training in share],
            world_size=first.config.layout.world_size,
            device=device,
            preload=("optim.mcore.backend",),
            threads=threads,
            on_poll=lambda: _stop_if(stop),
            log=first.log,
        )
        first.log.unlink(missing_ok=True)
    except _StoppedError:
        first.log.unlink(missing_ok=True)
    except OptimError as error:
        (mixture, seed), _ = next((each for each in share if Trained.read(each[1]) is None), share[-1])
        raise LearningError(f"the training on {mixture} with seed {seed} failed: {one_line(error)}") from error
    finally:
        for _, training in share:
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
        share = (total - there) / max(1, len(trainings))
        finished_now = [training.result.exists() for training in trainings]
        # One that has taken all its steps is measured on the test rows yet.
        at = [
            steps if is_finished else min(_noted(training.progress), steps - 1)
            for is_finished, training in zip(finished_now, trainings, strict=True)
        ]
        count = round(there + share * sum(finished_now))
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
