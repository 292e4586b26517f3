"""The solver on a closed-form bilevel problem whose solution is known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from optim.backend import BackendInfo, Copy, UpdateReport
from optim.batch import Batch, StepData
from optim.blocks import BlockSchedule
from optim.data_weights import DataWeightSettings
from optim.errors import DivergedError
from optim.schedules import LearningRate
from optim.solver import SolverSettings, solve

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


def settings(**changes):
    values = {
        "num_steps": 3000,
        "warmup_steps": 50,
        "penalty": 50.0,
        "learning_rate": LearningRate(peak=0.5, num_steps=3000, shape="constant"),
        "blocks": BlockSchedule(num_layers=4, size=1, period=3, seed=1),
        "data_weights": DataWeightSettings(learning_rate=0.02),
        "average_share": 0.1,
    }
    return SolverSettings(**(values | changes))


UNIFORM = torch.full((NUM_DOMAINS,), 1 / NUM_DOMAINS, dtype=torch.float64)


def best_weights():
    """p ≥ 0, Σp = 1 and Σ p_d·c_d = goal: three equations, one solution inside the simplex."""
    system = torch.cat([CENTRES.T, torch.ones(1, NUM_DOMAINS, dtype=torch.float64)])
    return torch.linalg.solve(system, torch.cat([GOAL, torch.ones(1, dtype=torch.float64)]))


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_finds_the_known_optimum(inner_steps):
    backend = QuadraticBackend()
    rate = 0.02 * inner_steps
    solution = solve(
        backend,
        OneRowEach(),
        UNIFORM,
        settings(inner_steps=inner_steps, data_weights=DataWeightSettings(learning_rate=rate)),
    )
    expected = best_weights()
    assert expected.min() > 0.02  # inside the simplex, so that the optimum is interior
    torch.testing.assert_close(solution.weights_D, expected, atol=0.01, rtol=0)


def test_hypergradient_error_falls_as_one_over_the_penalty():
    """At fixed p, α·(ℓ(w) − ℓ(u)) with w, u at their optima against the exact hypergradient ⟨w* − goal, c_d⟩."""
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    optimum = p @ CENTRES
    # d/dp_d of ½‖Σ p c − goal‖² up to a constant over d; the quadratic ℓ_d has gradient −c_d there
    exact = CENTRES @ (optimum - GOAL)
    exact = exact - exact.mean()
    errors = []
    for penalty in (10.0, 100.0):
        w = (GOAL + penalty * optimum) / (1 + penalty)
        gap = 0.5 * ((w - CENTRES).pow(2).sum(1) - (optimum - CENTRES).pow(2).sum(1))
        found = penalty * gap - (penalty * gap).mean()
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def test_the_weights_stand_still_during_warmup():
    solution = solve(QuadraticBackend(), OneRowEach(), UNIFORM, settings(num_steps=60))
    assert all(record.weights == pytest.approx(UNIFORM.tolist()) for record in solution.records[:50])
    assert solution.records[-1].weights != pytest.approx(UNIFORM.tolist(), abs=1e-4)


def test_average_is_the_mean_of_the_last_iterates():
    solution = solve(QuadraticBackend(), OneRowEach(), UNIFORM, settings(num_steps=150, average_share=0.5))
    last = torch.tensor([record.weights for record in solution.records[-50:]], dtype=torch.float64)
    torch.testing.assert_close(solution.weights_D, last.mean(0), rtol=1e-9, atol=0)


def test_blocks_follow_the_schedule_and_every_step_is_reported():
    backend, told = QuadraticBackend(), []
    chosen = settings(num_steps=60)
    solve(backend, OneRowEach(), UNIFORM, chosen, on_step=told.append)
    assert backend.blocks == [chosen.blocks.at(step) for step in range(60)]
    assert [record.step for record in told] == list(range(60))
    assert told[-1].tokens == 60 * 3
    assert told[0].aux_val_loss is not None
    assert told[1].aux_val_loss is None


def test_infinite_losses_stop_the_run():
    with pytest.raises(DivergedError, match="step"):
        solve(
            QuadraticBackend(),
            OneRowEach(),
            UNIFORM,
            settings(learning_rate=LearningRate(peak=1e200, num_steps=3000, shape="constant")),
        )


@pytest.mark.parametrize(
    "wrong", [{"num_steps": 0}, {"warmup_steps": 3000}, {"penalty": 0.0}, {"inner_steps": 0}, {"average_share": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
