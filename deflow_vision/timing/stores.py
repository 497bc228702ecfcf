"""Stores and files of any size, out of the committed sample; and what a sampler makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deflow_vision.datasets.schema import read_all, read_rows
from deflow_vision.datasets.store import Split, StoreWriter, open_store

SAMPLE = Path(__file__).parents[2] / "data/samples/visual-cube-double-play-v0.zarr"
DATASET = "visual-cube-double-play-v0"
WIDTH = 28
"""Numbers of a state of `state_store`."""


def tiled(count: int) -> Iterator[tuple[Split, slice, int]]:
    """At least `count` states of the sample: its split, an episode's rows, and which time round."""
    split = open_store(SAMPLE).train
    starts = np.concatenate([[0], split.episode_ends[:-1]])
    done = turn = 0
    while done < count:
        for start, stop in zip(starts, split.episode_ends, strict=True):
            if done < count:
                yield split, slice(int(start), int(stop)), turn
                done += int(stop - start)
        turn += 1


def recoloured(frames: np.ndarray, turn: int) -> np.ndarray:
    """Frames that differ from those of any other turn below 256, as compressible as they are."""
    return frames ^ np.uint8(turn % 256)


def pixel_store(path: Path, count: int) -> Path:
    """At least `count` frames, those of the sample over and over, each time in other colours."""
    if path.exists():
        return path
    frames = read_all(open_store(SAMPLE).train.observations)
    with StoreWriter(
        path,
        source="scripts/bench.py",
        env_id=DATASET,
        seeds=None,
        observation_shape=frames.shape[1:],
        observation_dtype="uint8",
        action_dim=5,
        goals=["task1"],
        render_profile="official",
    ) as writer:
        for split, rows, turn in tiled(count):
            actions = read_rows(split.actions, rows.start, rows.stop)
            labels = _labels(rows.stop - rows.start)
            writer.append_episode("train", recoloured(frames[rows], turn), actions, labels)
    return path


def state_store(path: Path, transitions: int, episodes: int) -> Path:
    """States of random walks of equal length."""
    if path.exists():
        return path
    length = transitions // episodes + 1
    rng = np.random.default_rng(0)
    states = rng.normal(size=(length, WIDTH)).astype(np.float32)
    actions = rng.uniform(-1, 1, (length - 1, 5)).astype(np.float32)
    with StoreWriter(
        path,
        source="scripts/bench.py",
        env_id="cube-single-play-v0",
        seeds=None,
        observation_shape=(WIDTH,),
        observation_dtype="float32",
        action_dim=5,
        goals=["task1"],
    ) as writer:
        labels = _labels(length)
        for number in range(episodes):
            writer.append_episode("train", states + np.float32(number), actions, labels)
    return path


def npz(path: Path, count: int, *, compressed: bool) -> Path:
    """A file as OGBench's are, with at least `count` frames."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[np.ndarray]] = {}
    for split, rows, turn in tiled(count):
        read = {"actions": split.actions, "observations": split.observations, **split.side}
        for name, array in read.items():
            columns.setdefault(name, []).append(read_rows(array, rows.start, rows.stop))
        columns["observations"][-1] = recoloured(columns["observations"][-1], turn)
        columns.setdefault("terminals", []).append(
            np.arange(rows.start, rows.stop) == rows.stop - 1
        )
    arrays = {name: np.concatenate(values) for name, values in columns.items()}
    save: Any = np.savez_compressed if compressed else np.savez
    save(path, **arrays)
    return path


def _labels(length: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {"task1": (-np.ones(length), np.ones(length))}


Residency = Literal["ram", "stream"]
