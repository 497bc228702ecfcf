"""The online buffer: what the environment showed, each state once, episode after episode.

Two files that only grow: `frames.bin`, the states' observations, and `steps.bin`, float32 rows of
[action, reward, mask, whether the state is the last of its episode]. They are the buffer: batches
are read from them through the system's page cache, so that memory is bounded and a checkpoint needs
nothing but their length and digests. The last state of an episode starts no transition; its row is
zeros, as in a store.

At most `capacity` transitions are drawn from: the oldest whole episodes leave first, and the newest
one stays. What left remains on the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from deflow_vision.datasets.partial import sync
from deflow_vision.datasets.transitions import Rows, Transitions, join, returns_to_go
from deflow_vision.types import FrameBatch, UserError


class ReplayError(UserError):
    """The online buffer on disk is not what a checkpoint says."""


class Replay:
    """Episodes of the training environment.

    Args:
        folder: takes the files; what it holds is removed unless `restore` is called.
        observation_shape: of a single state, (D,) or (H, W, C).
        dtype: of observations, "float32" or "uint8".
        action_dim: A.
        frame_stack: frames of an observation.
        capacity: transitions that are drawn from, at most; the newest episode stays in any case.
        fields: optional fields of a batch. With "mc_returns" only finished episodes are drawn
            from, since a running one has no return yet.
        discount: gamma of `mc_returns`.
        reward_scale: what rewards are multiplied by before `mc_returns` are summed.
        reward_shift: what is then added to them.
        failure: the reward of a failure, for `mc_returns`: the least of the dataset.
        saved: of `state`, in a checkpoint to go on from; None for an empty buffer.

    Raises:
        ReplayError: the files do not hold what `saved` says.
    """

    def __init__(
        self,
        folder: Path,
        *,
        observation_shape: tuple[int, ...],
        dtype: str,
        action_dim: int,
        frame_stack: int,
        capacity: int,
        fields: Sequence[str] = (),
        discount: float = 0.99,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        failure: float = -1.0,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self._capacity, self._frame_stack = capacity, frame_stack
        self._next_actions = "next_actions" in fields
        self._with_returns = "mc_returns" in fields
        self._discount, self._scaling = discount, (reward_scale, reward_shift)
        self._failure = failure
        folder.mkdir(parents=True, exist_ok=True)
        self._frames = _Column(folder / "frames.bin", dtype, observation_shape)
        self._steps = _Column(folder / "steps.bin", "float32", (action_dim + 3,))
        self._columns = (self._frames, self._steps)
        for column in self._columns:
            column.restore(*(saved or {}).get(column.path.name, (0, None)))
        self._ends: np.ndarray = np.flatnonzero(self._steps.rows()[:, -1]) + 1
        self.running = self._frames.count > self._steps.count
        self._returns = np.zeros(0, np.float32)
        if self._with_returns:
            self._returns = self._returns_of(0)
        if self.running:
            self._ends = np.append(self._ends, self._frames.count)
        self._first = 0  # of the episodes that are drawn from
        self._index = self._evict()

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        if not (self._with_returns and self.running):
            return len(self._index)
        return int(self._index.before(self._index.episode_starts[-1:])[0])

    @property
    def num_episodes(self) -> int:
        """Episodes that ever began."""
        return len(self._ends)

    @property
    def num_transitions(self) -> int:
        """Transitions that were ever added."""
        return self._frames.count - self.num_episodes

    @property
    def num_evicted(self) -> int:
        """Transitions that have left."""
        return self.num_transitions - len(self._index)

    def begin(self, observation: np.ndarray) -> None:
        """Start an episode with its first observation, unstacked."""
        assert not self.running
        self._frames.append(observation)
        self._ends = np.append(self._ends, self._frames.count)
        self.running = True
        self._index = self._evict()

    def add(self, action: np.ndarray, reward: float, mask: float, observation: np.ndarray) -> None:
        """Add a transition to the running episode.

        Args:
            action: a, (A,).
            reward: r.
            mask: 0 where no bootstrap follows, else 1.
            observation: s', unstacked.
        """
        self._steps.append(np.array([*action, reward, mask, 0.0], np.float32))
        self._frames.append(observation)
        self._ends[-1] = self._frames.count
        self._index = self._evict()

    def end(self) -> None:
        """End the running episode: later states belong to another one."""
        assert self.running
        row = np.zeros(self._steps.shape, np.float32)
        row[-1] = 1.0
        self._steps.append(row)
        self.running = False
        if self._with_returns:
            start = int(self._ends[-2]) if len(self._ends) > 1 else 0
            self._returns = np.concatenate([self._returns, self._returns_of(start)])

    def observation(self) -> np.ndarray:
        """The newest state as an agent sees it, (D * frame_stack,) or (H, W, C * frame_stack)."""
        newest = np.array([self._frames.count - 1 - self._base])
        (frames,) = self._index.frames(newest)[:, :-1] + self._base
        return np.concatenate(list(self._frames.rows()[frames]), axis=-1)

    def batch(self, numbers: Int64[np.ndarray, " B"]) -> FrameBatch:
        """The transitions of these numbers, from 0, the oldest that can be drawn, to len - 1."""
        states = self._index.states(numbers)
        places, base = states + self._base, self._base
        frames = self._frames.rows()[self._index.frames(states) + base]
        steps = self._steps.rows()
        rows = Rows(steps[:, :-3], steps[:, -3], steps[:, -2])
        returns = self._returns[places] if self._with_returns else None
        return join(self._index, frames, states, rows, places, returns, self._next_actions)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: rows and digest of each file, and the first episode drawn."""
        for column in self._columns:
            sync(column.path)
        return {column.path.name: column.state() for column in self._columns} | {
            "first_episode": self._first
        }

    def close(self) -> None:
        """Close the files."""
        for column in self._columns:
            column.close()

    @property
    def _base(self) -> int:
        """The first state that is drawn from."""
        return int(self._ends[self._first - 1]) if self._first else 0

    def _evict(self) -> Transitions:
        """Let the oldest whole episodes go while there are too many; index what stays."""
        while self._first + 1 < len(self._ends):
            episodes = len(self._ends) - self._first
            if self._frames.count - self._base - episodes <= self._capacity:
                break
            self._first += 1
        return Transitions(self._ends[self._first :] - self._base, self._frame_stack)

    def _returns_of(self, start: int) -> np.ndarray:
        """Monte-Carlo returns of the finished episodes from state `start` on."""
        ends = self._ends[self._ends > start] - start
        rows = self._steps.rows()[start:][: ends.max(initial=0)]  # none of a running one
        scale, shift = self._scaling
        # The failure's reward is rounded as the others are, so that they can be equal.
        rewards = scale * np.append(rows[:, -3], np.float32(self._failure)) + shift
        failure = float(rewards[-1])
        return returns_to_go(rewards[:-1], rows[:, -2], ends, self._discount, failure)


class _Column:
    """A file of equal rows that grows at its end."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.count = path, shape, 0
        self._dtype = np.dtype(dtype)
        self._row_bytes = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        self._digest = hashlib.sha256()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._rows = np.empty((0, *shape), self._dtype)

    def append(self, row: np.ndarray) -> None:
        """Write a row behind the others."""
        assert row.shape == self.shape, (row.shape, self.shape)
        content = np.ascontiguousarray(row, self._dtype).tobytes()
        written = os.pwrite(self._file, content, self.count * self._row_bytes)
        if written < len(content):
            raise OSError(f"{self.path}: no space is left on the disk")
        self._digest.update(content)
        self.count += 1

    def rows(self) -> np.ndarray:
        """All rows, (count, ...), in the file."""
        if len(self._rows) < self.count:
            self._rows = np.memmap(
                self.path, self._dtype, mode="r", shape=(self.count, *self.shape)
            ).view(np.ndarray)
        return self._rows

    def state(self) -> tuple[int, str]:
        """How many rows there are, and their digest."""
        return self.count, self._digest.hexdigest()

    def restore(self, count: int, digest: str | None) -> None:
        """Cut the file back to so many rows, and check them."""
        size = count * self._row_bytes
        held = os.fstat(self._file).st_size
        if held >= size:
            with self.path.open("rb") as file:
                while size and (content := file.read(min(size, 1 << 24))):
                    self._digest.update(content)
                    size -= len(content)
        if size or (digest is not None and self._digest.hexdigest() != digest):
            raise ReplayError(
                f"{self.path} is not as the checkpoint left it ({held:,} bytes, of which it counts "
                f"on {count * self._row_bytes:,}): remove that checkpoint to go on from the one "
                "before it."
            )
        os.ftruncate(self._file, count * self._row_bytes)
        self.count = count

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
