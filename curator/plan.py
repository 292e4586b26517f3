"""`curator plan`: what a run will take on each device, and which layout to choose, before there is a device."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from curator.config import LearnConfig, parse
from curator.errors import UsageError, translated
from curator.prepare import model_config
from curator.progress import Progress, ProgressCallback, silent
from optim.families import check_family
from optim.planner import GIB, PUBLISHED, Plan, Setup, check_fits, plan, propose

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = ("weights", "gradients", "moments", "masters", "activations", "update", "total")


def plan_run(
    learn: LearnConfig,
    *,
    devices: int | None = None,
    memory_gib: float | None = None,
    device: str = "cuda",
    on_progress: ProgressCallback = silent,
) -> Plan:
    """The plan of `learn` as it stands, or with `devices` the layout, block and recomputation proposed for them.

    `learn.model` may be the name of a published model too (`optim.planner.PUBLISHED`). With `devices`, a block size
    other than 0 is kept, and the layout of `learn` is not looked at.

    Raises:
        InputError: the model or the layout cannot be used, or does not fit `memory_gib`.
        UsageError: `devices` without `memory_gib`.
        MissingExtraError: the train extra is not installed.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is not known", hint="use cpu or cuda")
    if devices is not None and memory_gib is None:
        raise UsageError("a proposal for --devices needs --memory, the GiB of each")
    hf_config = _hf_config(learn)
    shared: dict[str, Any] = {
        "edges": learn.blocks.edges,
        "moments": learn.blocks.moments,
        "sequence_length": learn.sequence_length,
        "micro_batch_tokens": learn.micro_batch_tokens,
        "dtype": learn.dtype,
        "device": device,
    }
    setups = count()

    def tell(setup: Setup) -> None:
        on_progress(Progress(stage="plan", done=next(setups), detail=f"setups measured, now {setup}"))

    with translated():
        check_family(hf_config)
        if devices is not None:
            assert memory_gib is not None
            size = learn.blocks.size or None
            return propose(
                hf_config, num_devices=devices, memory_gib=memory_gib, block_size=size, on_setup=tell, **shared
            )
        setup = Setup(layout=learn.layout, block_size=learn.blocks.size, recompute=learn.recompute, **shared)
        made = plan(hf_config, setup, memory_gib=memory_gib)
        check_fits(made)
        return made


def chosen(given: Mapping[str, Any]) -> LearnConfig:
    """What was given as settings of a run, checked; the rest as is usual for models of some size."""
    usual: dict[str, Any] = {"sequence_length": 2048, "dtype": "bfloat16", **given}
    usual.setdefault("micro_batch_tokens", usual["sequence_length"])
    return parse(LearnConfig, usual, "the arguments")


def rows(made: Plan) -> Sequence[Sequence[str]]:
    """GiB of each kind of stage, by `COLUMNS`."""
    return [[str(rank.stage), *(f"{getattr(rank, name) / GIB:.2f}" for name in COLUMNS)] for rank in made.ranks]


def values(made: Plan, *, seconds: float | None) -> dict[str, Any]:
    """The plan for `--json`, in bytes."""
    setup, layout = made.setup, made.setup.layout
    return {
        "status": "ok",
        "num_parameters": made.size.num_parameters,
        "tensor_parallel": layout.tensor_parallel,
        "pipeline_parallel": layout.pipeline_parallel,
        "data_parallel": layout.data_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "block_size": setup.block_size,
        "edges": setup.edges,
        "moments": setup.moments,
        "recompute": setup.recompute,
        "dtype": setup.dtype,
        "sequence_length": setup.sequence_length,
        "micro_batch_tokens": setup.micro_batch_tokens,
        "worst_total_bytes": made.worst.total,
        "reserve_bytes": int(setup.reserve_gib * GIB),
        "memory_gib": made.memory_gib,
        "fits": None if made.memory_gib is None else made.fits,
        "estimated_seconds_per_step": seconds,
        "stages": [
            {"stage": rank.stage, **{name: getattr(rank, name) for name in COLUMNS}, "host": rank.host}
            for rank in made.ranks
        ],
    }


def _hf_config(learn: LearnConfig) -> dict[str, Any]:
    return dict(PUBLISHED[learn.model]) if learn.model in PUBLISHED else model_config(learn)
