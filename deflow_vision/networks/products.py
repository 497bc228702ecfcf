"""Linear layers by the fastest product of the processor at hand.

On a CPU, PyTorch multiplies float32 by MKL, which with AVX-512 on AMD's processors takes twice the
time of oneDNN. There oneDNN does it, forwards and backwards; its last digits differ. Whatever else
there is (few rows or columns, a CPU without AVX-512, a GPU, bfloat16 under autocast, which is
oneDNN's already, a compiler, a transform of `torch.func`) takes PyTorch's own way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deflow_vision.networks.gelu import gelu
from deflow_vision.networks.processor import lacks_avx512, plainly_on_cpu

FEW_ROWS = 8
"""Rows up to which float32 stays MKL's: oneDNN lays a weight out anew at each call, which takes as
long as such a product."""

NARROW = 64
"""Columns, on either side, below which float32 stays MKL's, unless a GELU is fused to it: to call
oneDNN takes as long."""


class Linear(nn.Linear):
    """W x + b of each row, (..., I) to (..., O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b of each row: x (..., I), weight (O, I), bias (O,) to (..., O)."""
    if not _multiplies_by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _product(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(W x + b), in one pass over memory where that is fast and no gradient is asked."""
    if torch.is_grad_enabled() or not _is_faster_by_onednn(x):
        return gelu(linear(x, weight, bias))
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
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, _dense(weight), bias, *after)
    return product


def _dense(weight: Tensor) -> Tensor:
    """A weight by rows or by columns without gaps, which oneDNN has kernels for.

    For a slice of columns, or one number for all rows, its plain loop would take 200 times as long.
    PyTorch sees to that for the other factor, and not for this one.
    """
    if weight.is_contiguous() or weight.t().is_contiguous():
        return weight
    return weight.contiguous()


def _multiplies_by_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return x.ndim == 2 and min(weight.shape) >= NARROW and _is_faster_by_onednn(x)


def _is_faster_by_onednn(x: Tensor) -> bool:
    """Whether oneDNN may be called on x, and has no equal: in float32 MKL is one at times."""
    if not fuses(x):
        return False
    if _computed_in(x) != torch.float32:
        return True
    return not lacks_avx512() and x.shape[:-1].numel() > FEW_ROWS


def fuses(x: Tensor) -> bool:
    """Whether oneDNN, which fuses what follows a product, may be called on x as autocast casts it.

    There the members of an ensemble are as fast one by one as in one batched product.
    """
    return plainly_on_cpu(x) and _computed_in(x) in _onednn_dtypes()


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
