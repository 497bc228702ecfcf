"""Images in memory plane by plane, so that frames stack along their channels without a copy.

They keep their shape (..., H, W, C); their memory is that of (..., C, H, W).
"""

from __future__ import annotations

import weakref

import numpy as np

_HELD = 6  # batches of one size that are under way at once, at most


class Spare:
    """Memory for batches, given out again once no array or tensor refers to it any more.

    The system clears the pages of fresh memory, which costs as much as filling them. For one thread
    at a time.
    """

    def __init__(self) -> None:
        self._held: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []

    def take(self, size: int) -> np.ndarray:
        """So many bytes, (size,) uint8."""
        free = (memory for memory, user in self._held if memory.nbytes == size and user() is None)
        memory = next(free, None)
        if memory is None:
            memory = np.empty(size, np.uint8)
        # NumPy makes a view refer to the last array of its bases: this one, not `memory`.
        user = np.frombuffer(memory.data, np.uint8)
        others = [pair for pair in self._held if pair[0] is not memory]
        self._held = [*others[1 - _HELD :], (memory, weakref.ref(user))]
        return user


def empty_rows(shape: tuple[int, ...], dtype: np.dtype, spare: Spare | None = None) -> np.ndarray:
    """Memory for rows: of images (N, H, W, C) or (B, T, H, W, C) by planes, else as usual."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = (np.empty(size, np.uint8) if spare is None else spare.take(size)).view(dtype)
    if len(shape) < 4:
        return memory.reshape(shape)
    *rows, height, width, channels = shape
    return np.moveaxis(memory.reshape(*rows, channels, height, width), -3, -1)


def planes_of(rows: np.ndarray) -> np.ndarray:
    """The same rows, images as (..., C, H, W), contiguous: a view where they lie by planes."""
    return np.ascontiguousarray(np.moveaxis(rows, -1, -3) if rows.ndim >= 4 else rows)
