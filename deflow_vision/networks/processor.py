"""What the processor at hand is, where that decides which of two equal ways is the faster."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def lacks_avx512() -> bool:
    """Whether this CPU has AVX2 and no AVX-512; not for a compiler, which warns of the cache."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def plainly_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU, and neither a compiler nor a transform of `torch.func` looks on."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active()
