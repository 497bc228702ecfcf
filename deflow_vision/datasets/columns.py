"""The arrays of a split that grow together, row by row.

Their blocks are encoded and written here, to the bytes that zarr would write: what it adds to each
takes as long as the encoding, and its `append` writes the array's description anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from deflow_vision.datasets.schema import ACTION_BOUND, StoreError, block_file, create_array

ENDS = "episode_ends"


@dataclass(frozen=True)
class Block:
    """A block that is to be written.

    Attributes:
        file: where.
        rows: all of the block's rows.
        level: zstd's compression level.
    """

    file: Path
    rows: np.ndarray
    level: int

    def write(self) -> None:
        """Encode and write it. Threads may do so at once."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(Zstd(self.level, checksum=True).encode(self.rows))


class Columns:
    """The arrays of one split, to which whole episodes are appended.

    Args:
        group: the split's `zarr.Group`, open for writing.
        directory: its folder.
        layout: array -> shape of a row and dtype; `episode_ends` among them.
        chunk: frames a chunk; by default 768 KiB of them.
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
            self.by_name[name] = Column(array, directory / name, level)

    def append(self, values: Mapping[str, np.ndarray], length: int) -> list[Block]:
        """Append an episode of `length` states: so many rows of every array but the ends.

        Args:
            values: the rows by array, which are not changed afterwards.
            length: how many.

        Returns:
            The blocks that it completed, to be written.
        """
        ends = np.array([self.states + length])
        blocks = [
            block
            for name, column in self.by_name.items()
            for block in column.append(ends if name == ENDS else values[name])
        ]
        self.episodes += 1
        self.states += length
        return blocks

    def counts(self) -> dict[str, int]:
        """How much was appended, in states, episodes and transitions."""
        return {
            "states": self.states,
            "episodes": self.episodes,
            "transitions": self.states - self.episodes,
        }

    def count(self, name: str) -> int:
        """Rows of an array, those that fill no block yet included."""
        return self.episodes if name == ENDS else self.states

    def finish(self) -> list[Block]:
        """Give the arrays their length. Nothing can be appended then.

        Returns:
            The last blocks, filled up with zeros, to be written.
        """
        return [
            block
            for name, column in self.by_name.items()
            for block in column.finish(self.count(name))
        ]

    def take_files(self) -> list[Path]:
        """The files of blocks that were completed since this was called before."""
        return [file for column in self.by_name.values() for file in column.take_files()]


class Column:
    """Cuts the rows of one array into blocks.

    Args:
        array: an empty `zarr.Array`.
        directory: its folder.
        level: zstd's compression level.
    """

    def __init__(self, array: Any, directory: Path, level: int) -> None:
        self.array = array
        self._directory = directory
        self._level = level
        self._size = int(array.chunks[0])
        self._rest: list[np.ndarray] = []
        self._held = 0  # rows in it
        self._next = 0
        self._taken = 0

    def append(self, rows: np.ndarray) -> Iterator[Block]:
        """Append rows, (n, ...), and cut off the blocks that are complete."""
        while self._held + len(rows) >= self._size:
            first, rows = np.split(rows, [self._size - self._held])
            yield self._block(np.concatenate([*self._rest, first]) if self._rest else first)
            self._rest, self._held = [], 0
        if len(rows):
            self._rest.append(rows.copy())  # not a view, which would hold on to the whole episode
            self._held += len(rows)

    def go_on(self, name: str, count: int, rows: np.ndarray) -> int:
        """Begin where another writer was.

        Args:
            name: of the array, for messages.
            count: the rows that it appended.
            rows: those of them that fill no block.

        Returns:
            How many whole blocks there should be.

        Raises:
            StoreError: the rows do not fit.
        """
        rest = fit_rows(name, rows, self.array.shape[1:], self.array.dtype.name)
        blocks, held = divmod(count, self._size)
        if count < 0 or len(rest) != held:
            raise StoreError(f"{name}: {len(rest)} rows of {count} are in no whole block.")
        self._next = self._taken = blocks
        self._rest, self._held = [rest], held
        return blocks

    def finish(self, count: int) -> Iterator[Block]:
        """Fill up the last block, and give the array its length."""
        rest = self.rest()
        if len(rest):
            padding = np.zeros((self._size - len(rest), *rest.shape[1:]), rest.dtype)
            yield self._block(np.concatenate([rest, padding]))
        self.array.resize((count, *self.array.shape[1:]))

    def rest(self) -> np.ndarray:
        """The rows that fill no block yet."""
        empty = np.zeros((0, *self.array.shape[1:]), self.array.dtype)
        return np.concatenate([empty, *self._rest])

    def take_files(self) -> list[Path]:
        """The files of blocks that were completed since this was called before."""
        first, self._taken = self._taken, self._next
        return [block_file(self.array, self._directory, i) for i in range(first, self._next)]

    def _block(self, rows: np.ndarray) -> Block:
        self._next += 1
        file = block_file(self.array, self._directory, self._next - 1)
        return Block(file, np.ascontiguousarray(rows, self.array.dtype), self._level)


def fit_episode(
    values: Mapping[str, np.ndarray],
    layout: Mapping[str, tuple[tuple[int, ...], str]],
    length: int,
) -> dict[str, np.ndarray]:
    """A copy of an episode's rows, in the arrays' dtypes.

    Args:
        values: rows by array; actions lie in [-1, 1].
        layout: array -> shape of a row and dtype; `episode_ends`, which are not given, among them.
        length: how many rows there should be of each.

    Raises:
        StoreError: arrays, a shape, a dtype, a length or a value do not fit.
    """
    needed = layout.keys() - {ENDS}
    if values.keys() != needed or length == 0:
        raise StoreError(
            f"an episode of {length} states with {', '.join(sorted(values))}; this store needs "
            f"{', '.join(sorted(needed))}, and at least one state."
        )
    fitted = {name: fit_rows(name, rows, *layout[name]) for name, rows in values.items()}
    for name, rows in fitted.items():
        if len(rows) != length:
            raise StoreError(f"{name} has {len(rows)} rows in an episode of {length} states.")
    furthest = float(np.abs(fitted["actions"]).max(initial=0))
    if furthest > ACTION_BOUND:
        raise StoreError(
            f"actions up to {furthest:.7g} in size: a store holds them scaled to [-1, 1], "
            "2 * (action - low) / (high - low) - 1 with the bounds of the action space."
        )
    return fitted


def fit_rows(name: str, values: Any, row_shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A copy of rows in the dtype of a store's array, which holds the same numbers.

    Args:
        name: the array's, for messages.
        values: the rows, (n, *row_shape): numbers; whole ones for int64, uint8 for uint8.
        row_shape: shape of a row of the array.
        dtype: its dtype, "float32", "int64" or "uint8".

    Raises:
        StoreError: the shape, the dtype or a value does not fit.
    """
    rows = np.asarray(values)
    if rows.dtype.kind not in "buif":
        raise StoreError(f"{name}: dtype {rows.dtype}; a store holds numbers, float32 or int64.")
    if not rows.ndim:
        raise StoreError(f"{name}: a single number; give a row for each state.")
    if rows.shape[1:] != row_shape:
        raise StoreError(f"{name}: rows of shape {rows.shape[1:]}, the store has {row_shape}.")
    if dtype == "uint8" and rows.dtype != np.uint8:
        raise StoreError(f"{name}: dtype {rows.dtype}, the store has uint8.")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is seen below
        fitted = rows.astype(dtype)
    if dtype == "float32" and not np.isfinite(fitted).all():
        raise StoreError(f"{name}: values that are not finite.")
    if dtype == "int64" and not (fitted == rows).all():
        raise StoreError(f"{name}: values that are not whole numbers.")
    return fitted
