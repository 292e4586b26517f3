"""The seam between the bilevel algorithm and the machinery that holds the two copies of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from optim.batch import Batch
from optim.blocks import Block
from optim.line import Line


class Copy(StrEnum):
    """The two copies of the model: w (`MODEL`) and u (`AUX`)."""

    MODEL = "model"
    AUX = "aux_model"

    @property
    def other(self) -> Copy:
        """The other one of the two."""
        return Copy.AUX if self is Copy.MODEL else Copy.MODEL


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where both copies start.

    `hf_config` is a Hugging Face `config.json` as a mapping. `folder` holds its safetensors; None means initial
    weights drawn from `seed`, each tensor from its own (seed, name), so that every layout starts equal.
    """

    hf_config: Mapping[str, Any]
    folder: Path | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """AdamW over the active block.

    `max_grad_norm` clips the global gradient norm of each copy (0: no clipping). `moments_on_switch` says what
    becomes of the moments of a block that is left: dropped, kept in place, or kept in CPU memory.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    moments_on_switch: Literal["drop", "keep", "offload"] = "drop"


@dataclass(frozen=True, kw_only=True)
class Term:
    """Σ_i token_weight_i · Σ_t mask_it · ℓ_it of one copy over one batch: a summand of an objective.

    `token_weight_B` is (B,) float32, the coefficient of each row's *summed* token loss.
    """

    copy: Copy
    batch: Batch
    token_weight_B: Tensor


@dataclass(frozen=True, kw_only=True)
class UpdateReport:
    """What an optimizer update saw: the gradient norm over the whole model before clipping, and if it was clipped."""

    grad_norm: float
    clipped: bool


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """Facts for the run record."""

    name: str
    num_layers: int
    num_parameters: int
    layout: str
    device: str
    versions: dict[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """Two copies of one model, their gradients and their AdamW states.

    Every method but `info` is collective: all ranks call it with equal arguments, and all get equal results.
    """

    @property
    def info(self) -> BackendInfo:
        """What is running where."""

    def set_block(self, block: Block) -> None:
        """Let exactly `block` train, in both copies; gradients elsewhere are neither computed nor kept."""

    def forward_backward(self, terms: Sequence[Term]) -> list[Tensor]:
        """Add the gradient of the sum of `terms` to the copies' gradients.

        Returns:
            For each term the summed token loss of every row, Σ_t mask_it · ℓ_it, (B,) float64 on the CPU, in nats;
            0 for a fully masked row.
        """

    def losses(self, copy: Copy, batch: Batch) -> Tensor:
        """The same (B,) summed token losses of one copy, without gradients."""

    def token_losses(self, copy: Copy, batch: Batch) -> Tensor:
        """mask_it · ℓ_it of one copy, (B, S) float64 on the CPU, in nats; without gradients."""

    def update(self, copy: Copy, *, learning_rate: float) -> UpdateReport:
        """Clip, take one AdamW step on the active block of `copy`, and clear its gradients."""

    def line(self, copy: Copy, *, preconditioned: bool = False) -> AbstractContextManager[Line]:
        """The line through `copy` along its gradient, whose gradients this clears without an update.

        Within the context `Line.move` puts the active block at θ₀ + s·v/‖v‖; on exit it is at θ₀ again, bit for bit.
        v is the gradient, or with `preconditioned` g/(√v̂ + eps): AdamW's next step along this gradient alone, without
        momentum, learning rate and clipping. Holds θ₀ and v of the active block meanwhile. Nothing else may move the
        copy, or the block, within the context.

        Raises:
            DivergedError: if ‖v‖ is not finite.
            ValueError: the parameters have less than float32's precision.
        """

    def restart(self, copy: Copy) -> None:
        """Make `copy` equal to the other one, bit for bit, with its AdamW moments; gradients are not touched."""

    def distance(self) -> float:
        """‖w − u‖₂ over all parameters."""

    def parameters(self, copy: Copy) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor on the CPU) of every parameter of `copy`, whatever the layout.

        Collective; every rank yields the whole model.
        """

    def save(self, folder: Path) -> None:
        """Write both copies and their optimizers' states into an empty `folder`, in a form that no layout shows in.

        `folder/model` and `folder/aux_model` are Hugging Face model folders, `folder/optimizer` holds the moments by
        the same names (see `optim.checkpoint`).
        """

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, in whatever layout it did.

        Raises:
            ModelError: it is not of this model.
        """
