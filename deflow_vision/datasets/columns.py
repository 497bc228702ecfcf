"""The arrays of a split that grow together, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deflow_vision.datasets.schema import StoreError, block_file, create_array

ENDS = "episode_ends"


class Columns:
    """The arrays of one split, to which whole episodes are appended.

    Args:
        group: the split's `zarr.Group`, open for writing.
        directory: its folder.
        layout: array -> shape of a row and dtype; `episode_ends` among them.
        chunk: frames a chunk; by default 3 MiB of them.
        level: zstd's compression level.

    Attributes:
        episodes: how many were appended.
        states: of how many states.
        by_name: the arrays.
    """

    def __init__(
        self,
        group: Any,
        directory: Path,
        layout: Mapping[str, tuple[tuple[int, ...], str]],
        chunk: int | None,
        level: int,
    ) -> None:
        self.episodes, self.states = 0, 0
        self.by_name = {}
        for name, (shape, dtype) in layout.items():
            rows = chunk if name == "observations" else None
            array = create_array(group, name, shape, dtype, rows, level)
            self.by_name[name] = Column(array, directory / name)

    def append(self, values: Mapping[str, np.ndarray], length: int) -> None:
        """Append an episode of `length` states: so many rows of every array but the ends."""
        for name, rows in values.items():
            self.by_name[name].append(rows)
        self.by_name[ENDS].append(np.array([self.states + length]))
        self.episodes += 1
        self.states += length

    def counts(self) -> dict[str, int]:
        """How much was appended, in states, episodes and transitions."""
        return {
            "states": self.states,
            "episodes": self.episodes,
            "transitions": self.states - self.episodes,
        }

    def count(self, name: str) -> int:
        """Rows of an array, those that fill no chunk yet included."""
        return self.episodes if name == ENDS else self.states

    def flush(self) -> None:
        """Write all that is pending, as last and smaller chunks: nothing can be appended then."""
        for column in self.by_name.values():
            column.flush()

    def take_written(self) -> list[Path]:
        """The files of chunks that were written since this was called before."""
        return [file for column in self.by_name.values() for file in column.take_written()]


class Column:
    """Appends to one array in whole chunks: a chunk written in parts is encoded anew each time.

    Args:
        array: a `zarr.Array`; the rows that it has fill its chunks.
        directory: its folder.
    """

    def __init__(self, array: Any, directory: Path) -> None:
        self.array = array
        self._directory = directory
        self._pending: list[np.ndarray] = []
        self._count = 0
        self._taken = 0

    def append(self, rows: np.ndarray) -> None:
        """Append rows, (n, ...)."""
        self._pending.append(np.array(rows))  # a copy: the caller may reuse its buffer
        self._count += len(rows)
        chunk = self.array.chunks[0]
        if self._count >= chunk:
            block = np.concatenate(self._pending)
            whole = self._count - self._count % chunk
            self.array.append(block[:whole])
            self._pending, self._count = [block[whole:].copy()], self._count - whole

    def flush(self) -> None:
        """Write the rows that fill no chunk."""
        if self._count:
            self.array.append(self.pending())
            self._pending, self._count = [], 0

    def pending(self) -> np.ndarray:
        """A copy of the rows that fill no chunk yet."""
        empty = np.zeros((0, *self.array.shape[1:]), self.array.dtype)
        return np.concatenate([empty, *self._pending])

    def take_written(self) -> list[Path]:
        """The files of chunks that were written since this was called before."""
        first, self._taken = self._taken, -(-self.array.shape[0] // self.array.chunks[0])
        return [block_file(self.array, self._directory, i) for i in range(first, self._taken)]


def fit_rows(name: str, rows: np.ndarray, row_shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Rows of an array in its dtype.

    Args:
        name: the array's, for messages.
        rows: (n, *row_shape).
        row_shape: shape of one row in the store.
        dtype: the store's.

    Raises:
        StoreError: shape or dtype do not fit, or a value is not finite.
    """
    rows = np.asarray(rows)
    if rows.shape[1:] != row_shape:
        raise StoreError(f"{name}: rows of shape {rows.shape[1:]}, the store has {row_shape}.")
    if dtype == "uint8" and rows.dtype != np.uint8:
        raise StoreError(f"{name}: dtype {rows.dtype}, the store has uint8.")
    rows = rows.astype(dtype, copy=False)
    if dtype == "float32" and not np.isfinite(rows).all():
        raise StoreError(f"{name}: the episode has values that are not finite.")
    return rows
