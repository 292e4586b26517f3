"""Backend in plain torch, one process, on transformers' own models.

It shares neither kernels nor weight maps with the Megatron backend, so it is the witness that the two are judged by,
and the fast path for tiny models.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from optim import pretrained
from optim.backend import AdamWSettings, BackendInfo, Copy, ModelSource, Term, UpdateReport
from optim.batch import Batch
from optim.block_adamw import AdamWState, BlockAdamW, clip_factor
from optim.blocks import Block, check_block
from optim.checkpoint import write_index, write_shards, write_synced
from optim.errors import DivergedError, ModelError
from optim.layout import Layout
from optim.line import Line, check_precision, open_line

_LAYER_OF_NAME = re.compile(r"\.(?:layers|h)\.(\d+)\.")


class LocalBackend:
    """Two copies of one transformers model in this process (see `optim.backend.Backend`).

    Dropout is off, so that w and u see the same network. `dtype` is float32, float64 or bfloat16. At most
    `micro_batch_rows` rows go through the model at a time (None: all).

    Raises:
        ModelError: if transformers cannot build or load the model.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        optimizer: AdamWSettings,
        dtype: str = "float32",
        micro_batch_rows: int | None = None,
    ) -> None:
        self._config = pretrained.model_config(source.hf_config)
        self._settings = optimizer
        self._micro_batch_rows = micro_batch_rows
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = pretrained.torch_dtype(dtype, allowed=("float32", "float64", "bfloat16"))
        self._models = {copy: _load_model(source, self._config, precision).to(self._device) for copy in Copy}
        self._optimizers = {copy: BlockAdamW(optimizer) for copy in Copy}
        self._num_layers = int(self._config.num_hidden_layers)
        self.set_block(Block(layers=frozenset(range(self._num_layers)), edges=True))

    @property
    def info(self) -> BackendInfo:
        """What is running where."""
        return BackendInfo(
            name="local",
            num_layers=self._num_layers,
            num_parameters=sum(p.numel() for p in self._models[Copy.MODEL].parameters()),
            layout=str(Layout()),
            device=str(self._device),
            versions={name: version(name) for name in ("torch", "transformers")},
        )

    def set_block(self, block: Block) -> None:
        """Let exactly `block` train, in both copies."""
        check_block(block, num_layers=self._num_layers)
        for copy, model in self._models.items():
            active = {}
            for name, parameter in model.named_parameters():
                layer = _layer_of(name)
                trains = block.edges if layer is None else layer in block.layers
                parameter.requires_grad_(trains)
                if trains:
                    active[name] = parameter
                else:
                    parameter.grad = None
            self._optimizers[copy].activate(active)

    def forward_backward(self, terms: Sequence[Term]) -> list[Tensor]:
        """Add the gradient of the sum of `terms`; return each term's summed token losses, (B,) float64.

        Raises:
            DivergedError: if a loss is not finite.
        """
        losses = []
        for term in terms:
            parts = []
            for rows in self._micro_batches(term.batch):
                loss_B = self._token_losses(term.copy, term.batch, rows).sum(dim=1)
                weight_B = term.token_weight_B[rows].to(loss_B)
                (weight_B * loss_B).sum().backward()  # type: ignore[no-untyped-call]
                parts.append(loss_B.detach())
            losses.append(_checked(torch.cat(parts)))
        return losses

    @torch.no_grad()
    def losses(self, copy: Copy, batch: Batch) -> Tensor:
        """Summed token losses of one copy, (B,) float64, without gradients.

        Raises:
            DivergedError: if a loss is not finite.
        """
        return self.token_losses(copy, batch).sum(dim=1)

    @torch.no_grad()
    def token_losses(self, copy: Copy, batch: Batch) -> Tensor:
        """Token losses of one copy, (B, S) float64, 0 where masked, without gradients.

        Raises:
            DivergedError: if a loss is not finite.
        """
        losses_BS = torch.cat([self._token_losses(copy, batch, rows) for rows in self._micro_batches(batch)])
        _checked(losses_BS.sum(dim=1))
        return losses_BS.cpu()

    def update(self, copy: Copy, *, learning_rate: float) -> UpdateReport:
        """Clip, take one AdamW step on the active block of `copy`, and clear its gradients.

        Raises:
            DivergedError: if the gradient norm is not finite.
        """
        optimizer = self._optimizers[copy]
        norm = _finite_norm((p.grad for p in optimizer.active.values() if p.grad is not None), copy)
        factor = clip_factor(norm, self._settings.max_grad_norm)
        optimizer.update(learning_rate, grad_scale=factor)
        for parameter in optimizer.active.values():
            parameter.grad = None
        return UpdateReport(grad_norm=norm, clipped=factor < 1.0)

    @contextmanager
    def line(self, copy: Copy, *, preconditioned: bool = False) -> Iterator[Line]:
        """The line through `copy` along its gradient (see `optim.backend.Backend.line`)."""
        check_precision(next(self._models[copy].parameters()).dtype)
        optimizer = self._optimizers[copy]
        active = optimizer.active
        if preconditioned:
            direction = optimizer.precondition()
        else:
            direction = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in active.items()}
        for parameter in active.values():
            parameter.grad = None
        norm = _finite_norm(direction.values(), copy)
        with open_line(list(active.values()), list(direction.values()), norm) as line:
            yield line

    @torch.no_grad()
    def restart(self, copy: Copy) -> None:
        """Make `copy` equal to the other one, with its AdamW moments."""
        torch._foreach_copy_(list(self._models[copy].parameters()), list(self._models[copy.other].parameters()))
        self._optimizers[copy].adopt(self._optimizers[copy.other])

    @torch.no_grad()
    def distance(self) -> float:
        """‖w − u‖₂ over all parameters."""
        pairs = zip(self._models[Copy.MODEL].parameters(), self._models[Copy.AUX].parameters(), strict=True)
        squares = [float(torch.linalg.vector_norm(w - u, dtype=torch.float64)) ** 2 for w, u in pairs]
        return float(sum(squares) ** 0.5)

    def parameters(self, copy: Copy) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor on the CPU) of every parameter of `copy`."""
        for name, parameter in self._models[copy].named_parameters():
            yield name, parameter.detach().cpu().clone()

    @torch.no_grad()
    def assign(self, copy: Copy, tensors: Mapping[str, Tensor]) -> None:
        """Give `copy` these parameters, by their Hugging Face names.

        Raises:
            ModelError: one is missing or of another shape.
        """
        for name, parameter in self._models[copy].named_parameters():
            found = tensors.get(name)
            if found is None or found.shape != parameter.shape:
                raise ModelError(f"there is no tensor {name!r} of shape {tuple(parameter.shape)} for {copy}")
            parameter.copy_(found)

    def save(self, folder: Path) -> None:
        """Write both copies and their optimizers' states (see `optim.backend.Backend.save`)."""
        for copy in Copy:
            write_index(folder / copy, write_shards(folder / copy, "model", self._stored(copy)))
            write_synced(folder / copy / "config.json", self._config.to_json_string())
        moments: dict[str, Tensor] = {}
        ages = {}
        for copy, optimizer in self._optimizers.items():
            for name, state, place in optimizer.states():
                ages[f"{copy}.{name}"] = {"step": state.step, "parked": place == "parked"}
                moments |= {f"{copy}.{kind}.{name}": moment for kind, moment in state.moments()}
        write_index(folder / "optimizer", write_shards(folder / "optimizer", "optimizer", moments.items()))
        write_synced(folder / "optimizer" / pretrained.AGES, json.dumps(ages))

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take up what any backend's `save` wrote."""
        moments = pretrained.FolderTensors(folder / "optimizer")
        ages = pretrained.read_ages(folder / "optimizer")
        for copy, model in self._models.items():
            stored = pretrained.FolderTensors(folder / copy)
            for name, parameter in model.named_parameters():
                shape = tuple(parameter.shape)
                parameter.copy_(stored.read(name, shape))
                age = ages.get(f"{copy}.{name}")
                if age is not None:
                    kept = {
                        kind: moments.read(f"{copy}.{kind}.{name}", shape).to(self._device)
                        for kind in ("first", "second", "master")
                        if f"{copy}.{kind}.{name}" in moments
                    }
                    state = AdamWState(age["step"], kept["first"], kept["second"], kept.get("master"))
                    self._optimizers[copy].restore(name, state, parked=age["parked"])

    def _stored(self, copy: Copy) -> Iterator[tuple[str, Tensor]]:
        return ((name, parameter.detach()) for name, parameter in self._models[copy].named_parameters())

    def _micro_batches(self, batch: Batch) -> Iterator[slice]:
        pretrained.check_batch(
            batch, vocab_size=self._config.vocab_size, max_positions=pretrained.max_positions(self._config)
        )
        step = self._micro_batch_rows or batch.num_rows
        for start in range(0, batch.num_rows, step):
            yield slice(start, min(start + step, batch.num_rows))

    def _token_losses(self, copy: Copy, batch: Batch, rows: slice) -> Tensor:
        """mask · ℓ of `rows`, (b, S) float64, differentiable."""
        tokens_BS = batch.tokens_BS[rows].to(self._device)
        mask_BS = batch.mask_BS[rows].to(self._device)
        logits_BSV = self._models[copy](input_ids=tokens_BS[:, :-1], use_cache=False).logits
        logits_BSV = logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32))
        # Flat, since over an inner dimension of 49,152 torch's float32 softmax is off by 3e-5.
        loss_T = functional.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten(), reduction="none")
        loss_BS = loss_T.view(mask_BS.shape)
        return torch.where(mask_BS > 0, loss_BS * mask_BS, 0.0).double()


def _finite_norm(gradients: Iterable[Tensor], copy: Copy) -> float:
    squares = [float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients]
    norm = float(sum(squares) ** 0.5)
    if not math.isfinite(norm):
        raise DivergedError(f"the gradient norm of {copy} is {norm}", hint="lower its learning rate or the penalty")
    return norm


def _load_model(source: ModelSource, config: object, dtype: torch.dtype) -> torch.nn.Module:
    # transformers' SDPA path has no soft cap on the scores; its eager path does.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    if source.folder is None:
        model = _new_model(source, config, attention)
    else:
        model = _pretrained_model(source, config, attention)
    # nn.Embedding gives its padding row no gradient; which rows count is for the mask alone to say.
    model.get_input_embeddings().padding_idx = None
    module: torch.nn.Module = model.to(dtype).eval()
    return module


def _new_model(source: ModelSource, config: object, attention: str) -> Any:
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except ValueError as error:
        raise ModelError(f"transformers has no causal language model for this configuration: {error}") from error
    norm_offset = pretrained.adds_one_to_norms(config)
    initial = pretrained.InitialTensors(
        seed=source.seed, num_layers=int(model.config.num_hidden_layers), norm_offset=norm_offset
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial.read(name, tuple(parameter.shape)))
    return model


def _pretrained_model(source: ModelSource, config: object, attention: str) -> Any:
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            source.folder, config=config, attn_implementation=attention, dtype="float32", output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"transformers cannot load {source.folder}: {error}") from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelError(f"{source.folder} has no tensor {missing[0]!r}, which its config.json calls for")
    return model


def _layer_of(name: str) -> int | None:
    """Layer index of a parameter, None for embedding, final norm and head."""
    match = _LAYER_OF_NAME.search(name)
    return int(match.group(1)) if match else None


def _checked(loss_B: Tensor) -> Tensor:
    loss_B = loss_B.cpu()
    if not torch.isfinite(loss_B).all():
        row = int((~torch.isfinite(loss_B)).nonzero()[0])
        raise DivergedError(
            f"the loss of row {row} is {float(loss_B[row])}", hint="lower the learning rates or the penalty"
        )
    return loss_B
