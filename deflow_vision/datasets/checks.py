"""What can be wrong with a store: in its attributes, in how its arrays are stored, in values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from deflow_vision.datasets.schema import (
    ACTION_BOUND,
    BLOCK_DIGESTS,
    FORMAT,
    MAX_CHUNK_BYTES,
    SEAL,
    SIDE_DTYPES,
    SPLITS,
    VERSION,
    StoreError,
    array_digest,
    block_name,
    digest_of,
    num_blocks,
    read_block,
    read_file,
)
from deflow_vision.files import seal

_FACTS = ("source", "env_id", "seeds", "versions", "render_profile", "counts", "digests")
_KINDS = {
    "observations": ("uint8 4-D", "float32 2-D"),
    "actions": ("float32 2-D",),
    "episode_ends": ("int64 1-D",),
    **{name: (f"{dtype} 2-D",) for name, dtype in SIDE_DTYPES.items()},
    "rewards": ("float32 1-D",),
    "masks": ("float32 1-D",),
}
_COLUMNS = ("observations", "actions", "episode_ends")
_NAME = re.compile(
    rf"({'|'.join(SPLITS)})/({'|'.join([*_COLUMNS, *SIDE_DTYPES])}"
    r"|tasks/(?P<goal>(?!\.)[^/]+)/(rewards|masks))"
)


def damaged(path: Path | str, what: str) -> StoreError:
    """The error of a store that is not as it was written.

    Args:
        path: the store's folder or address.
        what: is wrong.
    """
    return StoreError(f"{path} is damaged: {what}. Collect, download or convert it again.")


def checked_attributes(path: Path | str, root: Any) -> dict[str, Any]:
    """What a store says of itself, if it is complete and all that is needed to open it.

    Args:
        path: the store's folder or address, for messages.
        root: its `zarr.Group`.

    Raises:
        StoreError: it is of another format or version, incomplete, or lacks or misstates something.
    """
    attributes = dict(root.attrs)
    if attributes.get("format") != FORMAT:
        raise StoreError(
            f"{path} is not a deflow-vision store: its format is {attributes.get('format')!r}. "
            "`python scripts/data.py convert` makes one of OGBench's, D4RL's and Minari's files."
        )
    if attributes.get("version") != VERSION:
        raise StoreError(
            f"{path} has schema version {attributes.get('version')!r}; this program reads version "
            f"{VERSION}. Collect, download or convert it again, or use the release that wrote it."
        )
    if attributes.get("complete") is not True:
        raise StoreError(
            f"{path} is incomplete: its writer did not finish. Delete it, then collect, download "
            "or convert it again."
        )
    if attributes != seal(attributes, SEAL):
        raise damaged(path, "its attributes are not those that were written (digest differs)")
    for name in _FACTS:
        if name not in attributes:
            raise damaged(path, f"its attributes have no {name}")
    _check_counts(path, attributes["counts"])
    _check_names(path, attributes["digests"], attributes["counts"])
    return attributes


def check_description(path: Path | str, name: str, array: Any, rows: int) -> None:
    """Check how an array is stored: its shape, dtype, chunks and codecs.

    Args:
        path: the store's folder or address, for messages.
        name: of the array in the store.
        array: what is there, a `zarr.Array` if all is well.
        rows: how many it should have.

    Raises:
        StoreError: it is stored otherwise than schema v1 has it.
    """
    kinds = _KINDS[name.rsplit("/", 1)[-1]]
    if not isinstance(array, zarr.Array):
        raise damaged(path, f"array {name} is no array")
    kind = f"{array.dtype} {array.ndim}-D"
    if kind not in kinds:
        raise damaged(path, f"array {name} is {kind}, not {' or '.join(kinds)}")
    if array.shape[0] != rows:
        raise damaged(path, f"array {name} has {array.shape[0]} rows, not {rows}")
    if 0 in array.shape:
        raise damaged(path, f"array {name} has the shape {array.shape}")
    codecs = array.metadata.codecs
    if [type(codec) for codec in codecs] != [BytesCodec, ZstdCodec] or (
        codecs[0].endian is not None and codecs[0].endian.value != "little"
    ):
        raise damaged(path, f"array {name} has other codecs than little-endian bytes and zstd")
    size = math.prod(array.chunks) * array.dtype.itemsize
    if array.chunks[1:] != array.shape[1:] or not 0 < size <= MAX_CHUNK_BYTES:
        raise damaged(path, f"array {name} of shape {array.shape} has chunks of {array.chunks}")


def check_array(array: Any, digest: str) -> list[str]:
    """Read an array whole and check its values and its digests.

    Args:
        array: a `zarr.Array` of a store.
        digest: what the store says that the array's is.

    Returns:
        What is wrong, a sentence each; empty if all is well.
    """
    problems: dict[int, str] = {}
    blocks = []
    for number in range(num_blocks(array)):
        try:
            encoded, rows = read_block(array, number)
        except StoreError as error:
            problems[number] = str(error)
            blocks.append(b"")
            continue
        blocks.append(digest_of(encoded))
        what = _wrong_values(array.path, rows)
        if what is not None:
            problems[number] = f"{block_name(array, number)}: {what}"
    try:
        description = digest_of(read_file(array, "zarr.json"))
        recorded = read_file(array, BLOCK_DIGESTS)
    except (OSError, StoreError) as error:
        return [*problems.values(), f"{array.path}: its digests cannot be checked: {error}"]
    written = [recorded[i : i + 32] for i in range(0, len(recorded), 32)]
    if array_digest(array, written, description) == digest:
        for number, (block, before) in enumerate(zip(blocks, written, strict=True)):
            if block != before:
                text = f"{block_name(array, number)}: it is not the block that was written there"
                problems.setdefault(number, text)
        return [problems[number] for number in sorted(problems)]
    if blocks == written:
        name = "zarr.json"
    elif array_digest(array, blocks, description) == digest:
        name = BLOCK_DIGESTS
    else:
        name = f"zarr.json or {BLOCK_DIGESTS}"
    return [*problems.values(), f"{array.path}: its {name} is not what was written"]


def _wrong_values(name: str, rows: np.ndarray) -> str | None:
    if not np.isfinite(rows).all():
        return "values that are not finite"
    if name.endswith("/masks") and not np.isin(rows, (0, 1)).all():
        return "masks other than 0 and 1"
    if name.endswith("/actions") and np.abs(rows).max() > ACTION_BOUND:
        return "actions beyond [-1, 1]"
    return None


def _check_counts(path: Path | str, counts: Any) -> None:
    if not isinstance(counts, Mapping):
        raise damaged(path, f"its counts are {counts!r}")
    if "train" not in counts:
        raise damaged(path, "its counts have no train")
    for split, count in counts.items():
        numbers = [
            isinstance(count, Mapping) and count.get(name) for name in ("states", "episodes")
        ]
        if split not in SPLITS or not all(type(number) is int and number > 0 for number in numbers):
            raise damaged(path, f"its counts of {split} are {count!r}")


def _check_names(path: Path | str, digests: Any, counts: Mapping[str, Any]) -> None:
    if not isinstance(digests, Mapping):
        raise damaged(path, f"its digests are {digests!r}")
    needed = {f"{split}/{name}" for split in counts for name in _COLUMNS}
    for name in digests:
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in counts:
            raise damaged(path, f"its list of digests names {name!r}, which is no array of it")
        if match["goal"] is not None:
            folder = name.rsplit("/", 1)[0]
            needed |= {f"{folder}/rewards", f"{folder}/masks"}
    for name in sorted(needed - digests.keys()):
        raise damaged(path, f"array {name} is missing")
