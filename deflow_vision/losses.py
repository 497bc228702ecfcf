"""The pieces that the losses of several agents share: pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

Aggregation = Literal["mean", "min"]


def aggregate_q(q: Float[Tensor, "E B"], how: Aggregation) -> Float[Tensor, " B"]:
    """One value a sample from an ensemble: mean_i Q_i or min_i Q_i.

    Args:
        q: the members' values.
        how: "mean" or "min" over the members.
    """
    return q.mean(0) if how == "mean" else q.min(0).values


def td_target(
    rewards: Float[Tensor, " B"],
    masks: Float[Tensor, " B"],
    next_values: Float[Tensor, " B"],
    discount: float,
) -> Float[Tensor, " B"]:
    """The one-step target y = r + gamma m V(s'), constant for the gradient.

    Args:
        rewards: r.
        masks: m, 0 where no bootstrap follows.
        next_values: the value of the next state.
        discount: gamma.
    """
    return (rewards + discount * masks * next_values).detach()


def expectile_loss(differences: Float[Tensor, " B"], expectile: float) -> Float[Tensor, ""]:
    """mean_b |tau - 1(u < 0)| u^2, least where V is the tau-expectile of Q, u = Q - V.

    Source: Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning"
    (arXiv 2110.06169), eq. 5.

    Args:
        differences: u.
        expectile: tau in (0, 1); above 1/2 it leans towards the greater Q.
    """
    weights = (differences >= 0).float() * (2 * expectile - 1) + (1 - expectile)
    return (weights * differences.square()).mean()


def awr_weights(
    advantages: Float[Tensor, " B"], alpha: float, limit: float = 100.0
) -> Float[Tensor, " B"]:
    """min(exp(alpha (Q - V)), limit), constant for the gradient: advantage-weighted regression.

    Source: Peng et al. (arXiv 1910.00177); the limit is IQL's.

    Args:
        advantages: Q - V, not normalised.
        alpha: inverse temperature.
        limit: the greatest weight.
    """
    return (alpha * advantages).exp().clamp(max=limit).detach()


def global_mean(x: Tensor, dim: int | None = None) -> Tensor:
    """The mean of x over the whole global batch, constant for the gradient.

    Under several processes each holds a part of equal size; statistics that divide a loss (such as
    DeFlow's mean |Q|) must not depend on how the batch was split.

    Args:
        x: this process's part, any shape.
        dim: the one dimension that the mean is over; by default all of them.

    Returns:
        The mean, a scalar without `dim`, equal on all processes.
    """
    mean = x.detach().mean(dim)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        mean = mean.clone()
        dist.all_reduce(mean)
        mean = mean / dist.get_world_size()
    return mean
