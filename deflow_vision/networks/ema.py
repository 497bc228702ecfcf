"""Slow copies of networks: exponential moving averages of their parameters."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def ema_copy(module: M) -> M:
    """A copy of `module` whose parameters take no gradient; it starts equal to it."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """theta_target <- (1 - tau) theta_target + tau theta_online, in float32.

    Args:
        target: the slow copy.
        online: the module that learns.
        tau: the share of the online parameters, in (0, 1].
    """
    slow: list[torch.Tensor] = list(target.parameters())
    if slow:
        torch._foreach_lerp_(slow, list[torch.Tensor](online.parameters()), tau)
