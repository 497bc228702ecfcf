"""The intrinsic action variance (IAV) of a dataset, and DeFlow's `target_divergence` from it.

The rule of DeFlow's README (commit d81dd59): take the k = 5 nearest neighbours of each state, the
variance of their actions, its average over states and action dimensions; delta is 0.1 times that
for fine manipulation, 1.0 times for navigation. What it leaves open is decided here:

- *States* are those that start a transition: the last of an episode has no action. A store of
  pixels is searched in the simulator's state (`qpos`, `qvel`, `button_states`).
- *Distance* is Euclidean, every dimension divided by its standard deviation over the dataset.
- *Neighbours* are searched in the whole dataset. A state is its own nearest neighbour, and so one
  of the k; the steps before and after it are most of the others. `apart` leaves them out.
- *Variance* is of the k actions, divided by k (ddof 0), of actions clipped to [-1, 1].
- *Sampled states* are drawn without replacement, with a seed of their own: delta is a setting, the
  same for every seed of a run.
- *Standard error*: over sampled states, by a bootstrap of whole episodes.

None of the choices tried gives the published values: these come nearest, within a factor of two to
three (docs/algorithms.md).

The search is exact and by brute force, so that its time is bounded by the sizes alone: a million
states of 100 dimensions take 45 s on two cores, and beside themselves three times their memory. A
tree is slower already at 28 standardised dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import Split
from deflow_vision.datasets.transitions import Transitions
from deflow_vision.types import UserError

Domain = Literal["manipulation", "navigation"]
Metric = Literal["standardised", "raw"]

FACTORS: dict[Domain, float] = {"manipulation": 0.1, "navigation": 1.0}
"""Delta over the IAV, in DeFlow's rule."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class ActionVariance:
    """How much the actions around a state differ.

    Attributes:
        per_state: variance of the neighbours' actions, mean over dimensions, of each sampled
            state, (S,).
        standard_error: of `iav`, from the sampling of states; None with a single episode.
        neighbours: whose actions are compared, in words.
        metric: how near is measured.
    """

    per_state: np.ndarray = field(repr=False)
    standard_error: float | None
    neighbours: str
    metric: Metric

    @property
    def iav(self) -> float:
        """The mean over states."""
        return float(self.per_state.mean())

    def target_divergence(self, domain: Domain) -> float:
        """Delta by the rule, to two significant digits: the third is below the sampling error."""
        return float(f"{FACTORS[domain] * self.iav:.2g}")


def action_variance(
    states: np.ndarray,
    actions: np.ndarray,
    episode_ends: np.ndarray,
    *,
    k: int = 5,
    samples: int = 10_000,
    seed: int = 0,
    metric: Metric = "standardised",
    apart: Sequence[int] = (0,),
) -> list[ActionVariance]:
    """The IAV, as this module defines it, for one or several choices of neighbours.

    Args:
        states: every stored state, (N, D).
        actions: the action in each, (N, A); unused at the last state of an episode.
        episode_ends: one past the last state of each episode, (E,).
        k: neighbours of a state.
        samples: states to sample; all where there are fewer.
        seed: of the sample.
        metric: "raw" leaves the dimensions as they are.
        apart: least number of steps between a state and a neighbour of its own episode: 0 counts
            all, 1 all but the state itself. An answer for each, from one search.

    Returns:
        An `ActionVariance` for each element of `apart`.

    Raises:
        UserError: fewer transitions than the search needs, or k below 2.
    """
    from sklearn.neighbors import NearestNeighbors

    index = Transitions(episode_ends, 1)
    rows = index.states(np.arange(len(index)))
    # Of a state's own episode, at most so many states are nearer in time than allowed.
    candidates = k + max(0, 2 * max(apart) - 1)
    if k < 2 or samples < 1 or min(apart) < 0:
        raise UserError(f"k is {k}, samples {samples}: at least 2 neighbours of 1 state are needed")
    if len(rows) < candidates:
        raise UserError(
            f"{len(rows)} transitions are too few for {k} neighbours {max(apart)} steps apart: it "
            f"takes {candidates}."
        )
    draw = np.random.default_rng(seed)
    chosen = np.sort(draw.choice(len(rows), min(samples, len(rows)), replace=False))
    points = _points(states[rows], metric)
    search = NearestNeighbors(n_neighbors=candidates, algorithm="brute").fit(points)
    near = rows[search.kneighbors(points[chosen], return_distance=False)]  # (S, candidates)

    centres = rows[chosen, None]
    episodes = index.episodes(rows[chosen])
    same_episode = index.episodes(near.ravel()).reshape(near.shape) == episodes[:, None]
    answers = []
    for least in apart:
        allowed = ~same_episode | (np.abs(near - centres) >= least)
        first = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
        taken = actions[np.take_along_axis(near, first, axis=1)].clip(-1, 1)  # (S, k, A)
        per_state = taken.var(axis=1, dtype=np.float64).mean(axis=1)
        error = _standard_error(per_state, episodes, draw)
        answers.append(ActionVariance(per_state, error, _words(k, least), metric))
    return answers


def simulator_states(split: Split) -> np.ndarray:
    """What neighbours are searched in, (N, D) float32.

    Args:
        split: of an open store.

    Returns:
        The observations of a state store, the simulator's state of a pixel store.

    Raises:
        UserError: a pixel store that has not kept the simulator's state.
        StoreError: a damaged block.
    """
    if not split.pixels:
        return read_all(split.observations)
    if "qpos" not in split.side:
        raise UserError(
            f"{split.observations.store.root}: its pixels come without qpos, so that there is no "
            "saying which states are near each other: give --agent.target-divergence a number."
        )
    parts = [read_all(array).astype(np.float32) for array in split.side.values()]
    return np.concatenate([part.reshape(split.num_states, -1) for part in parts], axis=1)


def _points(states: np.ndarray, metric: Metric) -> np.ndarray:
    """States as points whose Euclidean distance counts; overwrites `states`."""
    from sklearn.preprocessing import StandardScaler

    if metric == "raw":
        return states
    return np.asarray(StandardScaler(copy=False).fit_transform(states))


def _standard_error(
    values: np.ndarray, episodes: np.ndarray, draw: np.random.Generator
) -> float | None:
    """Of the mean, by a bootstrap of episodes: states of one episode are not independent."""
    _, episode = np.unique(episodes, return_inverse=True)
    counts, sums = np.bincount(episode), np.bincount(episode, values)
    if len(counts) < 2:
        return None
    weights = draw.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _RESAMPLES)
    return float(((weights @ sums) / (weights @ counts)).std())


def _words(k: int, least: int) -> str:
    if least == 0:
        return f"{k} nearest, itself included"
    return f"{k} nearest others" + (f", none within {least - 1} steps" if least > 1 else "")
