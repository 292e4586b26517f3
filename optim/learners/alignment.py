"""How the domains' gradients align with the target's: what DoGE and SAMA share.

⟨∇ℓ_d(w), v⟩ for every domain at once costs two forward passes, whatever their number: it is the slope of ℓ_d on the
line through w along v, taken as a central difference, whose error falls with the square of the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optim.backend import Backend, Copy, Term
from optim.batch import Batch, StepData
from optim.learners.learner import StepResult, compute_tokens, data_tokens
from optim.objective import domain_mean_losses, target_token_weights, train_token_weights


def aligned_step(
    backend: Backend,
    data: StepData,
    weights_D: Tensor,
    *,
    learning_rate: float,
    distance: float,
    preconditioned: bool,
    scale: float,
) -> StepResult:
    """Move w along ∇L2; the gradient in p is −scale·⟨∇ℓ_d(w), v⟩ with v from ∇L1(w) (see `Backend.line`).

    A domain gains weight while a step on it lowers the target loss.
    """
    num_domains = weights_D.numel()
    target_B = target_token_weights(data.target)
    (val_sum_B,) = backend.forward_backward(
        [Term(copy=Copy.MODEL, batch=data.target, token_weight_B=target_B.float())],
    )
    slope_D = slopes(backend, data.train, num_domains, distance=distance, preconditioned=preconditioned)
    train_B = train_token_weights(data.train, weights_D, data.inclusion_D.double())
    (loss_B,) = backend.forward_backward([Term(copy=Copy.MODEL, batch=data.train, token_weight_B=train_B.float())])
    return StepResult(
        weight_grad_D=-scale * data.inclusion_D.double() * slope_D,
        tokens_D=data_tokens(data, num_domains),
        compute_tokens=compute_tokens(data.target, data.train, forward_only=(data.train, data.train)),
        val_loss=float(target_B @ val_sum_B),
        train_loss=float(train_B @ loss_B),
        model_update=backend.update(Copy.MODEL, learning_rate=learning_rate),
    )


def slopes(backend: Backend, batch: Batch, num_domains: int, *, distance: float, preconditioned: bool) -> Tensor:
    """⟨∇ℓ_d(w), v⟩ of every domain, (D,) float64, 0 for one without target tokens here.

    v comes from the gradients that w holds, which are cleared. `distance` is how far to either side the losses are
    taken, ‖w₊ − w‖.
    """
    with backend.line(Copy.MODEL, preconditioned=preconditioned) as line:
        ends = []
        for place in (distance, -distance):
            line.move(place)
            ends.append(backend.losses(Copy.MODEL, batch))
        rise_D, _ = domain_mean_losses(ends[0] - ends[1], batch, num_domains)
        return torch.as_tensor(rise_D * line.norm / (2 * distance))
