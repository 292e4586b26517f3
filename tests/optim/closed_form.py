"""Bilevel problems whose solution is known without the solver, and the backend through which the solver meets them.

A row of a batch is the first token of a sequence, an index into its problem's data; one target token a row. Everything
is float64. N rows of data, K parameters, D domains; domain −1 is the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from optim.backend import AdamWSettings, BackendInfo, Copy, Term, UpdateReport
from optim.batch import Batch, StepData
from optim.block_adamw import BlockAdamW, clip_factor
from optim.blocks import Block, BlockSchedule
from optim.data_weights import DataWeightSettings
from optim.learners.scalebio import ScaleBiO
from optim.schedules import LearningRate
from optim.solver import SolverSettings

DAMPED = AdamWSettings(betas=(0.5, 0.9), eps=1.0, max_grad_norm=0.0)
"""AdamW whose steps vanish with the gradient. With a small eps they keep the length of the learning rate, and w − u,
which is of order 1/α, drowns in them unless the rate is far below 1/α."""


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """Row losses ½(w − a_i)ᵀH_d(w − a_i) with centres a_i that scatter about their domain's.

    `curvature_DKK` and `centre_NK` say the sources, `target_curvature_KK` the target, whose rows are also rows of
    `centre_NK`; `domain_N` is each row's domain.
    """

    curvature_DKK: Tensor
    target_curvature_KK: Tensor
    centre_NK: Tensor
    domain_N: Tensor

    @property
    def num_parameters(self) -> int:
        return self.centre_NK.shape[1]

    def row_losses(self, w_K: Tensor, row_B: Tensor) -> Tensor:
        away_BK = w_K - self.centre_NK[row_B]
        curvatures = torch.cat([self.curvature_DKK, self.target_curvature_KK[None]])  # index −1 is the target's
        return 0.5 * torch.einsum("bi,bij,bj->b", away_BK, curvatures[self.domain_N[row_B]], away_BK)


@dataclass(frozen=True, kw_only=True)
class SoftmaxRegression:
    """Multinomial logistic regression: cross-entropy of `label_N` given `feature_NM`, C classes.

    Source rows carry ½·`ridge`·‖w‖² each, so that the lower level is strongly convex; target rows do not.
    """

    feature_NM: Tensor
    label_N: Tensor
    domain_N: Tensor
    num_classes: int
    ridge: float = 0.05

    @property
    def num_parameters(self) -> int:
        return self.feature_NM.shape[1] * self.num_classes

    def row_losses(self, w_K: Tensor, row_B: Tensor) -> Tensor:
        logits_BC = self.feature_NM[row_B] @ w_K.view(-1, self.num_classes)
        fit_B = torch.nn.functional.cross_entropy(logits_BC, self.label_N[row_B], reduction="none")
        return fit_B + 0.5 * self.ridge * (self.domain_N[row_B] >= 0) * (w_K @ w_K)


Problem = Quadratic | SoftmaxRegression


def num_domains(problem: Problem) -> int:
    return int(problem.domain_N.max()) + 1


def rows_of(problem: Problem, domain: int) -> Tensor:
    return (problem.domain_N == domain).nonzero()[:, 0]


def domain_losses(problem: Problem, w_K: Tensor) -> Tensor:
    """ℓ_d(w) over all rows of each domain, (D,)."""
    return torch.stack([problem.row_losses(w_K, rows_of(problem, d)).mean() for d in range(num_domains(problem))])


def target_loss(problem: Problem, w_K: Tensor) -> Tensor:
    """L1(w) over all rows of the target."""
    return problem.row_losses(w_K, rows_of(problem, -1)).mean()


def lower_level(problem: Problem, p_D: Tensor, target_share: float = 0.0) -> Tensor:
    """argmin_w Σ p_d·ℓ_d(w) + target_share·L1(w), (K,), by Newton's method to a gradient below 1e-12."""

    def objective(w_K: Tensor) -> Tensor:
        return p_D @ domain_losses(problem, w_K) + target_share * target_loss(problem, w_K)

    w_K = torch.zeros(problem.num_parameters, dtype=torch.float64)
    for _ in range(50):
        gradient_K = jacobian(objective, w_K)
        if gradient_K.norm() < 1e-12:
            return w_K
        step_K = torch.linalg.solve(hessian(objective, w_K), gradient_K)
        scale = 1.0
        while scale > 1e-3 and objective(w_K - scale * step_K) > objective(w_K):
            scale /= 2
        w_K = w_K - scale * step_K
    assert gradient_K.norm() < 1e-10, "Newton's method did not converge"
    return w_K


def exact_hypergradient(problem: Problem, p_D: Tensor) -> Tensor:
    """dL1(w*(p))/dp = −(∇ℓ_d)ᵀ(∇²L2)⁻¹∇L1 at w*(p), (D,), by the implicit function theorem."""
    w_K = lower_level(problem, p_D)
    hessian_KK = hessian(lambda w: p_D @ domain_losses(problem, w), w_K)
    domain_gradient_DK = jacobian(lambda w: domain_losses(problem, w), w_K)
    target_gradient_K = jacobian(lambda w: target_loss(problem, w), w_K)
    return -domain_gradient_DK @ torch.linalg.solve(hessian_KK, target_gradient_K)


def best_weights(problem: Problem) -> Tensor:
    """argmin_p L1(w*(p)) inside the simplex, (D,), by BFGS on its logits from uniform; knows nothing of penalties."""

    def value(logits: np.ndarray) -> tuple[float, np.ndarray]:
        p_D = torch.softmax(torch.from_numpy(logits), 0)
        gradient_D = exact_hypergradient(problem, p_D)
        slope_D = p_D * (gradient_D - p_D @ gradient_D)
        return float(target_loss(problem, lower_level(problem, p_D))), slope_D.numpy()

    found = minimize(value, np.zeros(num_domains(problem)), jac=True, method="BFGS", options={"gtol": 1e-5})
    return torch.softmax(torch.from_numpy(found.x), 0)


class ClosedFormBackend:
    """The two copies as flat vectors in `num_layers` equal blocks of coordinates, trained by the package's AdamW.

    Gradients are divided by the sum of the token weights behind them, so that α does not change the steps of w.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        num_layers: int = 1,
        optimizer: AdamWSettings = DAMPED,
    ) -> None:
        self._problem = problem
        self._settings = optimizer
        first_K = torch.zeros(problem.num_parameters, dtype=torch.float64)
        self._layers = {
            copy: [part.clone().requires_grad_() for part in first_K.tensor_split(num_layers)] for copy in Copy
        }
        self._optimizers = {copy: BlockAdamW(optimizer) for copy in Copy}
        self._weight = dict.fromkeys(Copy, 0.0)
        self.set_block(Block(layers=frozenset(range(num_layers)), edges=False))

    @property
    def info(self) -> BackendInfo:
        first = self._layers[Copy.MODEL]
        return BackendInfo(
            name="closed form",
            num_layers=len(first),
            num_parameters=self._problem.num_parameters,
            layout="",
            device="cpu",
        )

    def set_block(self, block: Block) -> None:
        for copy, layers in self._layers.items():
            for index, part in enumerate(layers):
                part.requires_grad_(index in block.layers)
                if index not in block.layers:
                    part.grad = None
            self._optimizers[copy].activate({str(index): layers[index] for index in sorted(block.layers)})

    def forward_backward(self, terms: Sequence[Term]) -> list[Tensor]:
        losses = []
        for term in terms:
            loss_B = self._row_losses(term.copy, term.batch)
            (term.token_weight_B.double() @ loss_B).backward()
            losses.append(loss_B.detach())
            self._weight[term.copy] += float(term.token_weight_B.sum())
        return losses

    @torch.no_grad()
    def losses(self, copy: Copy, batch: Batch) -> Tensor:
        return self._row_losses(copy, batch)

    @torch.no_grad()
    def update(self, copy: Copy, *, learning_rate: float) -> UpdateReport:
        optimizer = self._optimizers[copy]
        norm = float(torch.cat([part.grad for part in optimizer.active.values()]).norm())
        factor = clip_factor(norm, self._settings.max_grad_norm)
        optimizer.update(learning_rate, grad_scale=factor / self._weight[copy])
        self._weight[copy] = 0.0
        for part in optimizer.active.values():
            part.grad = None
        return UpdateReport(grad_norm=norm, clipped=factor < 1)

    def distance(self) -> float:
        return float((self.vector(Copy.MODEL) - self.vector(Copy.AUX)).norm())

    def vector(self, copy: Copy) -> Tensor:
        """All parameters of a copy, (K,)."""
        return torch.cat([part.detach() for part in self._layers[copy]])

    def _row_losses(self, copy: Copy, batch: Batch) -> Tensor:
        return self._problem.row_losses(torch.cat(self._layers[copy]), batch.tokens_BS[:, 0])


class WithoutAux(ClosedFormBackend):
    """Drops −ℓ(u): the passes of u report no loss, so the gradient in p is α·ℓ(w)."""

    def forward_backward(self, terms: Sequence[Term]) -> list[Tensor]:
        found = super().forward_backward(terms)
        return [0 * loss if term.copy is Copy.AUX else loss for term, loss in zip(terms, found, strict=True)]


class IndependentBatches(ClosedFormBackend):
    """Gives u other rows than w: every pass of u is over the rows that `redraw` puts in their place."""

    redraw: Callable[[Batch], Batch]

    def forward_backward(self, terms: Sequence[Term]) -> list[Tensor]:
        return super().forward_backward(
            [replace(term, batch=self.redraw(term.batch)) if term.copy is Copy.AUX else term for term in terms]
        )


@dataclass(frozen=True, kw_only=True)
class Draws:
    """`BatchSource` over a problem: every row in every step (`rows` None), or `rows` a domain."""

    problem: Problem
    rows: int | None = None
    seed: int = 0
    domains: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", [str(d) for d in range(num_domains(self.problem))])

    def at(self, step: int) -> StepData:
        rng = np.random.default_rng((self.seed, step))
        train = [self._draw(d, rng) for d in range(len(self.domains))]
        return StepData(
            train=self.batch(torch.cat(train)),
            target=self.batch(self._draw(-1, rng)),
            inclusion_D=torch.ones(len(self.domains)),
        )

    def batch(self, row_B: Tensor) -> Batch:
        """These rows of the problem's data."""
        return Batch(
            tokens_BS=torch.stack([row_B, torch.zeros_like(row_B)], 1),
            mask_BS=torch.ones(len(row_B), 1),
            domain_B=self.problem.domain_N[row_B],
            row_weight_B=torch.ones(len(row_B)),
        )

    def _draw(self, domain: int, rng: np.random.Generator) -> Tensor:
        row_N = rows_of(self.problem, domain)
        return row_N if self.rows is None else row_N[torch.from_numpy(rng.integers(len(row_N), size=self.rows))]


def quadratic(
    *,
    centres: Sequence[Sequence[float]],
    target: Sequence[float],
    seed: int = 0,
    noise: float | Sequence[float] = 0.0,
    rows: int = 1,
) -> Quadratic:
    """Domains about `centres`, a target about `target`; random curvatures; `rows` rows each, scattered by `noise`."""
    generator = torch.Generator().manual_seed(seed)
    every = torch.tensor([*centres, target], dtype=torch.float64)
    noise_D = torch.as_tensor(noise, dtype=torch.float64).expand(len(every))
    scatter = torch.randn(len(every), rows, every.shape[1], generator=generator, dtype=torch.float64)
    scatter = noise_D[:, None, None] * scatter
    domain = torch.tensor([*range(len(centres)), -1])
    return Quadratic(
        curvature_DKK=torch.stack([_curvature(every.shape[1], generator) for _ in centres]),
        target_curvature_KK=_curvature(every.shape[1], generator),
        centre_NK=(every[:, None] + scatter - scatter.mean(dim=1, keepdim=True)).flatten(0, 1),
        domain_N=domain.repeat_interleave(rows),
    )


def softmax_regression(
    *,
    label_noise: Sequence[float],
    skills: Sequence[Tensor],
    target_skill: Tensor,
    target_noise: float = 0.0,
    rows: int = 60,
    seed: int = 0,
) -> SoftmaxRegression:
    """Domains whose labels follow softmax(x·skill), a share `label_noise` of them drawn at random instead.

    Args:
        label_noise: of each domain.
        skills: (M, C) of each domain.
        target_skill: (M, C) of the target.
        target_noise: the target's share of random labels.
        rows: of each domain and of the target.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    num_features, num_classes = target_skill.shape
    features, labels = [], []
    for skill, share in zip([*skills, target_skill], [*label_noise, target_noise], strict=True):
        feature_NM = torch.randn(rows, num_features, generator=generator, dtype=torch.float64)
        label_N = torch.multinomial(torch.softmax(2 * feature_NM @ skill, 1), 1, generator=generator)[:, 0]
        random_N = torch.randint(num_classes, (rows,), generator=generator)
        is_random_N = torch.rand(rows, generator=generator) < share
        features.append(feature_NM)
        labels.append(torch.where(is_random_N, random_N, label_N))
    return SoftmaxRegression(
        feature_NM=torch.cat(features),
        label_N=torch.cat(labels),
        domain_N=torch.tensor([*range(len(skills)), -1]).repeat_interleave(rows),
        num_classes=num_classes,
    )


def _curvature(width: int, generator: torch.Generator) -> Tensor:
    root = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return root @ root.T / width + torch.eye(width, dtype=torch.float64)


def uniform(problem: Problem) -> Tensor:
    """Equal weights, (D,)."""
    return torch.full((num_domains(problem),), 1 / num_domains(problem), dtype=torch.float64)


def solver_settings(
    *,
    num_steps: int,
    penalty: float,
    weight_rate: float,
    prior_pull: float = 0.0,
    warmup_steps: int = 50,
    rate: float = 0.5,
    num_layers: int = 1,
    block_size: int = 0,
    data_weights: DataWeightSettings | None = None,
) -> SolverSettings:
    """A run at constant rates; of exponentiated gradient that reports the mean of its last half unless told so."""
    return SolverSettings(
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        learner=ScaleBiO(penalty=penalty),
        blocks=BlockSchedule(num_layers=num_layers, size=block_size, edges="frozen", seed=1),
        learning_rate=LearningRate(peak=rate, num_steps=num_steps, shape="constant"),
        data_weights=data_weights or DataWeightSettings(learning_rate=weight_rate, prior_pull=prior_pull),
        eval_period=100,
    )
