"""The penalty's hypergradient against the exact one of closed-form bilevel problems: how its error falls with α."""

import math

import pytest
import torch
from closed_form import domain_losses, exact_hypergradient, lower_level, softmax_regression

from optim.objective import weight_grad

DOMAINS, WIDTH = 3, 4
ALPHAS = (100.0, 300.0, 1000.0, 3000.0)
SOFTMAX_ALPHAS = (30.0, 100.0, 300.0)  # beyond, rounding in the minimisers is all that the central error has


def quadratic_problem():
    """Domains ½(w−a)ᵀH(w−a), target ½(w−t)ᵀG(w−t), a mixture p; all float64."""
    generator = torch.Generator().manual_seed(3)

    def curvature():
        root = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        return root @ root.T + torch.eye(WIDTH, dtype=torch.float64)

    curvatures = torch.stack([curvature() for _ in range(DOMAINS)])
    centres = torch.randn(DOMAINS, WIDTH, generator=generator, dtype=torch.float64)
    target = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    mixture = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return curvatures, centres, curvature(), target, mixture


def quadratic_errors():
    """Relative errors of the forward and of the central difference at each α."""
    curvatures, centres, target_curvature, target, mixture = quadratic_problem()
    mixed = torch.einsum("d,dij->ij", mixture, curvatures)
    pulled = torch.einsum("d,dij,dj->i", mixture, curvatures, centres)

    def losses(w):
        away = w - centres
        return 0.5 * torch.einsum("di,dij,dj->d", away, curvatures, away)

    def minimiser(sign, alpha):
        """argmin of L2 + (sign/α)·L1."""
        return torch.linalg.solve(
            mixed + sign / alpha * target_curvature, pulled + sign / alpha * (target_curvature @ target)
        )

    lower = minimiser(0.0, 1.0)
    gradients = torch.einsum("dij,dj->di", curvatures, lower - centres)
    exact = -gradients @ torch.linalg.solve(mixed, target_curvature @ (lower - target))
    exact = exact - exact.mean()
    ones = torch.ones(DOMAINS, dtype=torch.float64)
    forward, central = [], []
    for alpha in ALPHAS:
        up, down = losses(minimiser(1.0, alpha)), losses(minimiser(-1.0, alpha))
        forward.append(float((weight_grad(up, losses(lower), alpha, ones) - exact).norm() / exact.norm()))
        central.append(float((weight_grad(up, down, alpha / 2, ones) - exact).norm() / exact.norm()))
    return forward, central


def softmax_errors():
    """The same of a softmax regression in which the labels of a domain are noise, by Newton's method."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    problem = softmax_regression(label_noise=(0.0, 0.0, 0.8), skills=(one, other, one), target_skill=one, rows=40)
    mixture = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    exact = exact_hypergradient(problem, mixture)
    exact = exact - exact.mean()
    lower = domain_losses(problem, lower_level(problem, mixture))
    ones = torch.ones(DOMAINS, dtype=torch.float64)
    forward, central = [], []
    for alpha in SOFTMAX_ALPHAS:
        up, down = (domain_losses(problem, lower_level(problem, mixture, sign / alpha)) for sign in (1, -1))
        forward.append(float((weight_grad(up, lower, alpha, ones) - exact).norm() / exact.norm()))
        central.append(float((weight_grad(up, down, alpha / 2, ones) - exact).norm() / exact.norm()))
    return forward, central


PROBLEMS = {"quadratic": (quadratic_errors, ALPHAS), "softmax regression": (softmax_errors, SOFTMAX_ALPHAS)}


def slope(errors, alphas):
    """Of log error against log α, between the ends."""
    return math.log(errors[-1] / errors[0]) / math.log(alphas[-1] / alphas[0])


@pytest.mark.parametrize(("errors_by_alpha", "alphas"), PROBLEMS.values(), ids=PROBLEMS)
def test_the_error_falls_as_one_over_alpha_and_central_as_its_square(errors_by_alpha, alphas):
    forward, central = errors_by_alpha()
    assert abs(slope(forward, alphas) + 1) < 0.05
    assert abs(slope(central, alphas) + 2) < 0.05
    assert forward[-1] < 0.02


if __name__ == "__main__":
    for problem, (errors_by_alpha, alphas) in PROBLEMS.items():
        for name, errors in zip(("forward", "central"), errors_by_alpha(), strict=True):
            figures = ", ".join(f"{error:.2g} at {alpha:g}" for alpha, error in zip(alphas, errors, strict=True))
            print(f"{problem}, {name} difference: slope {slope(errors, alphas):.3f} (error {figures})")
