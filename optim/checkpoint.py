"""Checkpoints in a form that no layout shows in: written under one TP × PP × DP, taken up under any other.

A checkpoint is a folder `step-000000120` with

    model/, aux_model/   w and u as Hugging Face model folders
    optimizer/           Adam moments and master copies under the same tensor names, `ages.json` their update counts
    state.json           the solver's state, what the run was asked to do, and the size of every file; written last

It appears under its name by a rename, when every file is on disk, so a run that is killed at any moment leaves the
checkpoint before it. Within one layout a resumed run repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from optim.errors import CheckpointError
from optim.state import SolverState

SCHEMA_VERSION = 1
_STATE = "state.json"
_INDEX = "model.safetensors.index.json"
_SHARD_BYTES = 1 << 30


class Saveable(Protocol):
    """What a checkpoint asks of a backend."""

    def save(self, folder: Path) -> None:
        """Write everything into an empty folder; collective."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint; `extra` is what the caller of `save` added."""

    folder: Path
    state: SolverState
    extra: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, newest few kept.

    `identity` says what the run was asked to do, as JSON values; a checkpoint of another identity is refused. Methods
    are collective: every rank of the torch.distributed world, if there is one, over one shared file system.
    """

    def __init__(self, folder: Path, *, identity: Mapping[str, Any], keep: int = 2) -> None:
        self._folder = folder
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._keep = keep

    def save(self, backend: Saveable, state: SolverState, extra: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove all but the newest few.

        Raises:
            CheckpointError: it cannot be written; those before it are as they were.
        """
        place = self._folder / f".step-{state.step:09d}"
        try:
            if _is_first():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
            _barrier()
            backend.save(place)
            _barrier()
            if _is_first():
                self._complete(place, state, extra)
            _barrier()  # a rank that goes on, or ends, finds it complete
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {state.step} cannot be written to {self._folder} ({error.strerror or error})",
                hint="free space there and resume, earlier checkpoints are intact",
            ) from error

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint; None if there is none. A damaged one is passed over with a warning.

        Raises:
            CheckpointError: it belongs to a run that was asked to do something else, or all are damaged.
        """
        answer: list[Any] = [None, None]
        if _is_first():
            try:
                answer[0] = self._find()
            except CheckpointError as error:
                answer[1] = str(error)
        if dist.is_initialized():
            dist.broadcast_object_list(answer, src=0)
        name, problem = answer
        if problem is not None:
            raise CheckpointError(problem)
        if name is None:
            return None
        folder = self._folder / name
        values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return Checkpoint(folder=folder, state=SolverState.from_json(values["solver"]), extra=values["extra"])

    def _names(self) -> list[str]:
        """Complete checkpoints, newest first."""
        return sorted((path.name for path in self._folder.glob("step-*")), reverse=True)

    def _complete(self, place: Path, state: SolverState, extra: Mapping[str, Any]) -> None:
        values = {
            "schema_version": SCHEMA_VERSION,
            "identity": self._identity,
            "solver": state.to_json(),
            "extra": dict(extra),
            "files": _sizes(place),
        }
        write_synced(place / _STATE, json.dumps(values))
        final = self._folder / place.name.removeprefix(".")
        shutil.rmtree(final, ignore_errors=True)
        place.rename(final)
        _sync_folder(self._folder)
        # Those of later steps were passed over as damaged when this run went on from before them.
        abandoned = [name for name in self._names() if name > final.name]
        kept = [name for name in self._names() if name <= final.name]
        for name in [*abandoned, *kept[self._keep :]]:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _find(self) -> str | None:
        """Name of the newest checkpoint that is whole."""
        names = self._names()
        for name in names:
            damage, values = _inspect(self._folder / name)
            if damage:
                warnings.warn(f"checkpoint {self._folder / name} is damaged ({damage}); passed over", stacklevel=2)
                continue
            self._check_identity(name, values["identity"])
            return name
        if names:
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged", hint="remove that folder to start from the first step"
            )
        return None

    def _check_identity(self, name: str, identity: Mapping[str, Any]) -> None:
        before, now = dict(_flat(identity)), dict(_flat(self._identity))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise CheckpointError(
                f"checkpoint {self._folder / name} was made with {key}={before.get(key)!r}, but this run has "
                f"{now.get(key)!r}",
                hint="a run is resumed with what it was begun with, but for the layout",
            )


def write_shards(
    folder: Path, prefix: str, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int = _SHARD_BYTES
) -> dict[str, str]:
    """Write tensors as they come into safetensors files of about `shard_bytes`; returns the file of each.

    Memory is bounded by one shard. Every file is on disk on return.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file_of: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    size = count = 0

    def flush() -> None:
        nonlocal shard, size, count
        if shard:
            path = folder / f"{prefix}-{count:05d}.safetensors"
            save_tensors(shard, path, {"format": "pt"})
            file_of.update(dict.fromkeys(shard, path.name))
            shard, size, count = {}, 0, count + 1

    for name, tensor in tensors:
        shard[name] = tensor.detach().cpu()
        size += tensor.numel() * tensor.element_size()
        if size >= shard_bytes:
            flush()
    flush()
    return file_of


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file and wait until it is on disk; safetensors has its own error for a disk that does not take it."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_index(folder: Path, file_of: Mapping[str, str]) -> None:
    """Write the index by which transformers, and `optim.pretrained.FolderTensors`, find the tensors of shards."""
    total = sum((folder / name).stat().st_size for name in set(file_of.values()))
    write_synced(folder / _INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": dict(file_of)}))


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("w", encoding="utf-8") as sink:
        sink.write(text)
        sink.flush()
        os.fsync(sink.fileno())


def _inspect(folder: Path) -> tuple[str, dict[str, Any]]:
    """What is wrong with a checkpoint ('' if nothing), and its state.json."""
    try:
        values: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if values["schema_version"] != SCHEMA_VERSION:
            return f"it is of schema version {values['schema_version']}, this program reads {SCHEMA_VERSION}", values
        SolverState.from_json(values["solver"])
        sizes = _sizes(folder)
        wrong = sorted(name for name, size in values["files"].items() if sizes.get(name) != size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_STATE} cannot be used: {type(error).__name__}", {}
    return (f"{wrong[0]} is missing or cut off" if wrong else ""), values


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _STATE)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
