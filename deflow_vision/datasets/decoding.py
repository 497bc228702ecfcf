"""A block's rows from the zstd frame that holds them."""

from __future__ import annotations

import threading

import numpy as np
from numcodecs.zstd import Zstd

_KEPT_BYTES = 1 << 24  # of the largest block that a thread keeps memory for
_kept = threading.local()


def decode(encoded: bytes, shape: tuple[int, ...], dtype: np.dtype, *, reuse: bool) -> np.ndarray:
    """Decode a block.

    Args:
        encoded: a zstd frame.
        shape: of the block.
        dtype: its dtype.
        reuse: whether the rows may lie in memory of this thread, until it decodes the next block.
            Fresh memory, whose pages the system clears, costs more than the decoding.

    Returns:
        The rows, of that shape and dtype.

    Raises:
        RuntimeError: the frame does not decode, or fails its checksum.
        ValueError: it holds a block of another size.
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    # A frame of another size would be decoded into whatever memory it says, or leave the end of the
    # last one in the memory that is kept.
    if (content := _content_size(encoded)) != size:
        raise ValueError(f"it is no block of {size:,} bytes (it says {content:,})")
    if reuse and size <= _KEPT_BYTES:
        memory = _memory(size)
        Zstd().decode(encoded, out=memory)
        return memory.view(dtype).reshape(shape)
    return np.frombuffer(Zstd().decode(encoded), dtype).reshape(shape)


def _memory(size: int) -> np.ndarray:
    """The first `size` bytes of this thread's."""
    if getattr(_kept, "memory", np.empty(0, np.uint8)).nbytes < size:
        _kept.memory = np.empty(size, np.uint8)
    memory: np.ndarray = _kept.memory[:size]
    return memory


def _content_size(encoded: bytes) -> int:
    """The bytes that a zstd frame says it decodes to (RFC 8878, 3.1.1.1), 0 where it does not."""
    if len(encoded) < 5:
        return 0
    flags = encoded[4]
    single = flags >> 5 & 1  # segment: the window is not described
    start = 6 - single + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    return int.from_bytes(encoded[start : start + width], "little") + 256 * (width == 2)
