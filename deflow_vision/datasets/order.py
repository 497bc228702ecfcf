"""Rows in time's order, told from rows in any other."""

from __future__ import annotations

from typing import Any

import numpy as np

_FEW = 100  # states of an episode, or transitions, that do not suffice to tell


class Order:
    """Tells a simulator's states, which change little from one to the next, from shuffled ones.

    Von Neumann's ratio, of the number in the state that changes most smoothly: squared differences
    of neighbours over twice the squared distances from the episode's mean. 1 is expected of states
    in random order, be it within their episode or among all; OGBench's arms have 0.0003.
    """

    def __init__(self) -> None:
        self._count = 0
        self._steps: Any = 0.0
        self._spread: Any = 0.0

    def add(self, states: np.ndarray) -> float:
        """Count an episode's states (S, D) in; the ratio so far, or 0 where there is too little."""
        if len(states) < _FEW:
            return 0.0
        with np.errstate(all="ignore"):  # values that are not finite are refused elsewhere
            states = states.astype(np.float64)
            self._count += len(states)
            self._steps += (np.diff(states, axis=0) ** 2).sum(0)
            self._spread += ((states - states.mean(0)) ** 2).sum(0)
            moving = self._spread > 1e-9 * self._count
            ratios = self._steps[moving] / (2 * self._spread[moving])
        return float(ratios.min()) if len(ratios) else 0.0


class RowOrder:
    """Tells rows in time's order from shuffled ones: states change little from one to the next.

    Von Neumann's ratio: mean squared difference of neighbours over twice the variance, which is 1
    where neighbours are unrelated. Of the number in the state that changes most smoothly.
    """

    def __init__(self) -> None:
        self._count, self._pairs = 0, 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0
        self._differences: Any = 0.0
        self._before: np.ndarray | None = None

    def add(self, states: np.ndarray, ends: np.ndarray) -> None:
        """Count the next states (S, D) in; (S,) whether no state of the same episode follows."""
        states = states.astype(np.float64)
        self._count += len(states)
        self._sum += states.sum(0)
        self._squares += (states**2).sum(0)
        if self._before is not None:
            states, ends = np.concatenate([self._before, states]), np.append(False, ends)
        self._pairs += int((~ends[:-1]).sum())
        self._differences += (np.diff(states, axis=0)[~ends[:-1]] ** 2).sum(0)
        self._before = None if ends[-1] else states[-1:]

    def share(self) -> float:
        """The ratio, or 0 where there is too little to tell."""
        variance = self._squares / self._count - (self._sum / self._count) ** 2
        if self._pairs < _FEW or not (variance > 1e-9).any():
            return 0.0
        moving = variance > 1e-9
        ratios = self._differences[moving] / self._pairs / (2 * variance[moving])
        return float(ratios.min())
