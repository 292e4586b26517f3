"""The solver on a closed-form bilevel problem whose solution is known."""

from __future__ import annotations

import pytest
import torch
from quadratic_cases import CENTRES, GOAL, NUM_DOMAINS, OneRowEach, QuadraticBackend

from optim.blocks import BlockSchedule
from optim.data_weights import DataWeightSettings
from optim.errors import DivergedError
from optim.learners.doremi import DoReMi
from optim.learners.scalebio import ScaleBiO
from optim.schedules import LearningRate
from optim.solver import SolverSettings, solve
from optim.state import SolverState


def settings(**changes):
    values = {
        "num_steps": 3000,
        "warmup_steps": 50,
        "learner": ScaleBiO(penalty=50.0),
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


@pytest.mark.parametrize(("optimizer", "begin"), [("unscaled_eg", (0.02, 0.02, 0.96)), ("adam", (0.96, 0.02, 0.02))])
def test_finds_the_known_optimum_from_wrong_weights(optimizer, begin):
    """A last version that was wrong costs steps and not the result."""
    start = SolverState.initial(UNIFORM, torch.tensor(begin, dtype=torch.float64))
    chosen = settings(data_weights=DataWeightSettings(optimizer=optimizer, learning_rate=0.02))
    solution = solve(QuadraticBackend(), OneRowEach(), UNIFORM, chosen, start=start)
    torch.testing.assert_close(solution.weights_D, best_weights(), atol=0.02, rtol=0)
    assert solution.records[0].weights == pytest.approx(begin, abs=1e-6)  # the first steps do not move them


def test_a_state_survives_json_with_its_start_and_one_of_before_has_none():
    state = SolverState.initial(UNIFORM, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    values = state.to_json()
    assert torch.equal(SolverState.from_json(values).data_weights.start_D, state.data_weights.start_D)
    del values["data_weights"]["start_D"]
    assert torch.equal(SolverState.from_json(values).data_weights.start_D, torch.zeros(3).double())


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
    "wrong",
    [
        {"num_steps": 0},
        {"warmup_steps": 3000},
        {"learner": DoReMi(reference_steps=51)},
        {"inner_steps": 0},
        {"average_share": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
