"""`curator demo`: the whole product on a small lake of real text that this Python installation carries."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curator import demo_corpus
from curator.config import DEFAULT_FILE, load_config
from curator.errors import ConfigError, StorageError
from curator.initialize import toml_string
from curator.lake import open_lake
from curator.progress import ProgressCallback, silent
from curator.run import Run

if TYPE_CHECKING:
    from curator.publish import Publication

_MARKER = ".made-by-curator-demo"
STEPS = 120
"""Steps of the demo's run."""
SEQUENCE_LENGTH = 96
"""Target tokens of a sequence: the demo's rows are short."""
LINE_SEARCH = {"steps": 60, "tokens_per_step": 1024, "places": (1.0, 3.0), "seeds": 4}
"""The trainings that judge the learned weights: fewer and shorter ones than usual, since a demo is not to take long."""
MIN_RELATED_RATIO = 2.0
"""The related domain ends above this multiple of its natural share, in every seed tried."""
MAX_CORRUPTED_RATIO = 0.2
"""The corrupted domain ends below this multiple of its natural share, in every seed tried."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made; `related` should have gained weight and `corrupted` lost it."""

    lake: Path
    target: Path
    run: Run
    publication: Publication
    report: Path
    related: str = demo_corpus.RELATED
    corrupted: str = demo_corpus.CORRUPTED

    @property
    def ratios(self) -> dict[str, float]:
        """Learned weight over natural share of every domain."""
        return {row["domain"]: float(row["ratio"]) for row in self.run.record["domains"]}


def run_demo(folder: Path, *, seed: int = 0, steps: int = STEPS, on_progress: ProgressCallback = silent) -> DemoResult:
    """Build the lake in `folder`, then ingest → learn → publish → report as any user would.

    The folder must be new, empty, or one that an earlier demo made: that one is replaced.

    Raises:
        ConfigError: the folder holds something else.
    """
    marker = folder / _MARKER
    try:
        if marker.exists():
            shutil.rmtree(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is not an empty folder", hint="remove it or name another with --dir")
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        corpus = demo_corpus.build(folder, seed=seed)
        path = _write_settings(folder, corpus, seed=seed, steps=steps)
    except OSError as error:
        raise StorageError(f"the demo lake cannot be written to {folder}: {error.strerror}") from error
    settings = load_config(path, environ={})
    with open_lake(settings.lake.url, config=settings.lake) as lake:
        run = lake.learn(str(corpus.target), config=settings.learn, on_progress=on_progress)
        publication = lake.publish(run, on_progress=on_progress)
        report = Path(run.report(folder / "report.html").path)
    return DemoResult(lake=corpus.lake, target=corpus.target, run=run, publication=publication, report=report)


def _write_settings(folder: Path, corpus: demo_corpus.DemoCorpus, *, seed: int, steps: int) -> Path:
    """The settings file of the demo's lake, for the commands that come after it."""
    search = ", ".join(f"{name} = {json.dumps(value)}" for name, value in LINE_SEARCH.items())
    path = folder / DEFAULT_FILE
    path.write_text(
        f"""\
# What the demo learned with. In this folder commands read it by themselves, elsewhere with --config.

[lake]
url = {toml_string(str(corpus.lake.absolute()))}
text = "text"
domain = "source"

[target]
url = {toml_string(str(corpus.target.absolute()))}

[learn]
steps = {steps}
seed = {seed}
sequence_length = {SEQUENCE_LENGTH}
line_search = {{ {search} }}        # fewer and shorter trainings than usual
""",
        encoding="utf-8",
    )
    return path
