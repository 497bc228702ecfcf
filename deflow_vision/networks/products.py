"""Linear layers by the fastest product of the processor at hand.

On a CPU, PyTorch multiplies float32 by MKL, which on AMD's processors takes twice the time of
oneDNN. Here oneDNN does it, forwards and backwards; its last digits differ. Whatever else there is
(a GPU, bfloat16 under autocast, which is oneDNN's already, a compiler, a transform of `torch.func`)
takes PyTorch's own way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """W x + b of each row, (..., I) to (..., O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b of each row: x (..., I), weight (O, I), bias (O,) to (..., O)."""
    if x.ndim != 2 or not _multiplies_by_onednn(x):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _product(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(W x + b), its tanh form, in one pass over memory where no gradient is asked."""
    if torch.is_grad_enabled() or not fuses(x):
        return F.gelu(linear(x, weight, bias), approximate="tanh")
    dtype = _computed_in(x)
    return _product(x.to(dtype), weight.to(dtype), bias.to(dtype), "gelu", [], "tanh")


def held(parameter: Tensor) -> Tensor:
    """A parameter as `linear_gelu` takes it where no gradient is asked, cast once for many calls.

    It does not follow what is learned later.
    """
    if torch.is_grad_enabled() or not fuses(parameter):
        return parameter
    return parameter.to(_computed_in(parameter))


class _Linear(torch.autograd.Function):
    """A product whose gradients are products of the same kind, and so on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        asked = ctx.needs_input_grad
        return (
            linear(gradient, weight.t()) if asked[0] else None,
            linear(gradient.t(), x.t()) if asked[1] else None,
            gradient.sum(0) if asked[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, *after: Any) -> Tensor:
    after = after or ("none", [], "")
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)
    return product


def _multiplies_by_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and fuses(x)


def fuses(x: Tensor) -> bool:
    """Whether oneDNN, which fuses what follows a product, may be called on x as autocast casts it.

    There the members of an ensemble are as fast one by one as in one batched product.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return _computed_in(x) in _onednn_dtypes()


def _computed_in(x: Tensor) -> torch.dtype:
    """What autocast makes of x, on a CPU."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """In which oneDNN multiplies on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)
