"""Index arithmetic between transitions and stored states, and what a batch takes besides frames.

A split stores every state once. State s starts a transition unless it is the last of its episode:
with N states in E episodes the valid transitions are numbered 0 to N - E - 1 in stored order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import Split
from deflow_vision.types import FrameBatch, UserError

_Numbers = Int64[np.ndarray, "B T"]
FIELDS = ("next_actions", "mc_returns")
ACTION_LIMIT = 1 - 1e-5
"""Dataset actions are clipped to +-this: at exactly 1 a tanh policy has no log-probability."""


class Transitions:
    """Where the transitions of a split lie. All methods are vectorised.

    Args:
        episode_ends: one past the last state of each episode, rising, (E,).
        frame_stack: frames of an observation, at least 1.
    """

    def __init__(self, episode_ends: Int64[np.ndarray, " E"], frame_stack: int) -> None:
        if frame_stack < 1:
            raise UserError(f"frame_stack must be at least 1, not {frame_stack}.")
        self.frame_stack = frame_stack
        self.episode_ends = np.asarray(episode_ends, np.int64)
        self.episode_starts = np.concatenate([[0], self.episode_ends[:-1]]).astype(np.int64)
        self._transition_ends = self.episode_ends - np.arange(1, len(self.episode_ends) + 1)
        self._offsets = np.arange(1 - frame_stack, 2)

    def __len__(self) -> int:
        """The number of valid transitions, N - E."""
        return int(self._transition_ends[-1]) if len(self._transition_ends) else 0

    def states(self, transitions: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """The stored state that each transition starts from."""
        # Each earlier episode holds one state that starts no transition.
        earlier = np.searchsorted(self._transition_ends, transitions, side="right")
        return np.asarray(transitions + earlier)

    def before(self, states: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """How many valid transitions start before each stored state; inverts `states`."""
        return np.asarray(states - np.searchsorted(self.episode_ends - 1, states, side="left"))

    def episodes(self, states: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """The episode of each stored state."""
        return np.asarray(np.searchsorted(self.episode_ends, states, side="right"))

    def frames(self, states: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, "B T"]:
        """The stored states whose frames make s and s', oldest first, T = frame_stack + 1.

        Before the start of an episode its first frame is repeated, as the environment wrapper
        repeats the frame of the reset.
        """
        starts = self.episode_starts[self.episodes(states)]
        return np.asarray(np.maximum(states[:, None] + self._offsets, starts[:, None]))


class Rows(NamedTuple):
    """Successive rows of what belongs to states, in memory: all of a split's, or a window's."""

    actions: Float32[np.ndarray, "R A"]
    rewards: Float32[np.ndarray, " R"]
    masks: Float32[np.ndarray, " R"]


class Fields:
    """What a batch takes besides frames: actions, rewards, masks and optional fields.

    Args:
        split: the split.
        goal: whose rewards and masks.
        index: the split's transitions.
        names: any of `FIELDS`. `next_actions` is the action of the next state, and at the last
            transition of an episode the current one, as DeFlow's fork of FQL has it. `mc_returns`
            are computed here, of the whole split, and held.
        discount: gamma of `mc_returns`.
        reward_scale: what rewards are multiplied by before `mc_returns` are summed; the batch's
            rewards stay as they are.
        reward_shift: what is then added to them.

    Attributes:
        arrays: the zarr arrays that `Rows` come from.

    Raises:
        ValueError: an unknown field.
        StoreError: no such goal, or a damaged block.
    """

    def __init__(
        self,
        split: Split,
        goal: str,
        index: Transitions,
        names: Sequence[str] = (),
        discount: float = 0.99,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
    ) -> None:
        unknown = sorted(set(names) - set(FIELDS))
        if unknown:
            raise ValueError(f"unknown batch fields {unknown}; there are {', '.join(FIELDS)}.")
        self._index = index
        self.arrays = (split.actions, *split.labels(goal))
        self._next_actions = "next_actions" in names
        self._returns: Float32[np.ndarray, " N"] | None = None
        if "mc_returns" in names:
            rewards = reward_scale * split.rewards(goal) + reward_shift
            ends = index.episode_ends
            self._returns = returns_to_go(rewards, split.masks(goal), ends, discount)

    def read_all(self) -> Rows:
        """The rows of all states, some 30 bytes each."""
        return Rows(*map(read_all, self.arrays))

    def batch(
        self,
        frames: UInt8[np.ndarray, "B T H W C"] | Float32[np.ndarray, "B T D"] | _Numbers,
        states: Int64[np.ndarray, " B"],
        rows: Rows,
        places: Int64[np.ndarray, " B"],
    ) -> FrameBatch:
        """The batch of some transitions.

        Args:
            frames: their frames, or the frames' numbers.
            states: that they start from.
            rows: hold those states and the ones after them.
            places: of the states in `rows`.
        """
        returns = None if self._returns is None else self._returns[states]
        return join(self._index, frames, states, rows, places, returns, self._next_actions)


def join(
    index: Transitions,
    frames: np.ndarray,
    states: Int64[np.ndarray, " B"],
    rows: Rows,
    places: Int64[np.ndarray, " B"],
    mc_returns: Float32[np.ndarray, " B"] | None,
    with_next_actions: bool,
) -> FrameBatch:
    """The batch of some transitions from its parts; arguments as in `Fields.batch`."""
    next_actions = None
    if with_next_actions:
        ends = index.episode_ends[index.episodes(states)]
        next_actions = rows.actions[np.where(states + 2 < ends, places + 1, places)]
        next_actions = next_actions.clip(-ACTION_LIMIT, ACTION_LIMIT)
    return FrameBatch(
        frames=frames,
        actions=rows.actions[places].clip(-ACTION_LIMIT, ACTION_LIMIT),
        rewards=rows.rewards[places],
        masks=rows.masks[places],
        next_actions=next_actions,
        mc_returns=mc_returns,
    )


def returns_to_go(
    rewards: Float32[np.ndarray, " N"],
    masks: Float32[np.ndarray, " N"],
    episode_ends: Int64[np.ndarray, " E"],
    discount: float,
    failure: float | None = None,
) -> Float32[np.ndarray, " N"]:
    """Monte-Carlo returns R_t = r_t + gamma m_t R_{t+1} within each episode's transitions.

    As Cal-QL's code has it, an episode that fails throughout, its rewards all the least reward of
    the data, has R = r / (1 - gamma), as if it went on for ever.

    Args:
        rewards: r of every stored state.
        masks: m of every stored state; a return does not look past a true termination.
        episode_ends: one past the last state of each episode.
        discount: gamma, in [0, 1).
        failure: the reward of failure; by default the least of these rewards, which is right for a
            dataset, but not for a single episode.

    Returns:
        R of every stored state, 0 at the last of an episode, where no transition starts.

    Raises:
        ValueError: gamma outside [0, 1).
    """
    if not 0 <= discount < 1:
        raise ValueError(f"mc_returns need a discount in [0, 1), not {discount}.")
    last = episode_ends - 1
    lengths = np.diff(last, prepend=-1) - 1
    returns = np.zeros(len(rewards))
    for back in range(1, int(lengths.max(initial=0)) + 1):
        states = last[lengths >= back] - back  # every episode at once, from its end to its start
        returns[states] = rewards[states] + discount * masks[states] * returns[states + 1]
    starts_transition = np.ones(len(rewards), bool)
    starts_transition[last] = False
    if failure is None:
        failure = float(rewards[starts_transition].min(initial=np.inf))
    better = np.concatenate([[0], np.cumsum(starts_transition & (rewards > failure))])
    failed = better[episode_ends] == better[episode_ends - lengths - 1]
    returns[np.repeat(failed, lengths + 1) & starts_transition] = failure / (1 - discount)
    return returns.astype(np.float32)
