"""Single rows of an array of a store."""

from __future__ import annotations

from typing import Any

import numpy as np

from deflow_vision.datasets.schema import read_rows


def pick_rows(array: Any, numbers: np.ndarray) -> np.ndarray:
    """Some rows of an array, in order; each chunk is decoded once.

    Args:
        array: a `zarr.Array` of a store.
        numbers: of the rows, (n,), at least one, not falling.

    Returns:
        (n, ...) in new memory. Beside it, one chunk at a time is in memory.

    Raises:
        StoreError: a damaged block.
    """
    blocks = numbers // array.chunks[0]
    runs = np.split(numbers, np.flatnonzero(np.diff(blocks)) + 1)
    rows = np.empty((len(numbers), *array.shape[1:]), array.dtype)
    done = 0
    for run in runs:
        read = read_rows(array, int(run[0]), int(run[-1]) + 1)
        rows[done : done + len(run)] = read[run - run[0]]
        done += len(run)
    return rows
