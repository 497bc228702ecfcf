"""How an HDF5 file holds an array: what h5py would follow or take memory for without asking."""

from __future__ import annotations

import math
from typing import Any

_MAX_CHUNK_BYTES = 128 << 20  # D4RL's take some megabytes at most


def refuse_storage(array: Any) -> None:
    """Refuse an array that lies in other files, or takes a machine's memory to decode.

    Args:
        array: an `h5py.Dataset`.

    Raises:
        ValueError: its storage is external or virtual, a chunk or a row of it is too large, or a
            chunk ends beyond the file, for which HDF5 would take memory before it finds out.
    """
    if array.external or array.is_virtual:
        raise ValueError("its values lie in another file")
    chunk = array.chunks or (1, *array.shape[1:])
    size = math.prod(chunk) * array.dtype.itemsize
    if size > _MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk of it takes {size:,} bytes, more than {_MAX_CHUNK_BYTES:,}")
    if array.chunks:
        file_bytes = array.file.id.get_filesize()

        def look(stored: Any) -> Any:
            return stored if stored.byte_offset + stored.size > file_bytes else None

        beyond = array.id.chunk_iter(look)  # the first that is
        if beyond is not None:
            raise ValueError(
                f"its chunk at {beyond.chunk_offset} ends {beyond.size:,} bytes after byte "
                f"{beyond.byte_offset:,}, beyond the file, which has {file_bytes:,}"
            )
