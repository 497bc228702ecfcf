"""GELU in its tanh approximation, by what the processor at hand computes fastest.

PyTorch's tanh takes two to three times its sigmoid on a CPU, and

    x / 2 * (1 + tanh(u / 2)) = x * sigmoid(u),    u = SLOPE * x + CUBIC * x^3.

With a gradient that pays only without AVX-512.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deflow_vision.networks.processor import lacks_avx512, plainly_on_cpu

SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * SLOPE

LEAST = 1 << 14
"""Numbers from which on the sigmoid's five passes cost less than they take to call."""


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, elementwise."""
    if not _takes_sigmoid(x):
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled():
        return _GELU.apply(x)  # type: ignore[no-any-return]
    return _gate(x).mul_(x)


class _GELU(torch.autograd.Function):
    """By the sigmoid; its second gradient is PyTorch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = _gate(x)
        ctx.save_for_backward(x, gate)
        return gate * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.ops.aten.gelu_backward(gradient, x, approximate="tanh")  # type: ignore[no-any-return]
        # d/dx x s(u) = s + x s (1 - s) u',    u' = SLOPE + 3 CUBIC x^2
        slope = _polynomial(x, 3 * CUBIC).mul_(torch.addcmul(x, x, gate, value=-1))
        return slope.add_(1).mul_(gate).mul_(gradient)


def _gate(x: Tensor) -> Tensor:
    return _polynomial(x, CUBIC).mul_(x).sigmoid_()


def _polynomial(x: Tensor, square: float) -> Tensor:
    """SLOPE + square * x^2."""
    return torch.addcmul(x.new_full((), SLOPE), x, x, value=square)


def _takes_sigmoid(x: Tensor) -> bool:
    if not plainly_on_cpu(x) or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() and not lacks_avx512():
        return False
    return x.numel() >= LEAST  # an exported graph does not ask how many
