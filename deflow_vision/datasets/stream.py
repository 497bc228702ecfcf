"""Batches in bounded memory: blocks of transitions, a window of many of them, a thread that reads.

An epoch of a stream is its share of a permutation of all blocks. Consecutive blocks make a window,
which is held in memory, permuted as a whole and emitted in batches. A cumulative count over blocks
finds batch k, so that it costs the same in any order and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from deflow_vision.datasets.residency import MemoryPlan
from deflow_vision.datasets.schema import read_rows
from deflow_vision.datasets.store import Split
from deflow_vision.datasets.transitions import Columns, Transitions
from deflow_vision.seeding import derive_seed
from deflow_vision.types import FrameBatch


class _Key(NamedTuple):
    """Names one window of the run."""

    stream: int
    epoch: int
    window: int


@dataclass(frozen=True)
class _Share:
    """A stream's part of an epoch: runs of transitions [starts, stops), and where windows end."""

    starts: np.ndarray
    stops: np.ndarray
    window_ends: np.ndarray


class _Order(NamedTuple):
    """The states of a window's transitions, permuted, and the stored rows that serve them."""

    states: np.ndarray
    shifts: np.ndarray  # from a stored row to its place in the window's buffer
    ranges: np.ndarray


class StreamSampler:
    """Each transition exactly once an epoch, from a store of any size.

    Args:
        split: the split, read window by window.
        columns: what a batch takes besides frames.
        index: the split's transitions.
        plan: block length and window size.
        rows: transitions a stream and step.
        seed: the run's seed.
        num_streams: streams of the run. Each epoch is dealt to them anew, without overlap.
        streams: the streams of this process.
    """

    def __init__(
        self,
        split: Split,
        columns: Columns,
        index: Transitions,
        plan: MemoryPlan,
        rows: int,
        *,
        seed: int,
        num_streams: int,
        streams: Sequence[int],
    ) -> None:
        self.transitions_per_epoch = len(index)
        self._observations = split.observations
        self._columns, self._index, self._plan = columns, index, plan
        self._rows, self._seed = rows, seed
        self._streams, self._num_streams = tuple(streams), num_streams
        self._window_blocks = max(1, plan.window_blocks // num_streams)
        # A transition reads one frame past its state, so that cuts one state before a chunk's end
        # spare each block the chunk after it; the halo before it costs one chunk more.
        cuts = np.arange(plan.block_length - 1, split.num_states, plan.block_length)
        self._bounds = np.unique(np.concatenate([[0], index.before(cuts), [len(index)]]))
        self._share = lru_cache(maxsize=2 * len(self._streams))(self._deal)
        self._windows: dict[_Key, Future[tuple[_Order, np.ndarray]]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="window")

    def batch(self, step: int) -> FrameBatch:
        """This process's part of the batch of `step`; may span windows and epochs."""
        total = self._rows * len(self._streams)
        states = np.empty(total, np.int64)
        frames = np.empty(
            (total, self._index.frame_stack + 1, *self._plan.frame_shape), self._observations.dtype
        )
        filled = 0
        for key, part in self._parts(step):
            order, buffer = self._window(key)
            stop = filled + part.stop - part.start
            states[filled:stop] = order.states[part]
            places = self._index.frames(order.states[part]) + order.shifts[part, None]
            # `clip` lets NumPy write straight into `out`; the places are valid by construction.
            np.take(buffer, places, axis=0, out=frames[filled:stop], mode="clip")
            filled = stop
        return self._columns.batch(frames, states)

    def describe(self) -> str:
        """The memory plan, and how well the first batches mix, measured on their indices."""
        return f"{self._plan.describe()}\nmixing        {self._mixing()}"

    def close(self) -> None:
        """Stop the thread and drop the windows."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._windows.clear()

    def _parts(self, step: int) -> Iterator[tuple[_Key, slice]]:
        """The pieces of windows that make the batch of `step`, stream by stream."""
        for stream in self._streams:
            low, high = self._limits(stream)
            position, left = step * self._rows, self._rows
            while left:
                epoch, offset = divmod(position, high - low)
                ends = self._share(stream, epoch).window_ends
                window = int(np.searchsorted(ends, offset, side="right"))
                start = int(ends[window - 1]) if window else 0
                take = min(left, int(ends[window]) - offset)
                yield _Key(stream, epoch, window), slice(offset - start, offset - start + take)
                position, left = position + take, left - take

    def _limits(self, stream: int) -> tuple[int, int]:
        """Which positions of an epoch's permuted blocks are this stream's; the same every epoch."""
        count = self.transitions_per_epoch
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

    def _order(self, key: _Key) -> _Order:
        """What a window holds and in which order; reads nothing."""
        share = self._share(key.stream, key.epoch)
        blocks = slice(key.window * self._window_blocks, (key.window + 1) * self._window_blocks)
        starts, stops = share.starts[blocks], share.stops[blocks]
        firsts = self._index.states(starts)
        ranges = np.stack(
            [
                np.maximum(firsts - self._index.frame_stack + 1, 0),
                self._index.states(stops - 1) + 2,
            ],
            axis=1,
        )
        lengths = ranges[:, 1] - ranges[:, 0]
        shifts = np.cumsum(lengths) - lengths - ranges[:, 0]
        counts = stops - starts
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        states = self._index.states(np.repeat(starts, counts) + steps)
        rng = np.random.default_rng(derive_seed(self._seed, "window", *key))
        mixed = rng.permutation(len(states))
        return _Order(states[mixed], np.repeat(shifts, counts)[mixed], ranges)

    def _read(self, key: _Key) -> tuple[_Order, np.ndarray]:
        order = self._order(key)
        size = int((order.ranges[:, 1] - order.ranges[:, 0]).sum())
        buffer = np.empty((size, *self._plan.frame_shape), self._observations.dtype)
        filled = 0
        for start, stop in order.ranges:
            rows = read_rows(self._observations, int(start), int(stop))
            buffer[filled : filled + len(rows)] = rows
            filled += len(rows)
        return order, buffer

    def _window(self, key: _Key) -> tuple[_Order, np.ndarray]:
        """The window `key`; the thread begins with the one after it, others are dropped."""
        last = len(self._share(key.stream, key.epoch).window_ends) - 1
        following = (
            key._replace(window=key.window + 1)
            if key.window < last
            else _Key(key.stream, key.epoch + 1, 0)
        )
        for old in [old for old in self._windows if old.stream == key.stream]:
            if old not in (key, following):
                self._windows.pop(old).cancel()
        for wanted in (key, following):
            if wanted not in self._windows:
                self._windows[wanted] = self._pool.submit(self._read, wanted)
        return self._windows[key].result()

    def _mixing(self, num_batches: int = 4) -> str:
        orders = lru_cache(maxsize=2)(self._order)
        found, uniform = [], []
        for step in range(num_batches):
            states = np.concatenate([orders(key).states[part] for key, part in self._parts(step)])
            found.append(len(np.unique(self._index.episodes(states))))
            drawn = np.random.default_rng(step).integers(
                self.transitions_per_epoch, size=len(states)
            )
            uniform.append(len(np.unique(self._index.episodes(self._index.states(drawn)))))
        return (
            f"a batch of {len(states)} holds {np.mean(found):.0f} episodes of "
            f"{len(self._index.episode_ends):,} (drawn uniformly: {np.mean(uniform):.0f})"
        )
