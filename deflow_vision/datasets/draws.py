"""Which transitions make batch k, by arithmetic on (seed, k); reads nothing.

`Uniform` draws with replacement. `Epochs` gives each transition exactly once an epoch: an epoch of
a stream is its share of a permutation of all blocks of transitions; consecutive blocks make a
window, which is permuted as a whole and emitted in batches. A cumulative count over blocks finds
batch k, so that it costs the same in any order and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64

from deflow_vision.datasets.transitions import Transitions
from deflow_vision.seeding import derive_seed


class Draws(Protocol):
    """What both ways of drawing tell.

    Attributes:
        index: the transitions that are drawn from.
    """

    index: Transitions

    def states(self, step: int) -> Int64[np.ndarray, " B"]:
        """The states that the transitions of batch `step` start from."""
        ...


class Uniform:
    """Transitions uniform with replacement, as the reference draws them.

    Args:
        index: the split's transitions.
        rows: transitions a stream and step.
        seed: the run's seed.
        streams: the streams of this process.
    """

    def __init__(self, index: Transitions, rows: int, *, seed: int, streams: Sequence[int]) -> None:
        self.index = index
        self._rows, self._seed, self._streams = rows, seed, tuple(streams)

    def states(self, step: int) -> Int64[np.ndarray, " B"]:
        """The states that the transitions of batch `step` start from, stream by stream."""
        drawn = [
            np.random.default_rng(derive_seed(self._seed, "batch", step, stream)).integers(
                len(self.index), size=self._rows
            )
            for stream in self._streams
        ]
        return self.index.states(np.concatenate(drawn))


class Key(NamedTuple):
    """Names one window of the run."""

    stream: int
    epoch: int
    window: int


class Order(NamedTuple):
    """A window's transitions in the order in which they are emitted.

    Attributes:
        states: that they start from.
        shifts: from each one's stored row to its place among the rows of all `ranges`.
        ranges: the stored rows [start, stop) that serve them, a pair a block.
    """

    states: np.ndarray
    shifts: np.ndarray
    ranges: np.ndarray


@dataclass(frozen=True)
class _Share:
    """A stream's part of an epoch: runs of transitions [starts, stops), and where windows end."""

    starts: np.ndarray
    stops: np.ndarray
    window_ends: np.ndarray


class Epochs:
    """Each transition exactly once an epoch, which is dealt to the streams without overlap.

    Args:
        index: the split's transitions.
        rows: transitions a stream and step.
        block_length: stored states of a block.
        window_blocks: blocks of a window, over all streams.
        seed: the run's seed.
        num_streams: streams of the run.
        streams: the streams of this process.
    """

    def __init__(
        self,
        index: Transitions,
        rows: int,
        *,
        block_length: int,
        window_blocks: int,
        seed: int,
        num_streams: int,
        streams: Sequence[int],
    ) -> None:
        self.index, self.streams = index, tuple(streams)
        self._rows, self._seed, self._num_streams = rows, seed, num_streams
        self._window_blocks = max(1, window_blocks // num_streams)
        num_states = int(index.episode_ends[-1])
        # A transition reads one frame past its state, so that cuts one state before a chunk's end
        # spare each block the chunk after it; the halo before it costs one chunk more.
        cuts = np.arange(block_length - 1, num_states, block_length)
        self._bounds = np.unique(np.concatenate([[0], index.before(cuts), [len(index)]]))
        self._share = lru_cache(maxsize=2 * len(self.streams))(self._deal)
        self.order = lru_cache(maxsize=2 * len(self.streams))(self._permute)

    def states(self, step: int) -> Int64[np.ndarray, " B"]:
        """The states that the transitions of batch `step` start from, stream by stream."""
        return np.concatenate([self.order(key).states[part] for key, part in self.parts(step)])

    def parts(self, step: int) -> Iterator[tuple[Key, slice]]:
        """The pieces of windows that make batch `step`; it may span windows and epochs."""
        for stream in self.streams:
            low, high = self._limits(stream)
            position, left = step * self._rows, self._rows
            while left:
                epoch, offset = divmod(position, high - low)
                ends = self._share(stream, epoch).window_ends
                window = int(np.searchsorted(ends, offset, side="right"))
                start = int(ends[window - 1]) if window else 0
                take = min(left, int(ends[window]) - offset)
                yield Key(stream, epoch, window), slice(offset - start, offset - start + take)
                position, left = position + take, left - take

    def following(self, key: Key) -> Key:
        """The window that its stream takes after `key`."""
        if key.window + 1 < len(self._share(key.stream, key.epoch).window_ends):
            return key._replace(window=key.window + 1)
        return Key(key.stream, key.epoch + 1, 0)

    def _limits(self, stream: int) -> tuple[int, int]:
        """Which positions of an epoch's permuted blocks are this stream's; the same every epoch."""
        count = len(self.index)
        return count * stream // self._num_streams, count * (stream + 1) // self._num_streams

    def _deal(self, stream: int, epoch: int) -> _Share:
        """A stream's blocks in an epoch; the first and the last may be cut, shared with others."""
        rng = np.random.default_rng(derive_seed(self._seed, "blocks", epoch))
        blocks = rng.permutation(len(self._bounds) - 1)
        ends = np.cumsum(self._bounds[blocks + 1] - self._bounds[blocks])
        low, high = self._limits(stream)
        first = int(np.searchsorted(ends, low, side="right"))
        last = int(np.searchsorted(ends, high, side="left"))
        mine = blocks[first : last + 1]
        starts, stops = self._bounds[mine], self._bounds[mine + 1]
        starts[0] = stops[0] - (ends[first] - low)
        stops[-1] -= ends[last] - high
        counts = np.cumsum(stops - starts)
        last_blocks = np.arange(self._window_blocks - 1, len(mine), self._window_blocks)
        return _Share(starts, stops, np.unique(np.append(counts[last_blocks], counts[-1])))

    def _permute(self, key: Key) -> Order:
        """What a window holds and in which order."""
        share = self._share(key.stream, key.epoch)
        blocks = slice(key.window * self._window_blocks, (key.window + 1) * self._window_blocks)
        starts, stops = share.starts[blocks], share.stops[blocks]
        firsts = self.index.states(starts)
        ranges = np.stack(
            [
                np.maximum(firsts - self.index.frame_stack + 1, 0),
                self.index.states(stops - 1) + 2,
            ],
            axis=1,
        )
        lengths = ranges[:, 1] - ranges[:, 0]
        shifts = np.cumsum(lengths) - lengths - ranges[:, 0]
        counts = stops - starts
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        states = self.index.states(np.repeat(starts, counts) + steps)
        rng = np.random.default_rng(derive_seed(self._seed, "window", *key))
        mixed = rng.permutation(len(states))
        return Order(states[mixed], np.repeat(shifts, counts)[mixed], ranges)
