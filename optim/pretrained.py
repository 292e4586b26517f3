"""What every backend makes of a `ModelSource`: its configuration, its tensors by name, and what a batch may hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig

from optim.batch import Batch
from optim.errors import ModelError
from optim.initial import initial_tensor

AGES = "ages.json"
"""How often each tensor's moments were updated, in the optimizer's folder of a checkpoint."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

_STORED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number formats of a model folder that are read; quantised ones would need their scales."""

# Buffers that older checkpoints carry and no model needs.
_BUFFER_SUFFIXES = (".inv_freq", ".attn.bias", ".attn.masked_bias")


def model_config(hf_config: Mapping[str, Any]) -> Any:
    """The transformers configuration of a `config.json` mapping, with every default filled in.

    Raises:
        ModelError: without `model_type`, of an unknown one, or with values that its family does not accept.
    """
    settings = dict(hf_config)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ModelError("the model's configuration has no model_type", hint="pass the contents of a config.json")
    try:
        return AutoConfig.for_model(model_type, **settings)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"transformers does not accept this {model_type!r} configuration: {error}") from error


def torch_dtype(name: str, *, allowed: Iterable[str]) -> torch.dtype:
    """The torch dtype called `name`.

    Raises:
        ModelError: if it is not among `allowed`.
    """
    if name not in allowed:
        raise ModelError(f"dtype {name!r} is not supported here", hint=f"use one of {', '.join(allowed)}")
    return DTYPES[name]


def adds_one_to_norms(config: Any) -> bool:
    """Whether the family multiplies by 1 + weight in its norms, so that a norm starts at 0."""
    return str(config.model_type).startswith("gemma")


def max_positions(config: Any) -> int:
    """Longest input the model can take, in tokens."""
    return int(config.max_position_embeddings)


def check_batch(batch: Batch, *, vocab_size: int, max_positions: int) -> None:
    """Check that the model has an embedding for every token and position of `batch`.

    Raises:
        ModelError: naming the offending number and the model's limit.
    """
    tokens_BS = batch.tokens_BS
    if tokens_BS.numel() == 0:
        raise ModelError(f"a batch of shape {tuple(tokens_BS.shape)} has no tokens")
    lowest, highest = (int(value) for value in torch.aminmax(tokens_BS))
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ModelError(
            f"token id {wrong} is outside the model's vocabulary 0..{vocab_size - 1}",
            hint="were the texts tokenized with another model's tokenizer?",
        )
    length = tokens_BS.shape[1] - 1
    if length > max_positions:
        raise ModelError(
            f"sequences of {length} tokens are longer than the model's {max_positions} positions",
            hint=f"set sequence_length to {max_positions} or less",
        )


class InitialTensors:
    """Initial weights drawn by name: the same full tensor in every layout."""

    def __init__(self, *, seed: int, num_layers: int, norm_offset: bool) -> None:
        self._seed = seed
        self._num_layers = num_layers
        self._norm_offset = norm_offset

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The full tensor of the Hugging Face parameter `name`."""
        return initial_tensor(name, shape, seed=self._seed, num_layers=self._num_layers, norm_offset=self._norm_offset)


class FolderTensors:
    """Tensors of a folder of safetensors (one file, or several with an index), read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of = _files_of_tensors(folder)
        self._open: dict[str, Any] = {}
        self._read: set[str] = set()

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The full tensor of the Hugging Face parameter `name`.

        A checkpoint of the bare model, whose names lack the first component, is understood too.

        Raises:
            ModelError: if it is absent, not of `shape`, not of floating-point numbers, or holds one that is not finite.
        """
        stored = next((n for n in (name, name.partition(".")[2]) if n in self._file_of), None)
        if stored is None:
            raise ModelError(f"{self._folder} has no tensor {name!r}, which its config.json calls for")
        tensor = self._tensor(stored)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"tensor {name!r} in {self._folder} has shape {tuple(tensor.shape)}, but its config.json says {shape}"
            )
        if tensor.dtype not in _STORED_DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _STORED_DTYPES)
            raise ModelError(
                f"tensor {name!r} in {self._folder} is {str(tensor.dtype).removeprefix('torch.')}, which is not "
                f"read ({known} are)",
                hint="save the model unquantised",
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(
                f"tensor {name!r} in {self._folder} holds numbers that are not finite; the model is broken"
            )
        self._read.add(stored)
        return tensor

    @property
    def unread(self) -> set[str]:
        """Stored names that nothing has asked for."""
        return self._file_of.keys() - self._read

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def _tensor(self, stored: str) -> Tensor:
        name = self._file_of[stored]
        if name not in self._open:
            self._open[name] = _open_safetensors(self._folder / name)
        try:
            tensor: Tensor = self._open[name].get_tensor(stored)
        except SafetensorError as error:  # an index that says what its files do not hold
            raise ModelError(f"cannot read tensor {stored!r} of {self._folder / name}: {error}") from error
        return tensor


def read_ages(folder: Path) -> dict[str, dict[str, Any]]:
    """{"copy.tensor": {"step": updates, "parked": whether its block was left}} of a checkpoint's optimizer."""
    ages: dict[str, dict[str, Any]] = json.loads((folder / AGES).read_text(encoding="utf-8"))
    return ages


def check_none_left(folder: Path, unread: Iterable[str], *, tied: bool) -> None:
    """Check that no tensor of `folder` was ignored: a model that has more is not the one we compute.

    Raises:
        ModelError: naming the first tensors left over.
    """
    left = [name for name in unread if not name.endswith(_BUFFER_SUFFIXES) and not (tied and name == "lm_head.weight")]
    if left:
        raise ModelError(
            f"{folder} holds {len(left)} tensors that this model family has no place for "
            f"({', '.join(sorted(left)[:3])}); its architecture is not supported"
        )


def _files_of_tensors(folder: Path) -> dict[str, str]:
    """File name of every tensor in `folder`."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{index} is damaged ({type(error).__name__}: {error})", hint="save the model again"
            ) from error
    single = folder / "model.safetensors"
    if not single.exists():
        raise ModelError(
            f"{folder} has no model.safetensors", hint="save the model there with transformers' save_pretrained"
        )
    with _open_safetensors(single) as file:
        return dict.fromkeys(file.keys(), single.name)


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
