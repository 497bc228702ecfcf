"""Denoising diffusion over actions, with the variance-preserving schedule: pure functions.

x_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps for t = 1..T, from the data towards N(0, I). Sources: Ho
et al., "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239); the schedule: Xiao et al.
(arXiv 2112.07804), with the constants of IDQL. Networks see the index t - 1 of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 10.0

NoiseModel = Callable[[Tensor, Tensor], Tensor]
"""eps(x, t - 1) for points x (B, A) and indices t - 1 (B,): the noise within x, (B, A)."""


def vp_alpha(step: int, num_steps: int) -> float:
    """alpha_t = exp(-b_min / T - (b_max - b_min) (2 t - 1) / (2 T^2)), abar_t / abar_{t-1}.

    Args:
        step: t, from 1 to T.
        num_steps: T.
    """
    slope = (BETA_MAX - BETA_MIN) * (2 * step - 1) / (2 * num_steps**2)
    return math.exp(-BETA_MIN / num_steps - slope)


def vp_scales(
    indices: Float[Tensor, " B"], num_steps: int
) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """sqrt(abar_t) and sqrt(1 - abar_t): the parts of data and of noise in x_t.

    abar_t = alpha_1 ... alpha_t = exp(-b_min u - (b_max - b_min) u^2 / 2) with u = t / T.

    Args:
        indices: t - 1, from 0 to T - 1.
        num_steps: T.
    """
    u = (indices.unsqueeze(-1) + 1) / num_steps
    exponents = -BETA_MIN * u - (BETA_MAX - BETA_MIN) / 2 * u.square()
    return (exponents / 2).exp(), (-exponents.expm1()).sqrt()


def diffusion_loss(
    model: NoiseModel,
    actions: Float[Tensor, "B A"],
    noises: Float[Tensor, "B A"],
    indices: Float[Tensor, " B"],
    num_steps: int,
) -> Float[Tensor, ""]:
    """mean_b sum_d (eps_hat(x_t, t - 1) - eps)^2.

    Args:
        model: eps_hat, to train.
        actions: the data a.
        noises: eps ~ N(0, I).
        indices: t - 1, uniform in 0..T-1.
        num_steps: T.
    """
    data_scales, noise_scales = vp_scales(indices, num_steps)
    points = data_scales * actions + noise_scales * noises
    return (model(points, indices) - noises).square().sum(-1).mean()


def ddpm_sample(model: NoiseModel, noises: Float[Tensor, "B T A"]) -> Float[Tensor, "B A"]:
    """Walk back from x_T ~ N(0, I) to an action, clipped to [-1, 1] after every step.

    For t = T..1: x <- (x - (1 - alpha_t) / sqrt(1 - abar_t) eps_hat(x, t - 1)) / sqrt(alpha_t),
    and sqrt(1 - alpha_t) z is added where t > 1.

    Args:
        model: eps_hat.
        noises: x_T, then one z for each step but the last.
    """
    num_steps = noises.shape[1]
    x = noises[:, 0].float()
    for k in range(num_steps):
        step = num_steps - k
        alpha = vp_alpha(step, num_steps)
        indices = torch.full(x.shape[:1], step - 1.0, device=x.device)
        _, noise_scales = vp_scales(indices, num_steps)
        x = (x - (1 - alpha) / noise_scales * model(x, indices).float()) / math.sqrt(alpha)
        if step > 1:
            x = x + math.sqrt(1 - alpha) * noises[:, k + 1]
        x = x.clamp(-1, 1)
    return x
