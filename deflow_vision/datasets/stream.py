"""Batches in bounded memory: windows of many blocks, the next one read while one is emitted."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from deflow_vision.datasets.draws import Epochs, Key, Order
from deflow_vision.datasets.residency import MemoryPlan
from deflow_vision.datasets.schema import read_rows, reads_at_once
from deflow_vision.datasets.store import Split
from deflow_vision.datasets.transitions import Columns
from deflow_vision.types import FrameBatch


class _Window(NamedTuple):
    """A window in memory: its order, and the rows that serve it."""

    order: Order
    rows: np.ndarray


class StreamSampler:
    """Each transition exactly once an epoch, from a store of any size.

    Args:
        split: the split, read window by window.
        columns: what a batch takes besides frames.
        epochs: which transitions make a batch.
        plan: how much is held in memory.
    """

    def __init__(self, split: Split, columns: Columns, epochs: Epochs, plan: MemoryPlan) -> None:
        self.transitions_per_epoch = len(epochs.index)
        self._observations = split.observations
        self._columns, self._epochs, self._plan = columns, epochs, plan
        self._windows: dict[Key, Future[_Window]] = {}
        self._spare: list[np.ndarray] = []
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="window")
        self._readers = ThreadPoolExecutor(
            reads_at_once(split.observations), thread_name_prefix="block"
        )

    def batch(self, step: int) -> FrameBatch:
        """This process's part of the batch of `step`; may span windows and epochs."""
        index = self._epochs.index
        parts = list(self._epochs.parts(step))
        total = sum(part.stop - part.start for _, part in parts)
        states = np.empty(total, np.int64)
        frames = np.empty(
            (total, index.frame_stack + 1, *self._plan.frame_shape), self._observations.dtype
        )
        filled = 0
        for key, part in parts:
            order, rows = self._window(key)
            stop = filled + part.stop - part.start
            states[filled:stop] = order.states[part]
            places = index.frames(order.states[part]) + order.shifts[part, None]
            # `clip` lets NumPy write straight into `out`; the places are valid by construction.
            np.take(rows, places, axis=0, out=frames[filled:stop], mode="clip")
            filled = stop
        return self._columns.batch(frames, states)

    def close(self) -> None:
        """Stop the threads and drop the windows."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._windows.clear()
        self._spare.clear()

    def _window(self, key: Key) -> _Window:
        """The window `key`; a thread begins with the one after it, others are dropped."""
        following = self._epochs.following(key)
        for old in [old for old in self._windows if old.stream == key.stream]:
            if old not in (key, following):
                self._drop(self._windows.pop(old))
        for wanted in (key, following):
            if wanted not in self._windows:
                self._windows[wanted] = self._ahead.submit(self._read, wanted)
        return self._windows[key].result()

    def _drop(self, window: Future[_Window]) -> None:
        """Let the next window have this one's memory: fresh pages take as long as decoding."""
        if not window.cancel() and window.done() and window.exception() is None:
            self._spare.append(window.result().rows)

    def _read(self, key: Key) -> _Window:
        order = self._epochs.order(key)
        rows = self._spare.pop() if self._spare else self._new_rows()
        ends = np.cumsum(order.ranges[:, 1] - order.ranges[:, 0])

        def fill(start: int, stop: int, end: int) -> None:
            read_rows(self._observations, start, stop, rows[end - stop + start : end])

        list(self._readers.map(fill, *order.ranges.T.tolist(), ends.tolist()))
        return _Window(order, rows)

    def _new_rows(self) -> np.ndarray:
        shape = (self._plan.window_rows, *self._plan.frame_shape)
        return np.empty(shape, self._observations.dtype)
