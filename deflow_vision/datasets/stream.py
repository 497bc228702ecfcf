"""Batches in bounded memory: windows of many blocks, the next one read while one is emitted."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from deflow_vision.datasets.draws import Epochs, Key, Order
from deflow_vision.datasets.planes import Spare, empty_rows, planes_of
from deflow_vision.datasets.residency import MemoryPlan
from deflow_vision.datasets.schema import read_rows, reads_at_once
from deflow_vision.datasets.store import Split
from deflow_vision.datasets.threads import in_threads
from deflow_vision.datasets.transitions import Fields, Rows
from deflow_vision.types import FrameBatch

_GATHERED = 64  # transitions that a thread gathers at once


class _Window(NamedTuple):
    """A window in memory: its order, and the rows that serve it, frames first."""

    order: Order
    memory: list[np.ndarray]


class StreamSampler:
    """Each transition exactly once an epoch, from a store of any size.

    Args:
        split: the split, read window by window.
        fields: what a batch takes besides frames, read likewise.
        epochs: which transitions make a batch.
        plan: how much is held in memory.
    """

    def __init__(self, split: Split, fields: Fields, epochs: Epochs, plan: MemoryPlan) -> None:
        self.transitions_per_epoch = len(epochs.index)
        self._arrays = [split.observations, *fields.arrays]
        self._fields, self._epochs, self._plan = fields, epochs, plan
        self._windows: dict[Key, Future[_Window]] = {}
        self._spare: list[list[np.ndarray]] = []
        self._batches = Spare()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="window")
        self._readers = ThreadPoolExecutor(
            reads_at_once(split.observations), thread_name_prefix="block"
        )

    def batch(self, step: int) -> FrameBatch:
        """This process's part of the batch of `step`; may span windows and epochs."""
        parts = [self._part(*self._window(key), part) for key, part in self._epochs.parts(step)]
        if len(parts) == 1:
            return parts[0]
        columns = dict(zip(FrameBatch._fields, zip(*parts, strict=True), strict=True))
        return FrameBatch(
            **{name: np.concatenate(c) for name, c in columns.items() if c[0] is not None}
        )

    def transitions(self, step: int) -> Int64[np.ndarray, " B"]:
        """The numbers of that batch's transitions."""
        return self._epochs.index.before(self._epochs.states(step))

    def close(self) -> None:
        """Stop the threads and drop the windows."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._windows.clear()
        self._spare.clear()

    def _part(self, order: Order, memory: list[np.ndarray], part: slice) -> FrameBatch:
        """The transitions `part` of a window."""
        stored, *rows = memory
        states, shifts = order.states[part], order.shifts[part]
        places = self._epochs.index.frames(states) + shifts[:, None]
        frames = gather(stored, places, self._batches)
        return self._fields.batch(frames, states, Rows(*rows), states + shifts)

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
            self._spare.append(window.result().memory)

    def _read(self, key: Key) -> _Window:
        order = self._epochs.order(key)
        memory = self._spare.pop() if self._spare else self._new_memory()
        ends = np.cumsum(order.ranges[:, 1] - order.ranges[:, 0])

        def fill(start: int, stop: int, end: int) -> None:
            for array, rows in zip(self._arrays, memory, strict=True):
                read_rows(array, start, stop, rows[end - stop + start : end])

        list(self._readers.map(fill, *order.ranges.T.tolist(), ends.tolist()))
        return _Window(order, memory)

    def _new_memory(self) -> list[np.ndarray]:
        count = self._plan.window_rows
        return [empty_rows((count, *array.shape[1:]), array.dtype) for array in self._arrays]


def gather(stored: np.ndarray, places: Int64[np.ndarray, "B T"], spare: Spare) -> np.ndarray:
    """The rows (B, T, ...) of `stored` at `places`, which must be valid, in threads.

    Images are taken by planes, from memory that should be by planes.
    """
    rows = empty_rows((*places.shape, *stored.shape[1:]), stored.dtype, spare)
    source, target = planes_of(stored), planes_of(rows)

    def fill(start: int) -> None:
        part = slice(start, start + _GATHERED)
        # `clip` lets NumPy write straight into `out`.
        np.take(source, places[part], axis=0, out=target[part], mode="clip")

    in_threads(fill, range(0, len(places), _GATHERED))
    return rows
