"""The penalty objective and its closed-form gradients in the data weights. Pure functions.

    min_{λ,w} max_u  L1(w) + α·( L2(λ,w) − L2(λ,u) ),      L2(λ,w) = Σ_d p_d·ℓ_d(w)

    g_w = ∇_w [ L1(w) + α·L2(λ,w) ]      g_u = ∇_u L2(λ,u)      g_p = α·(ℓ(w) − ℓ(u))      all descend

The two model gradients come from a backend that is handed the *token weights* below, the coefficient of each row's
summed token loss in L1 or L2; the gradient in p falls out of the losses that those passes report, at no extra pass.

Shapes: B rows of a batch, D domains. Source: ScaleBiO, arXiv 2406.19976, eq. (4)-(6); F2SA, arXiv 2301.10945.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optim.batch import Batch


def domain_mean_losses(loss_sum_B: Tensor, batch: Batch, num_domains: int) -> tuple[Tensor, Tensor]:
    """Mean token loss of each domain, ℓ_d = Σ_{i∈d} v_i·S_i / Σ_{i∈d} v_i·T_i, over the rows of one batch.

    Args:
        loss_sum_B: S_i, summed token loss of each row, nats.
        batch: the rows; `domain_B` in 0..D-1.
        num_domains: D.

    Returns:
        (D,) losses in nats per token (0 for a domain without target tokens here) and (D,) weighted token counts.
    """
    row_weight_B = batch.row_weight_B.double()
    loss_D, tokens_D = torch.zeros(2, num_domains, dtype=torch.float64)
    loss_D.index_add_(0, batch.domain_B, row_weight_B * loss_sum_B.double())
    tokens_D.index_add_(0, batch.domain_B, row_weight_B * batch.num_targets_B.double())
    return torch.where(tokens_D > 0, loss_D / tokens_D.clamp_min(1e-12), 0.0), tokens_D


def train_token_weights(batch: Batch, weights_D: Tensor, inclusion_D: Tensor) -> Tensor:
    """Coefficients (B,) with which the rows' summed token losses add up to an unbiased estimate of L2(λ, ·).

    c_i = p_d·π_d⁻¹·v_i / Σ_{j∈d} v_j·T_j. `weights_D` is p, `inclusion_D` is π⁻¹ (see `StepData`). Rows without a
    target token get 0.
    """
    row_weight_B = batch.row_weight_B.double()
    tokens_D = torch.zeros_like(weights_D, dtype=torch.float64)
    tokens_D.index_add_(0, batch.domain_B, row_weight_B * batch.num_targets_B.double())
    per_token_D = torch.where(tokens_D > 0, weights_D * inclusion_D / tokens_D.clamp_min(1e-12), 0.0)
    return torch.where(batch.num_targets_B > 0, row_weight_B * per_token_D[batch.domain_B], 0.0)


def target_token_weights(batch: Batch) -> Tensor:
    """Coefficients (B,) with which the rows' summed token losses add up to L1, the mean token loss on the target."""
    total = batch.num_targets_B.sum().clamp_min(1.0)
    return (batch.num_targets_B > 0).double() / total


def centred(score_D: Tensor, inclusion_D: Tensor) -> Tensor:
    """π⁻¹·(score − its mean over the domains of this step), (D,); an absent domain (π⁻¹ = 0) gets 0.

    For scores that share a level, as losses and gaps do: a constant moves no weight, but without the level taken off, a
    domain that a step leaves out would be pushed by the whole of it. Where every step has k of D domains, each as
    likely, the expectation is the score less its mean over all D, times (1 − 1/k)/(1 − 1/D).
    """
    present_D = inclusion_D > 0
    level = score_D[present_D].mean() if present_D.any() else 0.0
    return torch.where(present_D, inclusion_D.double() * (score_D - level), 0.0)


def weight_grad(loss_w_D: Tensor, loss_u_D: Tensor, penalty: float, inclusion_D: Tensor) -> Tensor:
    """∂/∂p of α·Σ_d p_d(ℓ_d(w) − ℓ_d(u)) up to a constant, (D,) in nats per token: α·Δ, `centred`."""
    return penalty * centred(loss_w_D - loss_u_D, inclusion_D)


def logit_grad(weight_grad_D: Tensor, softmax_D: Tensor, floor: float = 0.0) -> Tensor:
    """∂/∂λ through p = floor + (1 − D·floor)·softmax(λ): (1 − D·floor)·s ⊙ (g − ⟨s, g⟩), shape (D,), sums to 0."""
    scale = 1.0 - softmax_D.numel() * floor
    return scale * softmax_D * (weight_grad_D - softmax_D @ weight_grad_D)
