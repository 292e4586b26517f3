"""The hypergradient of a tiny GPT against finite differences: the lower level is trained anew at p ± ε.

Everything runs through `LocalBackend` in float64 (transformers' llama norms round to float32, gpt2's do not), full
batch, to convergence by L-BFGS; weight decay belongs to the lower level. Retraining starts from the optimum at p, so
that all optima lie in one basin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from optim.backend import AdamWSettings, Copy, ModelSource, Term
from optim.batch import Batch
from optim.local import LocalBackend
from optim.objective import domain_mean_losses, target_token_weights, train_token_weights, weight_grad

VOCAB, LENGTH, ROWS = 12, 12, 6
DECAY = 0.05
MIXTURE = torch.tensor([0.6, 0.4], dtype=torch.float64)
STEP = 2e-3
ALPHAS = (100.0, 1000.0, 3000.0, 10000.0)


def tiny_gpt() -> LocalBackend:
    config = {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": VOCAB,
        "n_positions": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return LocalBackend(ModelSource(hf_config=config, seed=1), optimizer=AdamWSettings(), dtype="float64")


def markov_rows(transition_VV: torch.Tensor, domain: int, generator: torch.Generator) -> Batch:
    """Rows of a Markov chain over the vocabulary."""
    tokens = torch.randint(VOCAB, (ROWS, 1), generator=generator)
    for _ in range(LENGTH):
        tokens = torch.cat([tokens, torch.multinomial(transition_VV[tokens[:, -1]], 1, generator=generator)], 1)
    return Batch(
        tokens_BS=tokens,
        mask_BS=torch.ones(ROWS, LENGTH),
        domain_B=torch.full((ROWS,), domain),
        row_weight_B=torch.ones(ROWS),
    )


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """Two domains from two Markov chains, and a target whose chain lies nearer to the first."""

    backend: LocalBackend
    train: Batch
    target: Batch

    @staticmethod
    def make() -> Retraining:
        generator = torch.Generator().manual_seed(0)
        one, other = torch.softmax(3 * torch.randn(2, VOCAB, VOCAB, generator=generator), 2)
        parts = [markov_rows(one, 0, generator), markov_rows(other, 1, generator)]
        train = Batch(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})
        return Retraining(backend=tiny_gpt(), train=train, target=markov_rows(0.7 * one + 0.3 * other, -1, generator))

    def trained(self, p_D: torch.Tensor, start: np.ndarray | None = None, target_share: float = 0.0) -> np.ndarray:
        """argmin_w Σ p_d·ℓ_d(w) + ½·DECAY·‖w‖² + target_share·L1(w) near `start`, as a flat vector."""
        parameters = list(self.backend._models[Copy.MODEL].parameters())
        terms = [self._term(self.train, train_token_weights(self.train, p_D, torch.ones(2)))]
        if target_share:
            terms.append(self._term(self.target, target_share * target_token_weights(self.target)))

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            self._put(flat)
            for parameter in parameters:
                parameter.grad = None
            losses = self.backend.forward_backward(terms)
            loss = sum(float(term.token_weight_B @ loss_B) for term, loss_B in zip(terms, losses, strict=True))
            slope = torch.cat([parameter.grad.flatten() for parameter in parameters]).numpy()
            return loss + 0.5 * DECAY * float(flat @ flat), slope + DECAY * flat

        first = torch.cat([p.detach().flatten() for p in parameters]).numpy() if start is None else start
        options = {"maxiter": 4_000, "maxfun": 4_000, "ftol": 0.0, "gtol": 1e-9, "maxcor": 50}
        found = minimize(value, first, jac=True, method="L-BFGS-B", options=options)
        assert np.abs(found.jac).max() < 1e-6, (found.message, np.abs(found.jac).max())
        return found.x

    def losses(self, flat: np.ndarray) -> tuple[torch.Tensor, float]:
        """(D,) ℓ_d and L1 of a model."""
        self._put(flat)
        by_domain_D, _ = domain_mean_losses(self.backend.losses(Copy.MODEL, self.train), self.train, 2)
        target = target_token_weights(self.target) @ self.backend.losses(Copy.MODEL, self.target)
        return by_domain_D, float(target)

    @torch.no_grad()
    def _put(self, flat: np.ndarray) -> None:
        torch.nn.utils.vector_to_parameters(torch.tensor(flat), self.backend._models[Copy.MODEL].parameters())

    @staticmethod
    def _term(batch: Batch, weight_B: torch.Tensor) -> Term:
        return Term(copy=Copy.MODEL, batch=batch, token_weight_B=weight_B)


def measured() -> tuple[float, dict[float, float]]:
    """dL1(w*(p))/dp along (1, −1) by retraining, and α·Δ along it for each α."""
    problem = Retraining.make()
    aux = problem.trained(MIXTURE)
    direction = torch.tensor([1.0, -1.0], dtype=torch.float64)
    ahead, behind = (problem.losses(problem.trained(MIXTURE + sign * STEP * direction, aux))[1] for sign in (1.0, -1.0))
    loss_u_D, _ = problem.losses(aux)
    found = {}
    for alpha in ALPHAS:
        loss_w_D, _ = problem.losses(problem.trained(MIXTURE, aux, target_share=1 / alpha))
        found[alpha] = float(weight_grad(loss_w_D, loss_u_D, alpha, torch.ones(2)) @ direction)
    return (ahead - behind) / (2 * STEP), found


@pytest.mark.slow
def test_the_hypergradient_of_a_tiny_gpt_is_what_retraining_finds():
    exact, found = measured()
    errors = {alpha: abs(value - exact) / abs(exact) for alpha, value in found.items()}
    print("by retraining", exact, "by α·Δ", found, "relative errors", errors)
    assert errors[10_000.0] < 0.005
    assert errors[1000.0] / errors[10_000.0] == pytest.approx(10, rel=0.2)


if __name__ == "__main__":
    print(*measured())
