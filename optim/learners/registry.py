"""The step-wise learners by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optim.learners.doge import Doge
from optim.learners.doremi import DoReMi
from optim.learners.learner import Learner
from optim.learners.rho import Rho, ValidationLm
from optim.learners.sama import Sama
from optim.learners.scalebio import ScaleBiO
from optim.learners.seal import Seal

_MAKERS: Mapping[str, Callable[[float, int, int], Learner]] = {
    "scalebio": lambda penalty, branch_steps, _: ScaleBiO(penalty=penalty, branch_steps=branch_steps),
    "seal": lambda penalty, *_: Seal(penalty=penalty),
    "sama": lambda *_: Sama(),
    "doge": lambda *_: Doge(),
    "doremi": lambda *sizes: DoReMi(reference_steps=sizes[-1] // 2),  # the paper's two models train equally long
    "rho": lambda *_: Rho(),
    "validation_lm": lambda *_: ValidationLm(),
}

STEPWISE = frozenset(_MAKERS)
"""Names that `make_learner` knows."""
PROBING = frozenset(("doge", "sama"))
"""Those of them that take losses along a line, for which parameters need float32."""


def make_learner(name: str, *, penalty: float, branch_steps: int, num_steps: int) -> Learner:
    """The learner `name`, one of `STEPWISE`, for `num_steps` steps; the other settings are for those that have them."""
    return _MAKERS[name](penalty, branch_steps, num_steps)
