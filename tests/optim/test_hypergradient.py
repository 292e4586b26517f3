"""The penalty's hypergradient against the exact one of a quadratic bilevel problem: how its error falls with α."""

import math

import torch

from optim.objective import weight_grad

DOMAINS, WIDTH = 3, 4
ALPHAS = (100.0, 300.0, 1000.0, 3000.0)


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


def errors_by_alpha():
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
    ones = torch.ones(DOMAINS, dtype=torch.float64)
    forward, central = [], []
    for alpha in ALPHAS:
        up, down = losses(minimiser(1.0, alpha)), losses(minimiser(-1.0, alpha))
        forward.append(float((weight_grad(up, losses(lower), alpha, ones) - exact).norm() / exact.norm()))
        central.append(float((weight_grad(up, down, alpha / 2, ones) - exact).norm() / exact.norm()))
    return forward, central


def slope(errors):
    """Of log error against log α, between the ends."""
    return math.log(errors[-1] / errors[0]) / math.log(ALPHAS[-1] / ALPHAS[0])


def test_the_error_falls_as_one_over_alpha_and_central_as_its_square():
    forward, central = errors_by_alpha()
    assert abs(slope(forward) + 1) < 0.05
    assert abs(slope(central) + 2) < 0.05
    assert forward[-1] < 0.02


if __name__ == "__main__":
    for name, errors in zip(("forward", "central"), errors_by_alpha(), strict=True):
        figures = ", ".join(f"{error:.2g} at {alpha:g}" for alpha, error in zip(ALPHAS, errors, strict=True))
        print(f"{name} difference: slope {slope(errors):.3f} (error {figures})")
