"""Process groups as a value, and the reductions that make a layout compute what one process would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import Parameter

from optim.errors import LayoutError
from optim.layout import Layout
from optim.mcore.device import pick_device

_BUCKET_ELEMENTS = 1 << 24

EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"


@dataclass(frozen=True, kw_only=True)
class ProcessGroups:
    """The groups this rank belongs to.

    `tensor`, `data` and `pipeline` are the parallel axes; `replica` holds one whole model (tensor × pipeline);
    `ends` is the first and the last stage, None on a stage in between and without pipeline parallelism.
    """

    tensor: ProcessGroup
    data: ProcessGroup
    pipeline: ProcessGroup
    replica: ProcessGroup
    ends: ProcessGroup | None

    @property
    def tensor_rank(self) -> int:
        """Position on the tensor axis."""
        return dist.get_rank(self.tensor)

    @property
    def tensor_size(self) -> int:
        """Length of the tensor axis."""
        return dist.get_world_size(self.tensor)

    @property
    def data_rank(self) -> int:
        """Position on the data axis."""
        return dist.get_rank(self.data)

    @property
    def data_size(self) -> int:
        """Length of the data axis."""
        return dist.get_world_size(self.data)

    @property
    def stage(self) -> int:
        """Position on the pipeline axis."""
        return dist.get_rank(self.pipeline)

    @property
    def num_stages(self) -> int:
        """Length of the pipeline axis."""
        return dist.get_world_size(self.pipeline)

    @property
    def is_first_stage(self) -> bool:
        """Whether the embedding is here."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether the head and the loss are here."""
        return self.stage == self.num_stages - 1


@contextmanager
def process_world() -> Iterator[None]:
    """Use the torch.distributed world that is there, or make one of this process alone for the time being."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def model_parallel(layout: Layout) -> Iterator[ProcessGroups]:
    """Megatron's parallel state for `layout`; gone on exit. torch's random state is left as it was.

    Collective: every rank of the world.

    Raises:
        LayoutError: if the world is not as large as the layout, or model parallelism is in use already.
    """
    if dist.get_world_size() != layout.world_size:
        raise LayoutError(f"{layout} needs {layout.world_size} workers, but there are {dist.get_world_size()}")
    if parallel_state.model_parallel_is_initialized():
        raise LayoutError("this process runs a Megatron model already", hint="close it before opening another")
    parallel_state.initialize_model_parallel(
        layout.tensor_parallel,
        layout.pipeline_parallel,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=_timeout_of_world() / timedelta(minutes=1),
    )
    try:
        with torch.random.fork_rng(devices=[]):
            model_parallel_cuda_manual_seed(
                1
            )  # Megatron insists on it before it builds a layer; no value depends on it
        yield _current_groups()
    finally:
        # Megatron forgets its groups; each would leave three threads, one of which wakes a hundred times a second.
        opened = parallel_state._global_process_group_list or []  # noqa: SLF001 - it offers no other way
        parallel_state.destroy_model_parallel()
        for group in opened:
            if group is not None:  # the world, which is not ours
                dist.destroy_process_group(group)


def _timeout_of_world() -> timedelta:
    """How long the world's collectives wait for a peer; Megatron would give its groups a limit of its own."""
    world = dist.group.WORLD
    assert world is not None
    options = world._get_backend(pick_device()).options  # noqa: SLF001 - torch offers no other way
    timeout: timedelta = getattr(options, "_timeout", dist.default_pg_timeout)  # a fake world has no options
    return timeout


def _current_groups() -> ProcessGroups:
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    stage, num_stages = dist.get_rank(pipeline), dist.get_world_size(pipeline)
    is_end = num_stages > 1 and stage in (0, num_stages - 1)
    return ProcessGroups(
        tensor=parallel_state.get_tensor_model_parallel_group(),
        data=parallel_state.get_data_parallel_group(),
        pipeline=pipeline,
        replica=parallel_state.get_model_parallel_group(),
        ends=parallel_state.get_embedding_group() if is_end else None,
    )


def sync_gradients(parameters: Mapping[str, Parameter], groups: ProcessGroups, *, tied: bool) -> None:
    """Complete the gradients of the active `parameters` of one copy; an absent gradient becomes 0.

    Summed over data parallelism; over the tensor axis where each rank saw its own heads or positions only; and over
    the two copies of a tied embedding.

    Collective: every rank of the world, with the same block active.
    """
    for parameter in parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    if groups.data_size > 1:
        _sum_over(gradients.values(), groups.data)
    if groups.tensor_size > 1:
        partial = [g for name, g in gradients.items() if _is_partial(name, parameters[name])]
        _sum_over(partial, groups.tensor)
    if tied and groups.ends is not None:
        _sum_over([g for name, g in gradients.items() if name in (EMBEDDING, HEAD)], groups.ends)


def _is_partial(name: str, parameter: Parameter) -> bool:
    """Whether a replicated parameter gets a part of its gradient on each tensor-parallel rank.

    Norms of heads do, and under sequence parallelism all that acts on this rank's positions only.
    """
    is_head_norm = ".q_layernorm." in name or ".k_layernorm." in name
    return is_head_norm or bool(getattr(parameter, "sequence_parallel", False))


def _sum_over(gradients: Iterable[Tensor], group: ProcessGroup) -> None:
    """All-reduce in flat buckets."""
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def is_counted_here(name: str, parameter: Parameter, groups: ProcessGroups, *, tied: bool) -> bool:
    """Whether this rank counts `parameter` in a sum over the whole model: every element is counted exactly once."""
    if name == HEAD and tied:
        return False
    return is_split(parameter) or groups.tensor_rank == 0


def is_split(parameter: Parameter) -> bool:
    """Whether `parameter` is a shard on the tensor axis."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def global_norm(tensors: Iterable[Tensor], groups: ProcessGroups) -> float:
    """√ of the sum of squares of `tensors` over all ranks of one model, in float64.

    Collective: every rank of `groups.replica`.
    """
    total = torch.zeros((), dtype=torch.float64, device=pick_device())
    for tensor in tensors:
        total += torch.linalg.vector_norm(tensor, dtype=torch.float64).square()
    dist.all_reduce(total, group=groups.replica)
    return float(total.sqrt())
