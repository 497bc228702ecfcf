"""Which rows of batch k come from the online buffer, and which of its transitions they are.

A pure function of (seed, k) and of what the buffer holds. The dataset's sampler makes a whole batch
as it does offline, from memory or from a stream; some of its rows are then replaced:

- union: each row with the probability that a uniform draw from both together is an online one;
- balanced, ratio: a fixed number of rows, half of them or `ratio` of them.

With `slots`, offline data is overwritten as by the reference's ring buffer of so many slots: the
dataset fills the first ones, online transition i goes to slot (N + i) modulo their number, and a
batch is uniform over the slots that are filled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from deflow_vision.datasets.joint_replay import JointReplay
from deflow_vision.datasets.replay import Replay
from deflow_vision.seeding import derive_seed
from deflow_vision.types import FrameBatch

Sampling = Literal["union", "balanced", "ratio"]


class Replacement(NamedTuple):
    """Rows of a batch that are replaced.

    Attributes:
        rows: their places in the batch, (n,) int64.
        batch: what they are replaced with, n transitions.
    """

    rows: np.ndarray
    batch: FrameBatch


class Mixture:
    """Draws from the online buffer for a batch of the dataset.

    Args:
        replay: the online buffer.
        num_offline: N, transitions of the dataset.
        batch_size: B.
        seed: of these draws.
        sampling: "union", "balanced" or "ratio".
        ratio: share of online transitions of "ratio", in [0, 1].
        slots: of the reference's ring buffer, more than N; None overwrites nothing.
        offline: which transitions of the dataset, (B,), are in the batch of a step; for `slots`.
    """

    def __init__(
        self,
        replay: Replay | JointReplay,
        num_offline: int,
        batch_size: int,
        *,
        seed: int,
        sampling: Sampling = "union",
        ratio: float = 0.5,
        slots: int | None = None,
        offline: Callable[[int], Int64[np.ndarray, " B"]] | None = None,
    ) -> None:
        self._replay, self._num_offline, self._batch_size = replay, num_offline, batch_size
        self._seed, self._slots, self._offline = seed, slots, offline
        share = {"union": None, "balanced": 0.5, "ratio": ratio}[sampling]
        self._fixed = None if share is None else round(share * batch_size)

    def __call__(self, step: int) -> Replacement | None:
        """The rows of the batch of `step` that are replaced; None where the buffer has nothing."""
        if not len(self._replay):
            return None
        rng = np.random.default_rng(derive_seed(self._seed, "online", step))
        if self._slots is not None:
            return self._overwritten(rng, step)
        count = len(self._replay)
        if self._fixed is None:
            rows = np.flatnonzero(
                rng.random(self._batch_size) < count / (self._num_offline + count)
            )
        else:
            rows = np.sort(rng.permutation(self._batch_size)[: self._fixed])
        return Replacement(rows, self._replay.batch(rng.integers(count, size=len(rows))))

    def _overwritten(self, rng: np.random.Generator, step: int) -> Replacement:
        assert self._slots is not None
        assert self._offline is not None
        offline, added = self._num_offline, len(self._replay) + self._replay.num_evicted
        beyond = min(added, self._slots - offline)  # slots that the dataset never had
        drawn = rng.random(self._batch_size) < beyond / (offline + beyond)
        places = np.where(
            drawn, offline + rng.integers(beyond, size=self._batch_size), self._offline(step)
        )
        # What was written last into each place: an online transition, or below 0 the dataset's own.
        numbers = added - 1 - (offline + added - 1 - places) % self._slots
        rows = np.flatnonzero(numbers >= 0)
        return Replacement(rows, self._replay.batch(numbers[rows] - self._replay.num_evicted))
