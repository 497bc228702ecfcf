"""Rows in time's order, told from rows in any other."""

from __future__ import annotations

from typing import Any

import numpy as np

_FEW = 100  # states of an episode that do not suffice to tell


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
