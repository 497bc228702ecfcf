"""What is on disk in a store: names, dtypes, chunks and digests of schema v1."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.sync import sync
from zarr.storage import LocalStore

from deflow_vision.datasets.decoding import decode
from deflow_vision.files import seal
from deflow_vision.types import UserError

_T = TypeVar("_T")

FORMAT = "deflow-vision-store"
VERSION = 1
SPLITS = ("train", "val")
SIDE_DTYPES = {"qpos": "float32", "qvel": "float32", "button_states": "int64"}
BLOCK_DIGESTS = "block_digests"
SEAL = "attributes_digest"

ZSTD_LEVEL = 1  # frames come out as small as at 3, in 60% of the time
_CHUNK_BYTES = 3 << 18  # 64 frames of 64 x 64 x 3
_MAX_CHUNK_ROWS = 4096
ACTION_BOUND = 1 + 1e-6  # float32's rounding of an action that was scaled to [-1, 1]
MAX_CHUNK_BYTES = 1 << 30  # that a reader takes
_MAX_FILE_BYTES = MAX_CHUNK_BYTES + (MAX_CHUNK_BYTES >> 7)  # what zstd makes of noise, at most
_MAX_DESCRIPTION_BYTES = 1 << 26  # of a zarr.json
UNREADABLE: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, AttributeError)
UNREADABLE += (OSError, RecursionError, ArithmeticError)
"""What zarr raises on descriptions that are none."""
_THREADS = 4  # that fetch and decode blocks at once; both leave Python's lock to others


class StoreError(UserError):
    """A store is missing, incomplete, altered, or of another kind than was asked for."""


def create_array(
    group: Any,
    name: str,
    row_shape: Sequence[int],
    dtype: str,
    chunk: int | None = None,
    level: int = ZSTD_LEVEL,
) -> Any:
    """An empty, appendable array in `group`.

    Args:
        group: a `zarr.Group` open for writing.
        name: the array's name in the group.
        row_shape: shape of one row.
        dtype: NumPy's name of the dtype.
        chunk: rows a chunk; by default as many as make 768 KiB, at most 4,096.
        level: zstd's compression level, 1 to 22. Reading takes the same time at any level.

    Returns:
        A `zarr.Array` of shape (0, *row_shape), every chunk with zstd's own checksum.

    Raises:
        StoreError: a chunk would be greater than 1 GiB.
    """
    row_bytes = int(np.prod(row_shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    rows = chunk or max(1, min(_MAX_CHUNK_ROWS, _CHUNK_BYTES // max(1, row_bytes)))
    if rows * row_bytes > MAX_CHUNK_BYTES:
        raise StoreError(
            f"{name}: chunks of {(rows, *row_shape)} are more than 1 GiB. Give fewer rows a chunk."
        )
    # Without the checksum a flipped byte would be read silently; without `write_empty_chunks` a
    # deleted file could not be told from a block of zeros.
    return group.create_array(
        name,
        shape=(0, *row_shape),
        chunks=(rows, *row_shape),
        dtype=dtype,
        compressors=ZstdCodec(level=level, checksum=True),
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def digest_of(content: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(content).digest()


def array_digest(array: Any, blocks: Sequence[bytes], description: bytes) -> str:
    """SHA-256 over the names and the SHA-256 of all files of an array, in hexadecimal.

    Args:
        array: a `zarr.Array` of a store.
        blocks: `digest_of` each block.
        description: `digest_of` its `zarr.json`.
    """
    files = {block_file(array, Path(), i).as_posix(): block for i, block in enumerate(blocks)}
    files["zarr.json"] = description
    lines = "".join(f"{name} {files[name].hex()}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_digests(group: Any) -> dict[str, str]:
    """Write `block_digests`, 32 bytes a block, beside the blocks of each array below a group.

    Args:
        group: a `zarr.Group` of a store on a disk.

    Returns:
        `array_digest` of each array by its name in the store. It covers `block_digests`, too.
    """
    digests = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for _, array in sorted(group.members(max_depth=None)):
            if isinstance(array, zarr.Array):
                folder = Path(array.store.root, array.path)
                files = [block_file(array, folder, number) for number in range(num_blocks(array))]
                blocks = list(pool.map(_file_digest, files))
                (folder / BLOCK_DIGESTS).write_bytes(b"".join(blocks))
                description = _file_digest(folder / "zarr.json")
                digests[str(array.path)] = array_digest(array, blocks, description)
    return digests


def _file_digest(file: Path) -> bytes:
    return digest_of(file.read_bytes())


def complete(root: Any, attributes: Mapping[str, Any]) -> None:
    """Give a store whose arrays are written their digests, and its attributes.

    Args:
        root: its `zarr.Group`, on a disk.
        attributes: all but `digests` and `complete`.
    """
    digests = write_digests(root)
    root.attrs.put(seal({**attributes, "digests": digests, "complete": True}, SEAL))


def num_blocks(array: Any) -> int:
    """How many blocks the rows of `array` fill, the last one perhaps in part."""
    return -(-int(array.shape[0]) // int(array.chunks[0]))


def block_file(array: Any, directory: Path, number: int) -> Path:
    """Where block `number` of `array` is, below the array's folder."""
    return directory.joinpath("c", str(number), *("0" for _ in array.shape[1:]))


def missing_block(array: Any, directory: Path) -> Path | None:
    """The first file of `array` that is absent or empty, or None. zarr would read it as zeros."""
    for number in range(num_blocks(array)):
        file = block_file(array, directory, number)
        if not file.is_file() or file.stat().st_size == 0:
            return file
    return None


def read_rows(array: Any, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
    """Rows [start, stop) of an array of a store, block after block. Threads may call it at once.

    Args:
        array: a `zarr.Array` of a store.
        start: first row.
        stop: one past the last row.
        out: where they go, (stop - start, ...); by default new memory.

    Returns:
        The rows in memory, (stop - start, ...).

    Raises:
        StoreError: a block does not decode or fails its checksum; names the array and the block.
    """
    rows = np.empty((stop - start, *array.shape[1:]), array.dtype) if out is None else out
    size = array.chunks[0]
    for block in range(start // size, -(-stop // size)):
        first = block * size
        low, high = max(start, first), min(stop, first + size)
        decoded = read_block(array, block, reuse=True)[1]
        rows[low - start : high - start] = decoded[low - first : high - first]
    return rows


def read_block(array: Any, number: int, *, reuse: bool = False) -> tuple[bytes, np.ndarray]:
    """A block of an array as it is stored, and its rows; raises like `read_rows`.

    With `reuse` the rows last until this thread reads another block.
    """
    try:
        encoded, rows = _sound(array, number, reuse)
    except StoreError:
        raise
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        root = array.store.root
        raise StoreError(
            f"{root}: array {block_name(array, number)} cannot be read: {error}. Run `python "
            f"scripts/data.py verify {root}`, then collect, download or convert it again."
        ) from error
    return encoded, rows[: array.shape[0] - number * array.chunks[0]]


def block_name(array: Any, number: int) -> str:
    """What messages call a block: its array's name, its number and its rows."""
    first = number * array.chunks[0]
    last = min(first + array.chunks[0], array.shape[0]) - 1
    return f"{array.path}, block {number} (rows {first} to {last})"


def read_all(array: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The whole array in memory, in `out` where that is given; raises like `read_rows`."""
    rows = np.empty(array.shape, array.dtype) if out is None else out

    def fill(start: int, stop: int) -> None:
        read_rows(array, start, stop, rows[start:stop])

    map_blocks(fill, array)
    return rows


def map_blocks(function: Callable[[int, int], _T], array: Any) -> list[_T]:
    """Call `function` on the first row of each block of `array` and the one past its last.

    Args:
        function: called in several threads at once, as many as should read blocks.
        array: a `zarr.Array` of a store.

    Returns:
        Its results, in the blocks' order.
    """
    count, size = int(array.shape[0]), int(array.chunks[0])
    starts = range(0, count, size)
    with ThreadPoolExecutor(reads_at_once(array)) as pool:
        return list(pool.map(function, starts, (min(start + size, count) for start in starts)))


def reads_at_once(array: Any) -> int:
    """How many threads should read blocks of `array`: more where each waits for an address."""
    return int(getattr(array.store, "reads_at_once", _THREADS))


def _sound(array: Any, number: int, reuse: bool) -> tuple[bytes, np.ndarray]:
    """A block; one that was damaged in the cache of an address is read from there again."""
    try:
        return _block(array, number, reuse)
    except StoreError:
        raise
    except (RuntimeError, ValueError, OSError):
        forget = getattr(array.store, "forget", None)
        if forget is None or not forget(block_file(array, Path(array.path), number).as_posix()):
            raise
        return _block(array, number, reuse)


def _block(array: Any, number: int, reuse: bool) -> tuple[bytes, np.ndarray]:
    """What zarr's own reading adds to fetching and decoding takes as long as the decoding."""
    encoded = read_file(array, block_file(array, Path(), number).as_posix())
    return encoded, decode(encoded, array.chunks, array.dtype, reuse=reuse)


def read_file(array: Any, name: str) -> bytes:
    """A file of an array of a store, by its name in the array's folder.

    Raises:
        OSError: it cannot be read.
        StoreError: the same at an address.
    """
    if isinstance(array.store, LocalStore):
        file = Path(array.store.root, array.path, name)
        if not file.is_file() or file.stat().st_size > _MAX_FILE_BYTES:
            raise FileNotFoundError(f"{file} is no file, or of more than {_MAX_FILE_BYTES:,} bytes")
        return file.read_bytes()
    value = sync((array.store_path / name).get())
    if value is None:
        raise FileNotFoundError("it is missing")
    return bytes(value.to_bytes())


def open_root(path: Path, mode: str) -> Any:
    """The store's root group; a wrong kind of folder is a `StoreError`."""
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path} is not a deflow-vision store: it has no zarr.json.")
    try:
        refuse_odd_description(path)
        return zarr.open_group(path, mode=mode, zarr_format=3, use_consolidated=False)
    except UNREADABLE as error:
        raise StoreError(f"{path} is not a deflow-vision store: {error}") from error


def refuse_odd_description(folder: Path) -> None:
    """Raise a `ValueError` if a `zarr.json` is no file, or of a size that no description has."""
    file = folder / "zarr.json"
    if file.exists() and not (file.is_file() and file.stat().st_size <= _MAX_DESCRIPTION_BYTES):
        raise ValueError(f"{file} is no file, or of more than {_MAX_DESCRIPTION_BYTES:,} bytes")
