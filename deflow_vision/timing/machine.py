"""The machine: what it is, and what it can do at most."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from deflow_vision.timing.turns import seconds_of
from deflow_vision.training.devices import computes_bfloat16
from deflow_vision.training.run_folder import processor_name

ROWS, WIDTH = 256, 512
"""The product of a state update: 256 x 512 by 512 x 512."""


def device() -> torch.device:
    """What is timed: the GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        words: its processor, memory and versions.
        products: GFLOP/s of a product of 256 x 512 by 512 x 512, by its library and precision.
        bandwidth: GB/s of a copy, what is read and what is written together.
        bfloat16: whether it has instructions for it.
        load: processes that wanted to run in the last minute, before anything was timed.
    """

    words: str
    products: dict[str, float]
    bandwidth: float
    bfloat16: bool
    load: float

    def peak(self, precision: str) -> float:
        """GFLOP/s of the fastest product, "no" for float32 or "bf16", which may be emulated."""
        kind = "bfloat16" if precision == "bf16" and self.bfloat16 else "float32"
        return max(rate for name, rate in self.products.items() if kind in name)

    def describe(self) -> str:
        """A paragraph."""
        rates = ", ".join(f"{rate:,.0f} by {name}" for name, rate in self.products.items())
        bf16 = "" if self.bfloat16 else "; no instructions for bfloat16, which is left out"
        return (
            f"{self.words}. GFLOP/s of a product of {ROWS} x {WIDTH} by {WIDTH} x {WIDTH}: {rates}"
            f"{bf16}; a copy moves {self.bandwidth:.0f} GB/s. Load before: {self.load:.1f}."
        )


def look() -> Machine:
    """Describe and measure this machine, in a few seconds."""
    load = os.getloadavg()[0]
    where = device()
    x, weight = torch.randn(ROWS, WIDTH, device=where), torch.randn(WIDTH, WIDTH, device=where)
    half_x, half_weight = x.bfloat16(), weight.bfloat16()
    linear = torch.nn.functional.linear
    has_bfloat16 = computes_bfloat16(where)
    products: dict[str, Callable[[], object]] = {"torch in float32": lambda: linear(x, weight)}
    if has_bfloat16:
        products["torch in bfloat16"] = lambda: linear(half_x, half_weight)
    if where.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        one_dnn = torch.ops.mkldnn._linear_pointwise
        products["oneDNN in float32"] = lambda: one_dnn(x, weight, None, "none", [], "")
    flops = 2 * ROWS * WIDTH * WIDTH
    rates = {name: flops / _best(call) / 1e9 for name, call in products.items()}
    source = torch.ones(1 << 26, device=where)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _best(lambda: target.copy_(source), 10) / 1e9
    return Machine(_words(where), rates, bandwidth, has_bfloat16, load)


def _best(call: Callable[[], object], repeats: int = 200) -> float:
    """Seconds of the fastest of several calls."""
    return min(seconds_of(call) for _ in range(repeats))


def _words(where: torch.device) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = "no GPU" if where.type == "cpu" else torch.cuda.get_device_name()
    return (
        f"{len(os.sched_getaffinity(0))} cores of {processor_name()} "
        f"({torch.backends.cpu.get_cpu_capability()}), {memory:.0f} GiB, {gpu}, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
