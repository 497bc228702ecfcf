"""Flow matching on a straight path, and its Euler sampler: pure functions.

Source: Lipman et al. (arXiv 2210.02747); Park et al., "Flow Q-Learning" (arXiv 2502.02538), eq. 5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(x, t) for points x (B, A) and times t (B,): velocities (B, A)."""


def flow_matching_loss(
    velocity: Velocity,
    actions: Float[Tensor, "B A"],
    noises: Float[Tensor, "B A"],
    times: Float[Tensor, " B"],
    weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """mean_{b,d} w (v(x_t, t) - (a - x_0))^2 with x_t = (1 - t) x_0 + t a.

    Args:
        velocity: the field to train.
        actions: the data a, where the path ends.
        noises: x_0 ~ N(0, I), where it starts.
        times: t ~ U[0, 1).
        weights: w of each sample; 1 by default.
    """
    t = times.unsqueeze(-1)
    points = (1 - t) * noises + t * actions
    errors = (velocity(points, times) - (actions - noises)).square()
    return errors.mean() if weights is None else (weights * errors.mean(-1)).mean()


def euler_sample(
    velocity: Velocity, noises: Float[Tensor, "B A"], num_steps: int
) -> Float[Tensor, "B A"]:
    """Integrate dx/dt = v(x, t) from t = 0 to 1: x <- x + v(x, k/M) / M for k = 0..M-1.

    The accumulator stays in float32 whatever precision the field computes in. Nothing is clipped
    here: the reference clips the end point only, never a point on the way.

    Args:
        velocity: the field v.
        noises: x_0 ~ N(0, I).
        num_steps: M, the number of Euler steps.
    """
    x = noises.float()
    for k in range(num_steps):
        times = torch.full(x.shape[:1], k / num_steps, device=x.device)
        x = x + velocity(x, times).float() / num_steps
    return x


def sample_actions(
    velocity: Velocity, noises: Float[Tensor, "B A"], num_steps: int
) -> Float[Tensor, "B A"]:
    """Actions of a flow: `euler_sample`, clipped to [-1, 1] at the end.

    Args:
        velocity: the field v.
        noises: x_0 ~ N(0, I).
        num_steps: M, the number of Euler steps.
    """
    return euler_sample(velocity, noises, num_steps).clamp(-1, 1)
