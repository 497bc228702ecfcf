"""MeanFlow in the residual form of MeanFlowQL: one evaluation maps noise to an action.

On the path x_t = (1 - t) a + t z, from the data at t = 0 to noise at t = 1, u(x, t) is the mean
velocity from 0 to t, and g(x, t) = x - u(x, t) the network, so that g(z, 1) is an action. With
v = z - a and d/dt along the path, the MeanFlow identity u = v - t du/dt becomes

    g = x_t + (t - 1) v - t dg/dt.

Sources: Geng et al., "Mean Flows for One-step Generative Modeling" (arXiv 2505.13447), eq. 6, and
Wang et al. (arXiv 2511.13035). Pure functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
"""g(x, t) for points x (B, A) and times t (B,): (B, A)."""

TARGET_LIMIT = 5.0
"""The greatest absolute value of a target."""


def load_forward_mode() -> None:
    """Have torch load its rules for forward mode, which warns of torch's own use of old code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def meanflow_errors(
    network: Network,
    actions: Float[Tensor, "B A"],
    noises: Float[Tensor, "B A"],
    times: Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """mean_d (g(x_t, t) - sg clip(x_t + (t - 1) v - t dg/dt))^2, the derivative by forward mode.

    Args:
        network: g, to train.
        actions: the data a.
        noises: z ~ N(0, I).
        times: t in (0, 1].
    """
    t = times.unsqueeze(-1)
    points = (1 - t) * actions + t * noises
    velocities = noises - actions
    outputs: Tensor
    slopes: Tensor
    outputs, slopes = torch.func.jvp(  # type: ignore[misc]
        network, (points, times), (velocities, torch.ones_like(times))
    )
    targets = points + (t - 1) * velocities - t * slopes
    targets = targets.detach().clamp(-TARGET_LIMIT, TARGET_LIMIT)
    return (outputs - targets).square().mean(-1)


def adaptive_mean(errors: Float[Tensor, " B"], power: float, offset: float) -> Float[Tensor, ""]:
    """mean_b e / sg[(e + c)^p]: for p > 0, large errors count less than in proportion.

    Args:
        errors: e, squared.
        power: p.
        offset: c.
    """
    return (errors / (errors.detach() + offset).pow(power)).mean()
