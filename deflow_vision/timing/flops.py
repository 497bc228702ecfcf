"""Operations of an update, counted from its products and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

FORMULAS: dict[Any, Callable[..., int]] = {}
"""Of products that PyTorch's counter does not know."""

if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]

    def _linear_pointwise(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        rows = 1
        for size in x[:-1]:
            rows *= size
        return int(2 * rows * weight[0] * weight[1])

    FORMULAS[torch.ops.mkldnn._linear_pointwise] = _linear_pointwise


def count_flops(call: Callable[[], object]) -> int:
    """Floating point operations of the products and convolutions of a call, gradients included."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        call()
    return int(counter.get_total_flops())
