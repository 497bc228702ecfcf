"""Arrays of .npz files, in bounded memory."""

from __future__ import annotations

import contextlib
import math
import zipfile
from typing import IO

import numpy as np

PIECE_BYTES = 1 << 18  # stays in a core's cache


class Member:
    """One array of an .npz file, read from the start of its stream in runs of rows.

    What its header says is held against the size of what there is, before memory is taken for it.

    Args:
        stack: closes its stream.
        archive: the open file.
        name: of the array.

    Attributes:
        shape: of the array.
        dtype: likewise.
        row_bytes: bytes of a row.

    Raises:
        ValueError: it is no plain array of rows, or of another size than it says.
    """

    def __init__(self, stack: contextlib.ExitStack, archive: zipfile.ZipFile, name: str) -> None:
        info = archive.getinfo(f"{name}.npy")
        self._stream: IO[bytes] = stack.enter_context(archive.open(info))
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(self._stream)]
        self.shape, fortran, self.dtype = read_header(self._stream)
        if fortran or self.dtype.hasobject or not self.shape:
            raise ValueError(f"{name} is not a plain array of rows")
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        size = self._stream.tell() + self.shape[0] * self.row_bytes
        if min(self.shape) < 0 or size != info.file_size:
            raise ValueError(
                f"{name} of shape {self.shape} would take {size:,} bytes, and there are "
                f"{info.file_size:,}"
            )

    def skip(self, count: int) -> None:
        """Pass over rows. Not by seeking: the CRC at the file's end is of every byte."""
        left = count * self.row_bytes
        while left:
            passed = len(self._stream.read(min(left, PIECE_BYTES)))
            if not passed:
                raise EOFError("it ends early")
            left -= passed

    def read(self, count: int) -> np.ndarray:
        """The next `count` rows; at the end of the file zipfile checks its CRC."""
        rows = np.empty((count, *self.shape[1:]), self.dtype)
        left = rows.reshape(-1).view(np.uint8)
        while len(left):
            piece = self._stream.read(min(len(left), PIECE_BYTES))
            if not piece:
                raise EOFError("it ends early")
            left[: len(piece)] = np.frombuffer(piece, np.uint8)
            left = left[len(piece) :]
        return rows
