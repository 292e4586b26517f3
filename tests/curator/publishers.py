"""Processes that publish runs of one lake at the same time; run by test_publishers.py.

Run as a program: `python publishers.py URL OPTIONS RUN_ID…`. One process a run begins when all are there. Prints, as
JSON, what each made or how often it was told to try again.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from store_cases import open_copy

import curator.publish  # noqa: F401  # once here rather than in every child
from curator.errors import TryAgainError

PATIENCE = 20
"""Attempts; what the message of the error asks for."""


def publish(url: str, options: dict[str, Any] | None, run_id: str, start: Any, answers: Any) -> None:
    start.wait()
    told = []
    for _ in range(PATIENCE):
        try:
            with open_copy(url, options) as lake:
                made = lake.publish(run_id)
        except TryAgainError as error:
            told.append(str(error))
        else:
            answers.put((run_id, made.version, made.created, told))
            return
    answers.put((run_id, None, False, told))


def main(url: str, options: dict[str, Any] | None, run_ids: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(len(run_ids)), context.Queue()
    processes = [context.Process(target=publish, args=(url, options, run_id, start, answers)) for run_id in run_ids]
    for process in processes:
        process.start()
    made = [answers.get(timeout=200) for _ in run_ids]
    for process in processes:
        process.join()
    print(json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:])
