"""The copies of a run's pairs, kept to measure rows that came later as the run measured its own.

Text tells what a row speaks of, and little of whether its words are in order; the losses under w and u tell both. So
the gap of a later row is taken by forward passes under the copies of every pair, and from there on it is weighed as a
measured one (`optim.row_gaps`). That takes torch, and with the smallest model more than a
thousand times as long as a scorer takes to read the text (`curator.scorer`).

The workers leave a file for each pair in the run folder; with what the weights are made by, they become one that goes
to the destination, if it is not too large. Shapes: N rows, D domains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from connectors.store import Store, read_bytes
from curator.errors import StorageError, one_line, translated
from curator.places import PAIRS
from curator.row_gaps import MeasuredRows
from curator.sampler import RowSet
from curator.scorer import Domains, places_in
from curator.tokens import TokenCache, Tokenizer, parse_tokenizer, read_tokenizer
from optim.backend import AdamWSettings, Backend, Copy, ModelSource
from optim.checkpoint import save_tensors
from optim.row_gaps import Floats, domain_means, spread, weight_ratios, worst_means

MAX_BYTES = 256 << 20
"""Of all copies together, above which they are not kept."""
SCHEMA_VERSION = 2
_LOGITS = 1 << 22
"""At a time: 16 MB of them, which is faster than 64 MB by a tenth, and 256 MB by half (`tiny`, one core)."""


def are_small(num_parameters: int, num_pairs: int) -> bool:
    """Whether the copies of a model of that size, in float32, are small enough to be kept."""
    return len(Copy) * 4 * num_parameters * num_pairs <= MAX_BYTES


def write_pair(backend: Backend, run_dir: Path, pair: int, *, is_writer: bool) -> None:
    """Leave both copies of a pair in the run folder, whole if it can be written. Collective; one rank writes."""
    tensors = {f"{copy}.{name}": tensor for copy in Copy for name, tensor in backend.parameters(copy)}
    if not is_writer:
        return
    folder = run_dir / PAIRS
    with suppress(OSError):  # a full disk ends a run where it matters, not here
        folder.mkdir(exist_ok=True)
        _write(folder / f"pair-{pair}.safetensors", tensors, {})


def keep(
    run_id: str,
    run_dir: Path,
    path: Path,
    measured: MeasuredRows,
    corpus: TokenCache,
    hf_config: Mapping[str, Any],
    *,
    sequence_length: int,
    worst_share: float,
    reliability: float,
    sharpness: float,
) -> dict[str, Any] | None:
    """Make one file of what the workers left of the pairs and of how gaps become weights; its figures for the record.

    None if the workers left none, or not all of them whole, or it cannot be written: what was measured stands without
    it. Arguments are those of the run.
    """
    gaps, places = measured.gaps, measured.places
    tensors: dict[str, Tensor] = {}
    try:
        for pair in range(gaps.num_snapshots):
            with safe_open(run_dir / PAIRS / f"pair-{pair}.safetensors", "pt") as found:
                names = found.keys()
                tensors |= {f"{pair}.{name}": found.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None
    domain_R, tokens_R = np.asarray(corpus.domain)[places], np.asarray(corpus.num_targets)[places]
    width, num_domains = spread(gaps.mean_relative_R, tokens_R), len(corpus.domains)
    ratio_R = weight_ratios(reliability * gaps.mean_relative_R, width, sharpness=sharpness)
    is_measured_D = np.bincount(domain_R, minlength=num_domains) > 0
    offset_D, mean_ratio_D = (_padded(domain_means(x, domain_R, tokens_R), num_domains) for x in (gaps.mean_R, ratio_R))
    values = {  # a domain none of whose rows was measured is taken for all of them together, as the scorer does
        "offset_D": np.where(is_measured_D, offset_D, np.average(gaps.mean_R, weights=tokens_R)),
        "mean_ratio_D": np.where(is_measured_D, mean_ratio_D, 1.0),
    }
    tensors |= {name: torch.from_numpy(value) for name, value in values.items()}
    tokenizer = read_tokenizer(corpus.folder)
    settings = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "num_pairs": gaps.num_snapshots,
        "hf_config": dict(hf_config),
        "tokenizer": tokenizer.backend.to_str(),
        "boundary_id": tokenizer.boundary_id,
        "sequence_length": sequence_length,
        "domains": corpus.domains,
        "worst_share": worst_share,
        "reliability": reliability,
        "width": width,
        "sharpness": sharpness,
    }
    told = json.dumps(settings)
    try:
        _write(path, tensors, {"curator": told, "checksum": _checksum(told, tensors)})
    except OSError:
        return None
    return {"pairs": gaps.num_snapshots, "bytes": path.stat().st_size}


@dataclass(frozen=True, kw_only=True)
class KeptCopies:
    """Weighs rows as the run weighed those that it measured; the models are made when the first row comes."""

    domains: tuple[str, ...]
    data: bytes = field(repr=False)  # not tensors: torch would hand their memory to another process, not copy it
    settings: Mapping[str, Any] = field(repr=False)
    offset_D: Floats = field(repr=False)
    mean_ratio_D: Floats = field(repr=False)

    def index(self, labels: pa.Array) -> Domains:
        """The places of domains in `domains`, −1 for one that the run did not know."""
        return places_in(self.domains, labels)

    def gaps(self, texts: pa.Array) -> Floats:
        """The gap g_i of each row (`optim.row_gaps`), the mean over the pairs, (N,) in nats per token.

        Equal to what the run measured up to rounding, which differs with the machine and the rows beside.
        """
        if not len(texts):
            return np.zeros(0)
        rows, place_N = self._rows(texts)
        rows_at_once = max(1, _LOGITS // (rows.vocab_size * int(self.settings["sequence_length"])))
        windows = RowSet(rows, int(self.settings["sequence_length"]))
        share = float(self.settings["worst_share"])
        gap_N = np.zeros(len(texts))
        for pair in self._pairs:
            gaps = []
            for batch in windows.batches(rows_at_once):
                loss_w_BS, loss_u_BS = (pair.token_losses(copy, batch).numpy() for copy in Copy)
                gaps.append((loss_w_BS - loss_u_BS)[batch.mask_BS.numpy() > 0])
            gap_N[place_N] += worst_means(np.concatenate(gaps), windows.row_of_tokens, len(texts), share)
        return gap_N / len(self._pairs)

    def row_weights(self, texts: pa.Array, domain_N: Domains) -> Floats:
        """In-domain weights v (N,), on the scale on which the run's rows have mean 1 over their domain's tokens."""
        expected_N = float(self.settings["reliability"]) * (self.gaps(texts) - self.offset_D[domain_N])
        width, sharpness = float(self.settings["width"]), float(self.settings["sharpness"])
        weight_N: Floats = weight_ratios(expected_N, width, sharpness=sharpness) / self.mean_ratio_D[domain_N]
        return weight_N

    @staticmethod
    def read(store: Store, path: str, run_id: str) -> KeptCopies:
        """What `keep` wrote for this run.

        Raises:
            InputError: there is none.
            StorageError: it is damaged, of another run, or of another version of this package.
        """
        with translated():
            data = read_bytes(store, path)
        try:
            told, checksum = _metadata(data)
            settings: dict[str, Any] = json.loads(told)
            if settings["schema_version"] == SCHEMA_VERSION:
                tensors = load(data)
                if settings["run_id"] != run_id or _checksum(told, tensors) != checksum:
                    raise ValueError(f"it is not what run {run_id} wrote")
                return KeptCopies(
                    domains=tuple(settings["domains"]),
                    data=data,
                    settings=settings,
                    offset_D=tensors["offset_D"].numpy().copy(),
                    mean_ratio_D=tensors["mean_ratio_D"].numpy().copy(),
                )
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{store.describe(path)} is damaged ({type(error).__name__}: {one_line(error)})",
                hint="learn again, or restore it",
            ) from error
        raise StorageError(
            f"{store.describe(path)} was written by another Lake Curator (schema_version "
            f"{settings['schema_version']}, this one reads {SCHEMA_VERSION})",
            hint="use that one, or learn again",
        )

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which makes its own models."""
        return {name: value for name, value in vars(self).items() if name not in ("_pairs", "_tokenizer")}

    def _rows(self, texts: pa.Array) -> tuple[TokenCache, NDArray[np.int64]]:
        """The rows' tokens, shortest row first, so that those of one batch are about as long; and their places."""
        encoded = self._tokenizer.encode([text or "" for text in texts.to_pylist()])
        length_N = np.array([len(ids) for ids in encoded])
        place_N = np.argsort(length_N, kind="stable")
        start_N = np.cumsum(length_N) - length_N
        rows = TokenCache(
            folder=Path(),
            tokens=np.concatenate(encoded),
            start=start_N[place_N],
            num_targets=length_N[place_N] - 1,
            domain=np.zeros(len(encoded), np.int32),
            domains=("",),
            vocab_size=self._tokenizer.vocab_size,
        )
        return rows, place_N

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return parse_tokenizer(self.settings["tokenizer"], int(self.settings["boundary_id"]))

    @cached_property
    def _pairs(self) -> Sequence[Backend]:
        from optim.local import LocalBackend

        tensors, found = load(self.data), []
        for pair in range(int(self.settings["num_pairs"])):
            backend = LocalBackend(ModelSource(hf_config=self.settings["hf_config"]), optimizer=AdamWSettings())
            for copy in Copy:
                prefix = f"{pair}.{copy}."
                own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
                backend.assign(copy, own)
            found.append(backend)
        return found


def _metadata(data: bytes) -> tuple[str, str]:
    """The settings as text and the checksum, out of the header: a length of eight bytes, then JSON."""
    size = int.from_bytes(data[:8], "little")
    values: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return values["curator"], values["checksum"]


def _checksum(told: str, tensors: Mapping[str, Tensor]) -> str:
    """Of everything in the file: nothing else would tell that a weight is not what it was."""
    digest = xxhash.xxh3_128(told.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _padded(value_D: Floats, num_domains: int) -> Floats:
    return np.append(value_D, np.zeros(num_domains))[:num_domains]


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    place = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        save_tensors(tensors, place, metadata)
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)
