"""What each learner's step reports and descends, against autograd on the module itself, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from backend_cases import CONFIGS, PRIOR, RandomSource

from optim.backend import AdamWSettings, Copy, ModelSource, Term
from optim.learners.doge import Doge
from optim.learners.doremi import DoReMi
from optim.learners.rho import Rho, ValidationLm
from optim.learners.sama import Sama
from optim.learners.scalebio import ScaleBiO
from optim.learners.seal import Seal
from optim.local import LocalBackend

WEIGHTS = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
RATE, ALPHA = 1e-3, 3.0
OPTIMIZER = AdamWSettings(max_grad_norm=0.0)


@dataclass
class Witness:
    """Losses of one copy by its module, differentiable; none of it is computed by `optim`."""

    model: torch.nn.Module
    data: object

    def rows(self, batch):
        logits_BSV = self.model(input_ids=batch.tokens_BS[:, :-1]).logits
        chosen_BS = logits_BSV.gather(2, batch.tokens_BS[:, 1:, None]).squeeze(2)
        return ((logits_BSV.logsumexp(2) - chosen_BS) * batch.mask_BS).sum(1)

    def domains(self, row_loss=None):
        """ℓ_d by a loop over domains; None for an absent one."""
        batch = self.data.train
        row_loss = self.rows(batch) if row_loss is None else row_loss
        losses, row_weight_B = [], batch.row_weight_B.double()
        for domain in range(3):
            rows = (batch.domain_B == domain).nonzero().flatten().tolist()
            top = sum(row_weight_B[i] * row_loss[i] for i in rows)
            bottom = sum(row_weight_B[i] * batch.mask_BS[i].sum() for i in rows)
            losses.append(top / bottom if rows else None)
        return losses

    def mixture(self, weights):
        pi = self.data.inclusion_D
        return sum(p * k * loss for p, k, loss in zip(weights, pi, self.domains(), strict=True) if loss is not None)

    def target(self):
        return self.rows(self.data.target).sum() / self.data.target.mask_BS.sum()

    def grad(self, value):
        found = torch.autograd.grad(value, list(self.model.parameters()), retain_graph=True)
        return torch.cat([g.flatten() for g in found])


def scores(values, data, constant=False):
    """π⁻¹·value of the present domains, with their mean taken off if the learner's have a level; 0 elsewhere."""
    values = [None if v is None else float(v.detach()) for v in values]
    present = [v for v in values if v is not None]
    level = sum(present) / len(present) if constant else 0.0
    pairs = zip(data.inclusion_D, values, strict=True)
    return torch.tensor([0.0 if v is None else float(k) * (v - level) for k, v in pairs]).double()


def less(first, second):
    return [None if a is None else a - b for a, b in zip(first, second, strict=True)]


def clipped(w, u):
    return w.domains((w.rows(w.data.train) - u.rows(u.data.train)).clamp_min(0))


def aligned(w, direction):
    return [None if loss is None else -w.grad(loss) @ direction for loss in w.domains()]


def adam_direction(w, moments):
    """AdamW's step on ∇L1 alone, as torch's own optimizer would scale it after the update it has had."""
    gradient = w.grad(w.target())
    second = (0.95 * moments + 0.05 * gradient**2) / (1 - 0.95**2)
    return RATE * gradient / (second.sqrt() + OPTIMIZER.eps)


# learner: its gradient in p, what w descends, what u descends
CASES = {
    "scalebio": (
        ScaleBiO(penalty=ALPHA),
        lambda w, u, _: ALPHA * scores(less(w.domains(), u.domains()), w.data, constant=True),
        lambda w: w.target() + ALPHA * w.mixture(WEIGHTS),
        lambda u: u.mixture(WEIGHTS),
    ),
    "seal": (
        Seal(penalty=ALPHA),
        lambda w, u, _: ALPHA * scores(w.domains(), w.data, constant=True),
        lambda w: w.target() + ALPHA * w.mixture(WEIGHTS),
        None,
    ),
    "doge": (
        Doge(distance=1e-4),
        lambda w, u, _: scores(aligned(w, w.grad(w.target())), w.data),
        lambda w: w.mixture(WEIGHTS),
        None,
    ),
    "sama": (
        Sama(distance=1e-4),
        lambda w, u, moments: scores(aligned(w, adam_direction(w, moments)), w.data),
        lambda w: w.mixture(WEIGHTS),
        None,
    ),
    "doremi, reference": (
        DoReMi(reference_steps=5),
        lambda w, u, _: torch.zeros(3, dtype=torch.float64),
        None,
        lambda u: u.mixture(PRIOR),
    ),
    "doremi, proxy": (
        DoReMi(reference_steps=0),
        lambda w, u, _: -scores(clipped(w, u), w.data, constant=True),
        lambda w: w.mixture(WEIGHTS),
        None,
    ),
    "rho": (
        Rho(),
        lambda w, u, _: -scores(less(w.domains(), u.domains()), w.data, constant=True),
        lambda w: w.mixture(PRIOR),
        lambda u: u.target(),
    ),
    "validation_lm": (
        ValidationLm(),
        lambda w, u, _: scores(w.domains(), w.data, constant=True),
        lambda w: w.target(),
        None,
    ),
}


def trained_apart():
    """A backend whose copies differ and have Adam moments; w's second moments, in the order of its parameters."""
    backend = LocalBackend(ModelSource(hf_config=CONFIGS["gpt2"], seed=3), optimizer=OPTIMIZER, dtype="float64")
    first = RandomSource().at(10)
    terms = [
        Term(copy=Copy.MODEL, batch=first.train, token_weight_B=torch.full((5,), 0.02)),
        Term(copy=Copy.AUX, batch=first.target, token_weight_B=torch.full((3,), 0.03)),
    ]
    backend.forward_backward(terms)
    for copy in Copy:
        backend.update(copy, learning_rate=1e-3)
    states = {name: state for name, state, _ in backend._optimizers[Copy.MODEL].states()}
    names = [name for name, _ in backend._models[Copy.MODEL].named_parameters()]
    return backend, torch.cat([states[name].second.flatten() for name in names])


@pytest.mark.parametrize("step", [0, 1], ids=["all domains", "one domain absent"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_descends_what_it_says(name, step):
    learner, weight_grad, model_objective, aux_objective = CASES[name]
    backend, moments = trained_apart()
    data = RandomSource().at(step)
    w, u = (Witness(backend._models[copy], data) for copy in Copy)
    expected_D = weight_grad(w, u, moments)
    norms = [
        None if objective is None else float(side.grad(objective(side)).norm())
        for side, objective in ((w, model_objective), (u, aux_objective))
    ]
    result = learner.step(backend, data, WEIGHTS, prior_D=PRIOR, step=0, learning_rate=RATE)
    torch.testing.assert_close(result.weight_grad_D, expected_D, rtol=1e-5, atol=1e-9)
    assert expected_D.any() or name == "doremi, reference"
    for update, norm in zip((result.model_update, result.aux_update), norms, strict=True):
        # token weights travel as float32
        assert (update is None and norm is None) or update.grad_norm == pytest.approx(norm, rel=1e-6)


def test_the_clipping_of_doremi_clips():
    backend, _ = trained_apart()
    data = RandomSource().at(0)
    w, u = (Witness(backend._models[copy], data) for copy in Copy)
    with torch.no_grad():
        assert (w.rows(data.train) < u.rows(data.train)).any()
        assert (w.rows(data.train) > u.rows(data.train)).any()


@pytest.mark.parametrize("learner", [Doge(), Sama()])
def test_float32_is_precise_enough_for_the_finite_difference(learner):
    """At the default distance a float32 model's alignments are those of a float64 one within a percent."""
    found = []
    for dtype in ("float32", "float64"):
        source = ModelSource(hf_config=CONFIGS["llama"], seed=3)
        backend = LocalBackend(source, optimizer=OPTIMIZER, dtype=dtype)
        learner_ = learner if dtype == "float32" else type(learner)(distance=1e-3)
        args = {"prior_D": PRIOR, "step": 0, "learning_rate": RATE}
        found.append(learner_.step(backend, RandomSource().at(0), WEIGHTS, **args).weight_grad_D)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.01 * float(found[1].abs().max()))
