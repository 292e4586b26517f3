"""Train a pair of copies from the model's own start, the data weights standing still, to compare rows under them.

w learns from the target and the mixture, u from the mixture alone, on the same batches, until both have come as far as
the training is long; then ℓ_i(u) − ℓ_i(w) says how much better a row fits the target than it fits the mixture. A branch
of w off a trained u does not say it: what u has learned of all rows w does not unlearn in some steps. The limit α → 0
is the cross-entropy difference of Moore and Lewis (ACL 2010).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from optim.backend import Backend
from optim.batch import BatchSource
from optim.blocks import BlockSchedule
from optim.learners.learner import StepResult
from optim.learners.scalebio import ScaleBiO
from optim.schedules import LearningRate
from optim.solver import check_finite


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """The training of one pair: its objective, blocks, learning rate and number of steps."""

    num_steps: int
    learner: ScaleBiO
    blocks: BlockSchedule
    learning_rate: LearningRate


def train_pair(
    backend: Backend,
    source: BatchSource,
    weights_D: Tensor,
    settings: PairSettings,
    *,
    first_draw: int,
    start: int = 0,
    after_step: Callable[[int, StepResult], None] = lambda *_: None,
) -> None:
    """Take the steps of a pair from `start` on; `backend` holds the copies, equal before step 0.

    Args:
        backend: the two copies.
        source: draws each step's data.
        weights_D: p, (D,) float64, for all steps.
        settings: the training.
        first_draw: the step of `source` that step 0 takes.
        start: the first step that is left to take.
        after_step: called after every step with the number of steps taken; what it raises ends the training.

    Raises:
        DivergedError: a loss left the finite numbers.

    Collective: every rank, with equal arguments.
    """
    for step in range(start, settings.num_steps):
        backend.set_block(settings.blocks.at(step))
        result = settings.learner.step(
            backend,
            source.at(first_draw + step),
            weights_D,
            prior_D=weights_D,
            step=step,
            learning_rate=settings.learning_rate.at(step),
        )
        check_finite(first_draw + step, result)
        after_step(step + 1, result)
