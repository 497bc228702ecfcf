"""How far the batches of a way of drawing are from independent draws, measured on indices alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deflow_vision.datasets.draws import Draws

NEAR = 10
"""Two transitions of an episode within so many steps of each other count as neighbours."""


@dataclass(frozen=True)
class Mixing:
    """Means over some successive batches.

    Attributes:
        episodes: different episodes in a batch.
        repeats: share of a batch's episodes that the batch before it had too.
        neighbours: pairs in a batch that are of one episode, at most `NEAR` steps apart.
    """

    episodes: float
    repeats: float
    neighbours: float

    def describe(self, uniform: Mixing) -> str:
        """In words, beside what uniform draws give."""
        return (
            f"{self.episodes:.0f} episodes in a batch (drawn uniformly: {uniform.episodes:.0f}), "
            f"{self.repeats:.0%} of them in the batch before too ({uniform.repeats:.0%}), "
            f"{self.neighbours:.1f} pairs within {NEAR} steps ({uniform.neighbours:.1f})"
        )


def measure_mixing(draws: Draws, num_batches: int = 4) -> Mixing:
    """Measure the first batches.

    Args:
        draws: what decides the batches.
        num_batches: how many batches.
    """
    episodes, repeats, neighbours = [], [], []
    before: np.ndarray | None = None
    for step in range(num_batches):
        states = np.sort(draws.states(step))
        of_states = draws.index.episodes(states)
        different = np.unique(of_states)
        episodes.append(len(different))
        if before is not None:
            repeats.append(np.isin(different, before).mean())
        before = different
        # Episodes lie one after another: pair each state with those that end its neighbourhood.
        reach = np.minimum(states + NEAR, draws.index.episode_ends[of_states] - 1)
        ends = np.searchsorted(states, reach, side="right")
        neighbours.append((ends - np.arange(len(states)) - 1).sum())
    return Mixing(*(float(np.mean(found)) for found in (episodes, repeats, neighbours)))
