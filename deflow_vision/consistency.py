"""Consistency models: one network that maps every point of a noising path to its start.

x_t = a + t z lies between the data, at sigma_min, and noise, at sigma_max. Source: Song et al.,
"Consistency Models" (arXiv 2303.01469); times: Karras et al. (arXiv 2206.00364), eq. 5. Pure
functions, in float32: the first inputs of the network are as large as 80.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, RHO = 0.002, 80.0, 0.5, 7.0
LAST_TIME = 2.0
"""The time of the sampler's last step."""
FIRST_NUM_TIMES, LAST_NUM_TIMES = 2, 150

Network = Callable[[Tensor, Tensor], Tensor]
"""F(x, t) for points x (B, A) and times t (B,), or f(x, t) made of it: (B, A)."""


def num_times(step: int, period: int) -> int:
    """N(k) = ceil(sqrt(k (150^2 - 2^2) / K + 2^2) - 1) + 1: from 2 to 150 within a period.

    Args:
        step: updates so far; k is their number since the period began.
        period: K, updates after which it begins again.
    """
    k, first, last = step % period, FIRST_NUM_TIMES**2, LAST_NUM_TIMES**2
    return math.ceil(math.sqrt(k * (last - first) / period + first) - 1) + 1


def karras_times(indices: Float[Tensor, " B"], count: Float[Tensor, ""]) -> Float[Tensor, " B"]:
    """t_i = (sigma_min^(1/rho) + i / (N - 1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Args:
        indices: i, from 0 to N - 1.
        count: N.
    """
    low, high = math.pow(SIGMA_MIN, 1 / RHO), math.pow(SIGMA_MAX, 1 / RHO)
    return (low + indices / (count - 1) * (high - low)).pow(RHO)


def consistency_function(
    network: Network, x: Float[Tensor, "B A"], times: Float[Tensor, " B"]
) -> Float[Tensor, "B A"]:
    """f(x, t) = c_skip(t) x + c_out(t) F(x, t), which is x at t = sigma_min whatever F is.

    c_skip = sigma_d^2 / ((t - sigma_min)^2 + sigma_d^2),
    c_out = sigma_d (t - sigma_min) / sqrt(t^2 + sigma_d^2).

    Args:
        network: F.
        x: points of the path.
        times: t.
    """
    t = times.unsqueeze(-1)
    c_skip = SIGMA_DATA**2 / ((t - SIGMA_MIN).square() + SIGMA_DATA**2)
    c_out = SIGMA_DATA * (t - SIGMA_MIN) / (t.square() + SIGMA_DATA**2).sqrt()
    return c_skip * x + c_out * network(x, times)


def consistency_loss(
    network: Network,
    target_network: Network,
    actions: Float[Tensor, "B A"],
    noises: Float[Tensor, "B A"],
    uniforms: Float[Tensor, " B"],
    count: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """mean_{b,d} 100 / (t_{n+1} - t_n) (f(a + t_{n+1} z, t_{n+1}) - sg f^-(a + t_n z, t_n))^2.

    Neighbours on one path, so with the same z; the nearer the times, the greater the weight.

    Args:
        network: F, to train.
        target_network: the F of f^-, a slow copy.
        actions: the data a.
        noises: z ~ N(0, I).
        uniforms: u ~ U[0, 1), of n = floor(u (N - 1)), one of 0..N-2.
        count: N, how many times there are.
    """
    indices = (uniforms * (count - 1)).floor()
    near, far = karras_times(indices, count), karras_times(indices + 1, count)
    with torch.no_grad():
        x = actions + near.unsqueeze(-1) * noises
        targets = consistency_function(target_network, x, near)
    ends = consistency_function(network, actions + far.unsqueeze(-1) * noises, far)
    return (100 / (far - near) * (ends - targets).square().mean(-1)).mean()


def consistency_sample(network: Network, noises: Float[Tensor, "B T A"]) -> Float[Tensor, "B A"]:
    """Evaluate f at sigma_max, then at each later time, noised again up to it; differentiable.

    x <- f(x + sqrt(t^2 - sigma_min^2) z, t) for T times, evenly from sigma_max down to 2. Nothing
    is clipped.

    Args:
        network: F.
        noises: z ~ N(0, I), one a step.
    """
    num_steps = noises.shape[1]
    x = SIGMA_MAX * noises[:, 0]
    for k in range(num_steps):
        time = SIGMA_MAX - k * (SIGMA_MAX - LAST_TIME) / max(num_steps - 1, 1)
        if k > 0:
            x = x + math.sqrt(time**2 - SIGMA_MIN**2) * noises[:, k]
        x = consistency_function(network, x, torch.full(x.shape[:1], time, device=x.device))
    return x
