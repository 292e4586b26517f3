"""Where Megatron-Core runs: the GPU of this process, or the CPU through a shim.

megatron-core asks for CUDA in three ways on the paths used here: `torch.cuda.<function>()`, `device="cuda"` in a
factory call, and the CUDA random-state tracker. `megatron_on_this_device()` gives the modules of megatron.core a
stand-in for their global name `torch`; nothing in torch itself is changed, so other code in the process keeps its own.
"""

from __future__ import annotations

import functools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optim.errors import MissingExtraError

_FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "full",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
_MEGATRON_OWN_WARNINGS = (
    "full scope is deprecated",  # its default
    "MLP requires ffn_hidden_size, but it was not provided",  # its layer
    "Warning: tp_group is None, using default tp group",  # its row-parallel linear layer
    r".torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor). is deprecated",  # its gather of split heads
)
_depth = 0


def pick_device() -> torch.device:
    """The current CUDA device of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def import_megatron() -> None:
    """Import every megatron module this package uses.

    Its notices that Transformer Engine and Apex are absent are dropped: neither is used. Without a GPU, functions that
    it wraps in torch.compile at import time stay plain: compiling them needs a C++ compiler and imports all of
    inductor (1.5 s), and no hot path here goes through them.

    Raises:
        MissingExtraError: if megatron-core or something it imports is not installed.
    """
    compile_ = torch.compile
    if not torch.cuda.is_available():
        torch.compile = _do_not_compile
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"megatron\.core")
            import megatron.core.models.gpt
            import megatron.core.pipeline_parallel.schedules
            import megatron.core.tensor_parallel.random  # noqa: F401
    except ModuleNotFoundError as error:
        is_megatron = str(error.name).startswith("megatron")
        install = (
            "'lake-curator[train]'" if is_megatron else error.name
        )  # 0.19 imports triton, which it does not declare
        raise MissingExtraError(f"training on Megatron-Core needs {error.name!r}: pip install {install}") from error
    finally:
        torch.compile = compile_


@contextmanager
def megatron_warnings_dropped() -> Iterator[None]:
    """Within it megatron-core's deprecations of its own calls and defaults are not shown; everything else is."""
    with warnings.catch_warnings():
        for message in _MEGATRON_OWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def _do_not_compile(model: Callable[..., Any] | None = None, **_: object) -> Any:
    return model if model is not None else (lambda function: function)


@contextmanager
def megatron_on_this_device() -> Iterator[None]:
    """Within it megatron.core works on this process's device; a no-op where there is CUDA. Re-entrant.

    Only modules imported before are shimmed, which `import_megatron` sees to.
    """
    global _depth
    saved = [] if _depth or torch.cuda.is_available() else _install_shim()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for module, name, value in reversed(saved):
            setattr(module, name, value)


def _install_shim() -> list[tuple[types.ModuleType, str, Any]]:
    """Replace the names; return (module, name, old value) of each."""
    import megatron.core.tensor_parallel.random as random_module

    stand_in = _CpuTorch()
    modules = [m for name, m in sys.modules.items() if name.startswith("megatron.core")]
    names: list[tuple[types.ModuleType, str, Any]] = [
        (module, "torch", stand_in) for module in modules if getattr(module, "__dict__", {}).get("torch") is torch
    ]
    names += [
        (random_module, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()),
        (random_module, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
        (random_module, "_CUDA_RNG_STATE_TRACKER", _cpu_random_states(random_module.CudaRNGStatesTracker)),
        (random_module, "_CUDA_RNG_STATE_TRACKER_INITIALIZED", True),
    ]
    saved = [(module, name, getattr(module, name)) for module, name, _ in names]
    for module, name, value in names:
        setattr(module, name, value)
    return saved


class _CpuCuda(types.ModuleType):
    """The part of `torch.cuda` that has a meaning without a device; anything else is torch's own (and raises)."""

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def synchronize(self, *_: object) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_rng_state(self, *_: object) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, *_: object) -> None:
        torch.set_rng_state(state)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class _CpuTorch(types.ModuleType):
    """torch, except that its factories put "cuda" tensors on the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.__dict__.update(torch.__dict__)  # plain dictionary look-ups: no cost per call
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))
        self.cuda = _CpuCuda("torch.cuda")

    def __getattr__(self, name: str) -> Any:  # torch's lazily imported submodules
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = torch.device("cpu")
        return factory(*args, **kwargs)

    return call


def _cpu_random_states(tracker: type) -> Any:
    """Megatron's tracker of named random states over the CPU's default generator."""

    class CpuRandomStates(tracker):  # type: ignore[misc]
        def add(self, name: str, seed: int) -> None:
            self._is_initialized = True
            self.seeds_.add(seed)
            self.states_[name] = torch.Generator().manual_seed(seed).get_state()

        @contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    return CpuRandomStates()


@contextmanager
def fast_float32_matmul() -> Iterator[bool]:
    """Within it float32 matrix products use oneDNN where that is faster than MKL at the same precision.

    On AMD processors MKL takes its slow path (tests/bench/bench_cpu_kernels.py). oneDNN's "bf16" mode
    would really round to bfloat16 on a processor with AMX, so it is left off there and wherever a product
    differs from float64 by more than float32 explains. The choice depends on the machine alone, never on timing, so
    that runs repeat exactly. Yields whether it is on.
    """
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(matmul, "fp32_precision") or not _is_amd_without_amx():
        yield False
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        exact = _matmul_error() < 5e-6
        if not exact:
            matmul.fp32_precision = before
        yield exact
    finally:
        matmul.fp32_precision = before


def _is_amd_without_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if not has_onednn or not cpuinfo.exists():
        return False
    text = cpuinfo.read_text()
    return "AuthenticAMD" in text and "amx_tile" not in text


def _matmul_error() -> float:
    """Largest error of a random float32 product, relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    return float((left @ right - exact).abs().max() / exact.abs().max())
