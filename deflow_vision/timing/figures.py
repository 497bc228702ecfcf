"""A figure: what was measured, what it is held against, and the ratio that was asked of it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One quantity, measured several times.

    Attributes:
        values: a median, or a rate, of each turn.
        unit: as it is printed.
    """

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """Over the turns."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        shown = f"{digits(self.median)} {self.unit}"
        low, high = digits(min(self.values)), digits(max(self.values))
        return shown if low == high else f"{shown} ({low} to {high})"


@dataclass(frozen=True)
class Goal:
    """What a ratio should come to.

    Attributes:
        limit: the ratio.
        at_least: whether more is better.
    """

    limit: float
    at_least: bool = True

    def met(self, ratio: float) -> bool:
        """Whether a ratio reaches it."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {digits(self.limit)}"


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    Attributes:
        part: of which part of the benchmark.
        what: was measured.
        measured: what it came to.
        against: the quantity that it is held against, None for one that stands alone.
        basis: what `against` is.
        ratio: how many times better than `against`; for costs that grow, how many times more.
        goal: asked of the ratio, None where nothing is.
        note: more of it, such as its share of what this machine can do.
    """

    part: str
    what: str
    measured: Sample
    against: Sample | None = None
    basis: str = ""
    ratio: float | None = None
    goal: Goal | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return asdict(self) | {"met": None if self.goal is None else self.reached}

    @property
    def reached(self) -> bool:
        """Whether the ratio reaches the goal."""
        return self.goal is not None and self.ratio is not None and self.goal.met(self.ratio)


def faster(measured: Sample, against: Sample) -> float:
    """How many times faster, of two times."""
    return against.median / measured.median


def more(measured: Sample, against: Sample) -> float:
    """How many times more, of two costs or two rates."""
    return measured.median / against.median


def digits(value: float) -> str:
    """Three significant digits; all of an integer part, with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    return f"{value:.2f}" if abs(value) >= 1 and abs(value) < 10 else f"{value:.3g}"
