"""The solver on bilevel problems whose solution was found without it (`closed_form.best_weights`)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closed_form import (
    DAMPED,
    ClosedFormBackend,
    Draws,
    IndependentBatches,
    WithoutAux,
    best_weights,
    quadratic,
    softmax_regression,
    solver_settings,
    uniform,
)

from optim.solver import solve

CENTRES = [[2, 0, 1, 0], [0, 2, -1, 1], [-2, -2, 0, -1]]
TARGET = [0.7, 0.4, 0.2, 0.3]
LABEL_NOISE = (0.0, 0.0, 0.8)


def three_quadratics(**changes):
    return quadratic(centres=CENTRES, target=TARGET, seed=3, **changes)


def noisy_labels():
    """Two clean domains of different skills, a target between them, and a domain with 4 in 5 labels random."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    skills, target = (one, other, (one + other) / 2), (one + other) / 2
    return softmax_regression(
        label_noise=LABEL_NOISE, skills=skills, target_skill=target, target_noise=0.5, rows=40, seed=1
    )


def solved(problem, settings, *, rows=None, seed=0, backend=ClosedFormBackend, **changes):
    draws = Draws(problem=problem, rows=rows, seed=seed)
    found = backend(problem, num_layers=settings.blocks.num_layers, **changes)
    if isinstance(found, IndependentBatches):
        others = Draws(problem=problem, rows=rows, seed=seed + 1000)
        steps = iter(range(settings.num_steps))
        found.redraw = lambda _: others.at(next(steps)).train
    return solve(found, draws, uniform(problem), settings)


@pytest.mark.parametrize(("problem", "rate", "tolerance"), [(three_quadratics, 0.03, 0.003), (noisy_labels, 0.3, 0.01)])
def test_lambda_reaches_the_optimum(problem, rate, tolerance):
    problem = problem()
    expected = best_weights(problem)
    solution = solved(problem, solver_settings(num_steps=1000, penalty=100, weight_rate=rate))
    torch.testing.assert_close(solution.weights_D, expected, atol=tolerance, rtol=0)
    assert (expected - uniform(problem)).abs().max() > 4 * tolerance
    assert solution.verdict.status == "converged"


@pytest.mark.parametrize("moments", ["drop", "keep"])
def test_block_coordinates_reach_the_same_optimum(moments):
    problem = three_quadratics()
    settings = solver_settings(num_steps=2000, penalty=100, weight_rate=0.01, num_layers=4, block_size=1)
    solution = solved(problem, settings, optimizer=replace(DAMPED, moments_on_switch=moments))
    assert len({settings.blocks.at(step) for step in range(100)}) == 4
    torch.testing.assert_close(solution.weights_D, best_weights(problem), atol=0.01, rtol=0)


def test_two_identical_domains_get_equal_weights_within_their_intervals():
    """Two domains about one centre, with rows of their own; their equal share lies in both intervals."""
    problem = quadratic(centres=[CENTRES[0], CENTRES[0], *CENTRES[1:]], target=TARGET, seed=3, noise=0.3, rows=64)
    problem = replace(problem, curvature_DKK=problem.curvature_DKK[[0, 0, 2, 3]])
    settings = solver_settings(num_steps=1200, penalty=100, weight_rate=0.01, prior_pull=0.01)
    solution = solved(problem, settings, rows=8)
    one, other, *_ = solution.weights_D.tolist()
    assert one == pytest.approx(other, abs=0.05)
    assert max(abs(w - 0.25) for w in solution.weights_D.tolist()) > 0.05  # the others have moved
    for low, high in list(zip(solution.summary.ci_low, solution.summary.ci_high, strict=True))[:2]:
        assert low <= (one + other) / 2 <= high
        assert high - low < 0.2


def test_without_the_aux_loss_the_domain_that_is_easy_wins_and_not_the_one_that_helps():
    """Domain 0 is about the target, but its rows scatter; domain 1 is far from it, and its rows are all alike."""
    problem = quadratic(centres=[[1, 1], [-2, 1]], target=[1, 1], noise=[3.0, 0.0, 0.0], rows=32)
    settings = solver_settings(num_steps=500, penalty=10, weight_rate=0.02)
    with_aux, without = (solved(problem, settings, backend=kind) for kind in (ClosedFormBackend, WithoutAux))
    assert with_aux.weights_D[0] > 0.9
    assert without.weights_D[1] > 0.9
    assert without.summary.val_loss_last > 10 * with_aux.summary.val_loss_last


def spread_of_the_gradient(problem, penalty, backend):
    """Standard deviation over the steps of the λ-gradient α·(Δ − mean Δ) at fixed weights, largest of the domains."""
    settings = solver_settings(num_steps=250, penalty=penalty, weight_rate=0.1, warmup_steps=249, rate=0.1)
    solution = solved(problem, settings, rows=8, backend=backend)
    gaps_TD = penalty * torch.tensor([record.gaps for record in solution.records[100:]])
    return float((gaps_TD - gaps_TD.mean(1, keepdim=True)).std(0).max())


def test_shared_batches_keep_the_gradients_noise_from_growing_with_alpha():
    problem = three_quadratics(noise=0.5, rows=64)
    alphas = (10.0, 100.0, 1000.0)
    shared = [spread_of_the_gradient(problem, alpha, ClosedFormBackend) for alpha in alphas]
    independent = [spread_of_the_gradient(problem, alpha, IndependentBatches) for alpha in alphas]
    print("std of the λ-gradient at α = 10, 100, 1000: shared", shared, "independent", independent)
    assert max(shared) < 1.5 * min(shared)
    assert independent[1] / independent[0] == pytest.approx(10, rel=0.2)
    assert independent[2] / independent[1] == pytest.approx(10, rel=0.05)
    assert independent[0] > 3 * shared[0]
