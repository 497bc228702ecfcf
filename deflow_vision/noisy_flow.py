"""A flow whose every Euler step adds Gaussian noise, so that its density is known: pure functions.

Source: Zhang et al., "SAC Flow" (arXiv 2509.25756), the noise-augmented rollout.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from deflow_vision.flow import Velocity

TANH_OFFSET = 1e-6
"""What keeps the logarithm of tanh's slope finite."""


def noisy_flow_sample(
    velocity: Velocity, noises: Float[Tensor, "B M A"], std: float
) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    """tanh(x_K) of x_{k+1} = x_k + v(x_k, k/K) / K + std eps_k, and its path's log-probability:

    log N(x_0; 0, I) + sum_k log N(x_{k+1}; x_k + v / K, std^2 I) - sum_d log(1 - tanh(x_K)^2).

    It is of the whole path, not of the action alone. The noise is given, so that all but the last
    term depend on it only: their value counts, and their gradient is zero.

    Args:
        velocity: the field v.
        noises: x_0 and eps_0, ..., eps_{K-1} ~ N(0, I); M = K + 1.
        std: of the noise of a step.

    Returns:
        Actions in (-1, 1), differentiable, and log-probabilities.
    """
    num_steps, dim = noises.shape[1] - 1, noises.shape[2]
    x = noises[:, 0].float()
    for k in range(num_steps):
        times = torch.full(x.shape[:1], k / num_steps, device=x.device)
        x = x + velocity(x, times).float() / num_steps + std * noises[:, k + 1]
    actions = x.tanh()
    log_probs = -0.5 * (noises.square() + math.log(2 * math.pi)).sum((1, 2))
    log_probs = log_probs - num_steps * dim * math.log(std)
    return actions, log_probs - (1 - actions.square() + TANH_OFFSET).log().sum(-1)
