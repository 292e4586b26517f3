"""Small models, batches and training runs that the backend tests share, also inside worker processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from optim.backend import AdamWSettings, Backend, BackendInfo, Copy, ModelSource, Term
from optim.batch import Batch, StepData
from optim.blocks import BlockSchedule
from optim.data_weights import DataWeightSettings
from optim.errors import DivergedError
from optim.layout import Layout
from optim.learners.registry import make_learner
from optim.retrain import TrainRecord, summed_losses
from optim.retrain import train as train_fresh
from optim.schedules import LearningRate
from optim.solver import Solution, SolverSettings, solve

VOCAB = 131  # odd, so that tensor parallelism has to pad it
_LLAMA_LIKE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", **_LLAMA_LIKE},
    "llama3-tied": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        **_LLAMA_LIKE,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8, **_LLAMA_LIKE},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **_LLAMA_LIKE},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, **_LLAMA_LIKE},
    "qwen3-tied": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True, **_LLAMA_LIKE},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 4,
        "vocab_size": VOCAB,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 32,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        **_LLAMA_LIKE,
    },
}

# With Adam's usual eps of 1e-8 a gradient that is mathematically 0 moves its weight by ± the learning rate, on the sign
# of rounding noise, and no two orders of summation agree. 1e-4 leaves only the differences that matter.
OPTIMIZER = AdamWSettings(eps=1e-4, weight_decay=0.1, max_grad_norm=0.5)


def make_batch(num_rows: int, length: int, generator: torch.Generator) -> Batch:
    """Rows of random lengths: the first masked everywhere (if there is another), the last full."""
    length_B = torch.randint(1, length + 1, (num_rows,), generator=generator)
    length_B[0], length_B[-1] = 0, length
    return Batch(
        tokens_BS=torch.randint(0, VOCAB, (num_rows, length + 1), generator=generator),
        mask_BS=(torch.arange(length) < length_B[:, None]).float(),
        domain_B=torch.zeros(num_rows, dtype=torch.int64),
        row_weight_B=torch.ones(num_rows),
    )


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What a training run leaves to compare: (steps, rows) losses, (steps, 2) norms, final weights."""

    initial_digest: str
    losses: Tensor
    grad_norms: Tensor
    clipped: Tensor
    weights: dict[str, Tensor]
    distance: float
    one_row_loss: Tensor
    row_losses: Tensor
    token_losses: Tensor
    info: BackendInfo


def train(backend: Backend, *, num_steps: int) -> Trajectory:
    """A bilevel run: w on target and train rows, u on train rows, blocks switching, an odd number of rows."""
    generator = torch.Generator().manual_seed(5)
    schedule = BlockSchedule(num_layers=backend.info.num_layers, size=2, period=3, edges="sampled", seed=1)
    digest = _digest(backend)
    losses, norms, clipped = [], [], []
    for step in range(num_steps):
        train_batch, target_batch = make_batch(5, 33, generator), make_batch(3, 20, generator)
        weight_B = torch.rand(5, generator=generator) / 50
        backend.set_block(schedule.at(step))
        loss_terms = backend.forward_backward(
            [
                Term(copy=Copy.MODEL, batch=target_batch, token_weight_B=torch.full((3,), 0.02)),
                Term(copy=Copy.MODEL, batch=train_batch, token_weight_B=5 * weight_B),
                Term(copy=Copy.AUX, batch=train_batch, token_weight_B=weight_B),
            ]
        )
        reports = [backend.update(copy, learning_rate=1e-3) for copy in Copy]
        losses.append(torch.cat(loss_terms))
        norms.append([report.grad_norm for report in reports])
        clipped.append([report.clipped for report in reports])
    one_row, rows = make_batch(1, 9, generator), make_batch(7, 21, generator)
    return Trajectory(
        initial_digest=digest,
        losses=torch.stack(losses),
        grad_norms=torch.tensor(norms, dtype=torch.float64),
        clipped=torch.tensor(clipped),
        weights={f"{copy}/{name}": tensor for copy in Copy for name, tensor in backend.parameters(copy)},
        distance=backend.distance(),
        one_row_loss=backend.losses(Copy.MODEL, one_row),
        row_losses=backend.losses(Copy.AUX, rows),
        token_losses=backend.token_losses(Copy.AUX, rows),
        info=backend.info,
    )


def _digest(backend: Backend) -> str:
    digest = hashlib.sha256()
    for copy in Copy:
        for name, tensor in sorted(backend.parameters(copy)):
            digest.update(name.encode())
            digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()


def train_in_layouts(cases: list[tuple[str, Layout]]) -> dict[tuple[str, Layout], Trajectory]:
    """20 steps of every (model, layout). Runs in workers; each layout must be as large as the world."""
    from optim.mcore.backend import mcore_backend

    trajectories = {}
    for name, layout in cases:
        source = ModelSource(hf_config=CONFIGS[name], seed=3)
        with mcore_backend(source, layout=layout, optimizer=OPTIMIZER, micro_batch_tokens=70) as backend:
            trajectories[name, layout] = train(backend, num_steps=20)
    return trajectories


def losses_of_steps(backend: Backend, first: int, stop: int) -> list[float]:
    """Row losses of the last of the steps `first`..`stop` of a run whose data and blocks are functions of the step."""
    schedule = BlockSchedule(num_layers=backend.info.num_layers, size=2, period=3, edges="sampled", seed=1)
    losses: list[float] = []
    for step in range(first, stop):
        batch = make_batch(5, 20, torch.Generator().manual_seed(step))
        backend.set_block(schedule.at(step))
        terms = [Term(copy=copy, batch=batch, token_weight_B=torch.full((5,), 0.01)) for copy in Copy]
        losses = torch.cat(backend.forward_backward(terms)).tolist()
        for copy in Copy:
            backend.update(copy, learning_rate=1e-3 if copy is Copy.MODEL else 3e-3)
    return losses


def train_and_save(order: tuple[str, Layout, str, tuple[Path, int] | None, int, Path]) -> list[float]:
    """Steps up to `stop`, from the beginning or a saved folder, then save. Runs in workers."""
    from optim.mcore.backend import mcore_backend

    name, layout, moments, saved, stop, folder = order
    optimizer = replace(OPTIMIZER, moments_on_switch=moments)
    source = ModelSource(hf_config=CONFIGS[name], seed=3)
    with mcore_backend(source, layout=layout, optimizer=optimizer, micro_batch_tokens=70) as backend:
        if saved:
            backend.load(saved[0])
        losses = losses_of_steps(backend, saved[1] if saved else 0, stop)
        folder.mkdir(exist_ok=True)
        backend.save(folder)
    return losses


def losses_and_norm(order: tuple[ModelSource, Layout, Batch]) -> tuple[Tensor, float]:
    """Row losses of a model, and the norm of the gradient of their sum per row. Runs in workers."""
    from optim.mcore.backend import mcore_backend

    source, layout, batch = order
    with mcore_backend(source, layout=layout, optimizer=OPTIMIZER, micro_batch_tokens=256) as backend:
        return losses_and_norm_of(backend, batch)


def losses_and_norm_of(backend: Backend, batch: Batch) -> tuple[Tensor, float]:
    """The same of a backend."""
    token_weight_B = torch.full((batch.num_rows,), 1 / batch.num_rows)
    losses = backend.forward_backward([Term(copy=Copy.MODEL, batch=batch, token_weight_B=token_weight_B)])
    return torch.cat(losses), backend.update(Copy.MODEL, learning_rate=0.0).grad_norm


def diverge(layout: Layout) -> list[str]:
    """The errors of a loss and of a gradient norm that are not finite. Runs in workers."""
    from optim.mcore.backend import mcore_backend

    generator = torch.Generator().manual_seed(0)
    source = ModelSource(hf_config=CONFIGS["llama"])
    batch = make_batch(3, 9, generator)
    term = Term(copy=Copy.MODEL, batch=batch, token_weight_B=torch.tensor([0.0, 1.0, float("inf")]))
    messages = []
    with mcore_backend(source, layout=layout, optimizer=OPTIMIZER, micro_batch_tokens=40) as backend:
        backend.forward_backward([term])
        try:
            backend.update(Copy.MODEL, learning_rate=1e-3)
        except DivergedError as error:
            messages.append(str(error))
    with mcore_backend(source, layout=layout, optimizer=OPTIMIZER, micro_batch_tokens=40) as backend:
        for _ in range(2):
            backend.update(Copy.MODEL, learning_rate=1e30)  # only the weight decay acts, by 1 − 1e29
        try:
            backend.losses(Copy.MODEL, batch)
        except DivergedError as error:
            messages.append(str(error))
    return messages


@dataclass(frozen=True)
class RandomSource:
    """A `BatchSource` of three domains: random lengths, a row masked everywhere; one domain is absent in odd steps."""

    domains: tuple[str, ...] = ("a", "b", "c")

    def at(self, step: int) -> StepData:
        """The data of `step`."""
        generator = torch.Generator().manual_seed(step)
        domain_B = torch.tensor([0, 0, 1, 1, 1] if step % 2 else [0, 0, 1, 2, 2])
        inclusion_D = torch.tensor([1.5, 1.5, 0.0]) if step % 2 else torch.ones(3)
        train_batch = make_batch(5, 20, generator)
        row_weight_B = torch.rand(5, generator=generator) + 0.5
        return StepData(
            train=replace(train_batch, domain_B=domain_B, row_weight_B=row_weight_B),
            target=replace(make_batch(3, 17, generator), domain_B=torch.full((3,), -1)),
            inclusion_D=inclusion_D,
        )


PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def learner_settings(name: str, num_steps: int = 6) -> SolverSettings:
    """A short run of a learner with switching blocks, averaging and a pull."""
    return SolverSettings(
        num_steps=num_steps,
        warmup_steps=num_steps // 2,
        learner=make_learner(name, penalty=2.0, branch_steps=2, num_steps=num_steps),
        blocks=BlockSchedule(num_layers=4, size=2, period=3, edges="sampled", seed=1),
        learning_rate=LearningRate(peak=1e-3, num_steps=num_steps),
        data_weights=DataWeightSettings(learning_rate=0.5, prior_pull=0.05, floor=0.01),
        eval_period=4,
    )


def learn_in_layouts(cases: list[tuple[str, Layout]]) -> dict[tuple[str, Layout], Solution]:
    """A short run of every (learner, layout). Runs in workers; each layout must be as large as the world."""
    from optim.mcore.backend import mcore_backend

    found = {}
    for name, layout in cases:
        source = ModelSource(hf_config=CONFIGS["qwen3-tied"], seed=3)
        with mcore_backend(source, layout=layout, optimizer=OPTIMIZER, micro_batch_tokens=70) as backend:
            found[name, layout] = solve(backend, RandomSource(), PRIOR, learner_settings(name, num_steps=4))
    return found


def fresh_batches(num_steps: int) -> list[Batch]:
    """The data of a retraining: rows of many lengths, other ones in each step."""
    return [make_batch(4, 21, torch.Generator().manual_seed(100 + step)) for step in range(num_steps)]


def retrain(backend: Backend, num_steps: int) -> tuple[list[float], Tensor]:
    """Losses of the steps of `optim.retrain.train`, and of held-out rows under the model that it leaves."""
    records: list[TrainRecord] = []
    train_fresh(
        backend,
        fresh_batches(num_steps),
        BlockSchedule(num_layers=backend.info.num_layers),
        LearningRate(peak=3e-3, num_steps=num_steps, warmup_steps=2),
        records.append,
    )
    held_out = [make_batch(n, 17, torch.Generator().manual_seed(n)) for n in (3, 1, 5)]
    return [record.loss for record in records], summed_losses(backend, held_out)


def retrain_in_layouts(layouts: list[Layout]) -> list[tuple[list[float], Tensor]]:
    """The same on Megatron-Core. Runs in workers; each layout must be as large as the world."""
    from optim.mcore.backend import mcore_backend

    found = []
    for layout in layouts:
        source = ModelSource(hf_config=CONFIGS["llama"], seed=3)
        with mcore_backend(source, layout=layout, optimizer=OPTIMIZER, micro_batch_tokens=70) as backend:
            found.append(retrain(backend, 8))
    return found
