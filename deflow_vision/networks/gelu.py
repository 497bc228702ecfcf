"""GELU in its tanh approximation, by the sigmoid on a CPU.

PyTorch computes a tanh in two to three times the time of a sigmoid there, and

    x / 2 * (1 + tanh(u / 2)) = x * sigmoid(u),    u = SLOPE * x + CUBIC * x^3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deflow_vision.networks.processor import plainly_on_cpu

SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * SLOPE

LEAST = 1 << 14
"""Numbers from which on the passes over them cost less than they take to call."""


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, elementwise."""
    if not _takes_sigmoid(x):
        return F.gelu(x, approximate="tanh")
    if x.requires_grad and torch.is_grad_enabled():
        return F.gelu(x, approximate='tanh')  # type: ignore[no-any-return]
    wide = x.float()
    return _gate(wide).mul_(wide).to(x.dtype)


class _GELU(torch.autograd.Function):
    """Values and slopes in float32, rounded once; the second gradient is PyTorch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = x.float()
        gate = _gate(wide)
        values = gate * wide
        # d/dx x s(u) = s + x s (1 - s) u',    u' = SLOPE + 3 CUBIC x^2
        slopes = torch.addcmul(values, values, gate, value=-1)
        slopes.mul_(_polynomial(wide, 3 * CUBIC)).add_(gate)
        ctx.save_for_backward(x, slopes.to(x.dtype))
        return values.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.ops.aten.gelu_backward(gradient, x, approximate="tanh")  # type: ignore[no-any-return]
        return gradient * slopes  # type: ignore[no-any-return]


def _gate(x: Tensor) -> Tensor:
    return _polynomial(x, CUBIC).mul_(x).sigmoid_()


def _polynomial(x: Tensor, square: float) -> Tensor:
    """SLOPE + square * x^2."""
    return torch.addcmul(x.new_full((), SLOPE), x, x, value=square)


def _takes_sigmoid(x: Tensor) -> bool:
    if not plainly_on_cpu(x) or x.dtype != torch.float32:
        return False
    return x.numel() >= LEAST
