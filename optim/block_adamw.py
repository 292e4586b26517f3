"""AdamW whose states exist for the active block only, shared by every backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optim.backend import AdamWSettings


@dataclass
class AdamWState:
    """Moments of one parameter, shaped like it, in `_state_dtype`; `master` is a copy in it of one that has less.

    `step` counts its updates.
    """

    step: int
    first: Tensor
    second: Tensor
    master: Tensor | None

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """(Kind, tensor) of what is kept: first, second, and master where there is one."""
        yield "first", self.first
        yield "second", self.second
        if self.master is not None:
            yield "master", self.master

    def to(self, device: torch.device) -> AdamWState:
        """The same state on `device`."""
        master = None if self.master is None else self.master.to(device)
        return AdamWState(self.step, self.first.to(device), self.second.to(device), master)

    def clone(self) -> AdamWState:
        """A copy that shares no memory."""
        master = None if self.master is None else self.master.clone()
        return AdamWState(self.step, self.first.clone(), self.second.clone(), master)


class BlockAdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) over the parameters it was last given.

    What becomes of the moments of a parameter that is left is `settings.moments_on_switch`; a parameter that comes
    back finds them again unless they were dropped.
    """

    def __init__(self, settings: AdamWSettings) -> None:
        self._settings = settings
        self._active: dict[str, Tensor] = {}
        self._states: dict[str, AdamWState] = {}
        self._parked: dict[str, AdamWState] = {}

    @property
    def active(self) -> Mapping[str, Tensor]:
        """The parameters that an update changes, by name."""
        return self._active

    def activate(self, parameters: Mapping[str, Tensor]) -> None:
        """Make `parameters` the active block."""
        for name in [name for name in self._states if name not in parameters]:
            state = self._states.pop(name)
            if self._settings.moments_on_switch == "keep":
                self._parked[name] = state
            elif self._settings.moments_on_switch == "offload":
                self._parked[name] = state.to(torch.device("cpu"))
        for name, parameter in parameters.items():
            if name in self._parked:
                self._states[name] = self._parked.pop(name).to(parameter.device)
        self._active = dict(parameters)

    def adopt(self, other: BlockAdamW) -> None:
        """Remember what `other` does, of parameters of the same names, as copies of its own."""
        self._states = {name: state.clone() for name, state in other._states.items()}
        self._parked = {name: state.clone() for name, state in other._parked.items()}

    def states(self) -> Iterator[tuple[str, AdamWState, Literal["active", "parked"]]]:
        """(Name, state, where it is) of everything that is remembered."""
        yield from ((name, state, "active") for name, state in self._states.items())
        yield from ((name, state, "parked") for name, state in self._parked.items())

    def restore(self, name: str, state: AdamWState, *, parked: bool) -> None:
        """Remember `state` as `states` gave it; the parameter itself need not be active."""
        (self._parked if parked else self._states)[name] = state

    @torch.no_grad()
    def update(self, learning_rate: float, *, grad_scale: float = 1.0) -> None:
        """One step with the gradients in `.grad`, each multiplied by `grad_scale`; an absent gradient counts as 0."""
        by_age: dict[int, list[tuple[Tensor, AdamWState]]] = {}
        for name, parameter in self._active.items():
            if name not in self._states:  # not before it is used: a block that never trains has no moments
                self._states[name] = _new_state(parameter)
            state = self._states[name]
            state.step += 1
            by_age.setdefault(state.step, []).append((parameter, state))
        for age, items in by_age.items():
            self._update_group(items, age, learning_rate, grad_scale)

    @torch.no_grad()
    def precondition(self) -> dict[str, Tensor]:
        """g/(√v̂ + eps) of the gradients in `.grad`, by name; v̂ is the second moment that an update would leave.

        No state changes. A parameter that was never updated has v̂ = g².
        """
        _, beta2 = self._settings.betas
        scaled = {}
        for name, parameter in self._active.items():
            gradient, state = _gradient(parameter), self._states.get(name)
            age, second = (1, 0.0) if state is None else (state.step + 1, beta2 * state.second)
            corrected = (second + (1 - beta2) * gradient**2) / (1 - beta2**age)
            scaled[name] = gradient / (corrected.sqrt() + self._settings.eps)
        return scaled

    def _update_group(self, items: list[tuple[Tensor, AdamWState]], age: int, lr: float, grad_scale: float) -> None:
        beta1, beta2 = self._settings.betas
        weights = [parameter if state.master is None else state.master for parameter, state in items]
        grads = [_gradient(parameter) for parameter, _ in items]
        if grad_scale != 1.0:
            grads = list(torch._foreach_mul(grads, grad_scale))
        first, second = [s.first for _, s in items], [s.second for _, s in items]
        if self._settings.weight_decay:
            torch._foreach_mul_(weights, 1 - lr * self._settings.weight_decay)
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, (1 - beta2**age) ** 0.5)
        torch._foreach_add_(denominator, self._settings.eps)
        torch._foreach_addcdiv_(weights, first, denominator, -lr / (1 - beta1**age))
        for parameter, state in items:
            if state.master is not None:
                parameter.copy_(state.master)


def clip_factor(grad_norm: float, max_grad_norm: float) -> float:
    """What to multiply the gradients by so that their norm is at most `max_grad_norm` (0: leave them), in (0, 1].

    Source: torch.nn.utils.clip_grad_norm_, whose 1e-6 is kept.
    """
    return min(1.0, max_grad_norm / (grad_norm + 1e-6)) if max_grad_norm else 1.0


def _state_dtype(parameter: Tensor) -> torch.dtype:
    """float32, or the parameter's own precision where that is higher."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _new_state(parameter: Tensor) -> AdamWState:
    dtype = _state_dtype(parameter)
    zeros = torch.zeros_like(parameter, dtype=dtype)
    master = None if parameter.dtype == dtype else parameter.detach().to(dtype)
    return AdamWState(0, zeros, zeros.clone(), master)


def _gradient(parameter: Tensor) -> Tensor:
    dtype = _state_dtype(parameter)
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=dtype)
    return parameter.grad.to(dtype)
