"""Axes of charts: from a value to its place, the ticks between, and how values are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

MINUS = "\N{MINUS SIGN}"


def number(value: float) -> str:
    """A value for a label: four digits that count, or whole thousands; a minus that is one."""
    value += 0.0  # -0.0 is a 0.0 then
    size = abs(value)
    form = ",.0f" if 1e3 <= size < 1e6 else ".4g" if not size or 1e-3 <= size < 1e3 else ".3g"
    return f"{value:{form}}".replace("-", MINUS)


def axis(
    values: np.ndarray, start: float, end: float, log: bool
) -> tuple[Callable[[float], float], list[float]]:
    """An axis that holds some values.

    Args:
        values: all that must lie on it, (N,).
        start: where it starts, in pixels.
        end: where it ends.
        log: whether it is logarithmic; the values must be positive, then.

    Returns:
        The place of a value in pixels, and the values of the ticks.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        half = 0.5 * abs(low or 1)
        low, high = (low / 2, high * 2) if log else (low - half, high + half)
    if log:
        low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.04
    else:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ticks = _ticks(low, high, log)

    scale: Callable[[float], float] = np.log if log else float

    def place(value: float) -> float:
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return round(start + float(share) * (end - start), 1)

    return place, ticks


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """At most six or so; those of a logarithmic axis where they suffice."""
    even = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    fine, coarse = LogLocator(subs=(1.0, 2.0, 5.0)), LogLocator(numticks=6)
    found: list[float] = []
    for locator in (fine, coarse) if log else ():
        found = _within(locator.tick_values(low, high), low, high)
        if len(found) <= 6:
            break
    # Less than a factor of two or so has no round powers in it.
    return found if len(found) > 1 else _within(even.tick_values(low, high), low, high)


def _within(ticks: Any, low: float, high: float) -> list[float]:
    return [float(tick) for tick in ticks if low <= tick <= high]
