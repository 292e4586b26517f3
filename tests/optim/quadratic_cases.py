"""A bilevel problem in closed form, behind the backend's interface."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optim.backend import BackendInfo, Copy, UpdateReport
from optim.batch import Batch, StepData

NUM_DOMAINS = 3
CENTRES = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, -2.0]], dtype=torch.float64)
GOAL = torch.tensor([1.2, 0.6], dtype=torch.float64)
"""ℓ_d(w) = ½‖w − c_d‖² has the lower-level optimum w*(p) = Σ p_d·c_d and the target is ½‖w − goal‖², so that the
best weights are the ones whose mixture of centres is the goal (`best_weights`)."""


class QuadraticBackend:
    """Each row's loss is the quadratic of its domain, with one target token a row.

    Steps are divided by the curvature, which like AdamW makes them independent of the scale of the objective.
    """

    def __init__(self) -> None:
        self.point = {copy: torch.zeros(2, dtype=torch.float64) for copy in Copy}
        self.grad = {copy: torch.zeros(2, dtype=torch.float64) for copy in Copy}
        self.curvature = dict.fromkeys(Copy, 0.0)
        self.blocks = []

    info = BackendInfo(name="quadratic", num_layers=4, num_parameters=2, layout="", device="cpu")

    def set_block(self, block):
        self.blocks.append(block)

    def _centres(self, batch):
        return torch.stack([GOAL if d < 0 else CENTRES[d] for d in batch.domain_B.tolist()])

    def losses(self, copy, batch):
        return 0.5 * (self.point[copy] - self._centres(batch)).pow(2).sum(1)

    def forward_backward(self, terms):
        for term in terms:
            gap = self.point[term.copy] - self._centres(term.batch)
            self.grad[term.copy] += (term.token_weight_B.double()[:, None] * gap).sum(0)
            self.curvature[term.copy] += float(term.token_weight_B.sum())
        return [self.losses(term.copy, term.batch) for term in terms]

    def update(self, copy, *, learning_rate):
        norm = float(self.grad[copy].norm())
        self.point[copy] = self.point[copy] - learning_rate * self.grad[copy] / self.curvature[copy]
        self.grad[copy], self.curvature[copy] = torch.zeros(2, dtype=torch.float64), 0.0
        return UpdateReport(grad_norm=norm, clipped=False)

    def distance(self):
        return float((self.point[Copy.MODEL] - self.point[Copy.AUX]).norm())


@dataclass
class OneRowEach:
    domains: tuple[str, ...] = ("a", "b", "c")

    def at(self, step):
        def rows(domain):
            count = len(domain)
            return Batch(
                tokens_BS=torch.zeros(count, 2, dtype=torch.int64),
                mask_BS=torch.ones(count, 1),
                domain_B=torch.tensor(domain),
                row_weight_B=torch.ones(count),
            )

        return StepData(train=rows([0, 1, 2]), target=rows([-1]), inclusion_D=torch.ones(NUM_DOMAINS))
