"""Shortcut models: one velocity field for Euler steps of several sizes.

The field v(x, t, h) is told that one step is 2^-h of the way from noise at t = 0 to data at t = 1,
and answers with the mean velocity over that step. Source: Frans et al., "One Step Diffusion via
Shortcut Models" (arXiv 2410.12557), eqs. 3 to 5. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

ShortcutVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""v(x, t, h) for points x (B, A), times t and levels h (B,): velocities (B, A)."""


def grid_times(uniforms: Float[Tensor, " B"], levels: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The time floor(2^h u) / 2^h, one of those at which a step of level h begins.

    Args:
        uniforms: u ~ U[0, 1).
        levels: h.
    """
    counts = levels.exp2()
    return (uniforms * counts).floor() / counts


def consistency_levels(batch_size: int, finest: int, device: torch.device) -> Float[Tensor, " B"]:
    """Each row's h: `finest` - 1 for the first part of the batch, then less by one, at last 0.

    The parts are of equal size, but the last one takes what is left over.

    Args:
        batch_size: B.
        finest: the level that flow matching trains, at least 1.
        device: where.
    """
    rows = torch.arange(batch_size, device=device)
    part = max(batch_size // finest, 1)
    return (finest - 1 - rows // part).clamp(min=0).float()


def shortcut_loss(
    velocity: ShortcutVelocity,
    target_velocity: ShortcutVelocity,
    actions: Float[Tensor, "B A"],
    noises: Float[Tensor, "B A"],
    times: Float[Tensor, " B"],
    levels: Float[Tensor, " B"],
) -> Float[Tensor, ""]:
    """mean_{b,d} (v(x_t, t, h) - sg[(v_1 + v_2) / 2])^2: one step is two half steps.

    v_1 = v^-(x_t, t, h + 1) and v_2 = v^-(x_t + d v_1, t + d, h + 1), with d = 2^-(h + 1) and
    x_t = (1 - t) x_0 + t a.

    Args:
        velocity: v, to train.
        target_velocity: v^-, a slow copy.
        actions: the data a.
        noises: x_0 ~ N(0, I).
        times: t, on the grid of the level.
        levels: h.
    """
    t = times.unsqueeze(-1)
    points = (1 - t) * noises + t * actions
    half = (-levels - 1).exp2()
    with torch.no_grad():
        first = target_velocity(points, times, levels + 1)
        middle = points + half.unsqueeze(-1) * first
        second = target_velocity(middle, times + half, levels + 1)
    return (velocity(points, times, levels) - (first + second) / 2).square().mean()


def shortcut_sample(
    velocity: ShortcutVelocity, noises: Float[Tensor, "B A"], level: Tensor, max_steps: int
) -> Float[Tensor, "B A"]:
    """Take k = 2^h steps x <- x + v(x, i/k, h) / k, i = 0..k-1; differentiable, not clipped.

    The number of steps is a quantity: `max_steps` evaluations are made whatever it is, those after
    the k-th without effect, so that one compiled graph holds every k.

    Args:
        velocity: v.
        noises: x_0 ~ N(0, I).
        level: h, one for all rows or one a row.
        max_steps: the greatest k that `level` may say.
    """
    x = noises.float()
    levels = level.expand(x.shape[:1])
    counts = levels.exp2()
    for i in range(max_steps):
        times = (i / counts).clamp(max=1)
        moved = x + velocity(x, times, levels).float() / counts.unsqueeze(-1)
        x = torch.where((i < counts).unsqueeze(-1), moved, x)
    return x
