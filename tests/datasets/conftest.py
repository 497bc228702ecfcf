"""Small stores whose every value tells which state it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deflow_vision.datasets.store import StoreWriter

ACTION_DIM = 2


def frames_of(start: int, count: int, *, pixels: bool) -> np.ndarray:
    """Observations of the states start, start + 1, ...: pixels (n, 4, 6, 3), or state (n, 5)."""
    number = np.arange(start, start + count)
    if not pixels:
        return (number[:, None] + np.arange(5) / 10).astype(np.float32)
    offsets = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    return ((number[:, None, None, None] * 7 + offsets) % 251).astype(np.uint8)


def write_store(
    path: Path,
    lengths: Sequence[int] = (6, 2, 9),
    *,
    pixels: bool = True,
    val_lengths: Sequence[int] = (4,),
    chunk: int = 4,
    **facts: Any,
) -> Path:
    """A store with episodes of so many states; reward -(number % 3), mask number % 5 != 0."""
    shape = (4, 6, 3) if pixels else (5,)
    with StoreWriter(
        path,
        **{"source": "test", "env_id": "visual-test-v0", "seeds": {"train": 0}} | facts,
        observation_shape=shape,
        observation_dtype="uint8" if pixels else "float32",
        action_dim=ACTION_DIM,
        side={"qpos": (3,)},
        goals=["task1"],
        chunk=chunk,
    ) as writer:
        for split, split_lengths in (("train", lengths), ("val", val_lengths)):
            start = 0
            for length in split_lengths:
                number = np.arange(start, start + length)
                writer.append_episode(
                    split,
                    frames_of(start, length, pixels=pixels),
                    np.stack([number[:-1] / 1000, -number[:-1] / 1000], -1),
                    goals={"task1": (-(number % 3), number % 5 != 0)},
                    qpos=np.repeat(number[:, None], 3, 1),
                )
                start += length
    return path


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """Writes a store of the given episode lengths into the test's folder; see `write_store`."""

    def make(*args: Any, name: str = "visual-test-v0.zarr", **kwargs: Any) -> Path:
        return write_store(tmp_path / name, *args, **kwargs)

    return make
