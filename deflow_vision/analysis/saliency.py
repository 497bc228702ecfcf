"""Where in a picture a value looks: by its gradient, and by covering parts of the picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deflow_vision.agents.base import Agent
from deflow_vision.analysis.encoders import module_of
from deflow_vision.networks.critics import Critic
from deflow_vision.types import UserError

Value = Callable[[Tensor], Tensor]
"""Values (B,) of pictures (B, H, W, C) in [0, 255], uint8 or float32."""


def value_of(agent: Agent, actions: Tensor) -> Value:
    """Q(s, a) of fixed actions as a function of the picture alone, the mean over the ensemble.

    Args:
        agent: one with a critic.
        actions: a, (B, A).

    Raises:
        UserError: the agent has no critic of a state and an action.
    """
    critic = getattr(agent, "critic", None)
    dim = agent.encoder.feature_dim + actions.shape[-1]
    if not isinstance(critic, Critic) or critic.mlp.weights[0].shape[1] != dim:
        raise UserError(f"{type(agent).__name__} has no Q(s, a) that could be looked into.")
    encoder = module_of(agent, "critic")
    return lambda observations: critic(encoder(observations), actions).mean(0)


def gradient_saliency(value: Value, observations: Tensor) -> Tensor:
    """|dV / dx| of every pixel, the mean over channels and frames, (B, H, W).

    Per unit of intensity, which is 0 for black and 1 for white (Simonyan et al., 2013, arXiv
    1312.6034, section 3).

    Args:
        value: a differentiable function of pictures.
        observations: (B, H, W, C) uint8.
    """
    pictures = observations.float().requires_grad_()
    (gradient,) = torch.autograd.grad(value(pictures).sum(), pictures)
    return 255 * gradient.abs().mean(-1)


@torch.no_grad()
def occlusion_saliency(
    value: Value, observations: Tensor, background: Tensor, patch: int = 8
) -> Tensor:
    """|V(x) - V(x with a patch of the background)| of every patch, (B, H, W).

    (Zeiler and Fergus, 2014, arXiv 1311.2901, section 4.2.) The patches tile the picture, those at
    the right and lower edge may be smaller; all frames of a stack are covered at once.

    Args:
        value: a function of pictures.
        observations: (B, H, W, C) uint8.
        background: what a patch shows instead, (H, W, C) uint8, such as the data's mean picture.
        patch: its side in pixels.
    """
    whole = value(observations)
    found = torch.zeros(observations.shape[:3], device=observations.device)
    for top in range(0, observations.shape[1], patch):
        for left in range(0, observations.shape[2], patch):
            place = (slice(None), slice(top, top + patch), slice(left, left + patch))
            covered = observations.clone()
            covered[place] = background[place[1:]]
            found[place] = (value(covered) - whole).abs()[:, None, None]
    return found
