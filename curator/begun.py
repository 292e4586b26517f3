"""A run between its preparation and its end: what `job.json` in its folder says, so that it can be resumed."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.errors import ConfigError, InterruptedRunError, LearningError, one_line
from curator.files import write_atomically
from curator.leaks import LeakReport
from curator.places import CHECKPOINTS, JOB, RESULT
from curator.slurm import slurm_script
from optim.errors import StoppedError, WorkerError

if TYPE_CHECKING:
    from curator.lake import Lake
    from curator.worker import WorkerJob

_SCHEMA_VERSION = 2
_SLURM = "slurm.sh"


@dataclass(frozen=True, kw_only=True)
class LastVersion:
    """The version whose weights a refresh learns anew: its run, and the weight of each of its domains."""

    version: int
    run_id: str
    domains: Mapping[str, float]

    def weights_of(self, domains: Sequence[str]) -> list[float] | None:
        """The weights of these domains, (D,), which sum to 1; 0 for one that it did not have. None if it had none."""
        found = [max(0.0, self.domains.get(name, 0.0)) for name in domains]
        total = sum(found)
        return [weight / total for weight in found] if total > 0 else None


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run whose workers have their orders: what `job.json` says.

    `duplicates` has `num_duplicates` and their `share` as ingest counted them, both None where a key identifies rows.
    `last` is the version that what is found is compared with; None unless a refresh learns.
    """

    run_id: str
    snapshot_id: str
    target_url: str
    target_text: str
    leaks: LeakReport
    duplicates: Mapping[str, Any]
    job: WorkerJob
    last: LastVersion | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.job.run_dir

    def write(self) -> None:
        """Write `job.json`, and `slurm.sh` for workers that are to run on other machines."""
        values = {
            "schema_version": _SCHEMA_VERSION,
            "run_id": self.run_id,
            "snapshot_id": self.snapshot_id,
            "target": {"url": self.target_url, "text": self.target_text},
            "leaks": self.leaks.to_json(),
            "duplicates": dict(self.duplicates),
            "last": self.last and dataclasses.asdict(self.last),
            "job": self.job.to_json(),
        }
        write_atomically(self.folder / JOB, json.dumps(values, indent=1))
        write_atomically(self.folder / _SLURM, slurm_script(self.folder, self.job.learn.layout.world_size))

    @staticmethod
    def read(folder: Path) -> Begun:
        """What `write` wrote.

        Raises:
            ConfigError: there is none, it is damaged, or of another version of this package.
        """
        from curator.worker import WorkerJob

        path = folder / JOB
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            _check_schema(path, values["schema_version"])
            return Begun(
                run_id=values["run_id"],
                snapshot_id=values["snapshot_id"],
                target_url=values["target"]["url"],
                target_text=values["target"]["text"],
                leaks=LeakReport.from_json(values["leaks"]),
                duplicates=values.get("duplicates", {}),  # runs of before they were counted have none
                job=dataclasses.replace(WorkerJob.from_json(values["job"]), run_dir=folder),
                last=LastVersion(**values["last"]) if values.get("last") else None,
            )
        except FileNotFoundError:
            raise ConfigError(
                f"{folder} holds no run that was begun: there is no {JOB}",
                hint="name the folder that `curator learn` made",
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({type(error).__name__}: {one_line(error)})", hint="learn anew"
            ) from error


def _check_schema(path: Path, found: int) -> None:
    if found != _SCHEMA_VERSION:
        age = "an older" if found < _SCHEMA_VERSION else "a newer"
        raise ConfigError(
            f"{path} was written by {age} Lake Curator (schema_version {found}, this one reads {_SCHEMA_VERSION})",
            hint="end the run with that one, or learn anew",
        )


@contextmanager
def explaining_interruptions(lake: Lake, folder: Path) -> Iterator[None]:
    """Say what is left of a run that does not come to its end, and how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        _remove_if_empty(folder)
        left = f", what it wrote so far is in {folder}" if folder.exists() else ""
        raise InterruptedRunError(
            f"stopped before the run ended; nothing was published{left}{_how_to_go_on(lake, folder)}"
        ) from None
    except (InterruptedRunError, StoppedError, WorkerError) as error:
        kind = LearningError if isinstance(error, WorkerError) else InterruptedRunError
        raise kind(f"{one_line(error)}{_how_to_go_on(lake, folder)}") from error
    except BaseException:
        _remove_if_empty(folder)
        raise


def _how_to_go_on(lake: Lake, folder: Path) -> str:
    """What to add to a message where there is something to go on from: a checkpoint, or what the workers found."""
    if not any((folder / CHECKPOINTS).glob("step-*")) and not (folder / RESULT).exists():
        return ""
    return f"; go on with `curator learn {lake.command_address} --resume {shlex.quote(str(folder))}`"


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
