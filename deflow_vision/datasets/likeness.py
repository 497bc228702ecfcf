"""Whether the simulator here draws a store's states as the store's frames show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deflow_vision.datasets.drawable import advise_drawing, check_states
from deflow_vision.datasets.render import Renderer
from deflow_vision.datasets.schema import StoreError, read_rows
from deflow_vision.datasets.store import Store, open_store
from deflow_vision.envs.rendering import check_profile, worker_variables
from deflow_vision.envs.worker import Worker
from deflow_vision.types import UserError

LIKE_DB = 50.0
"""Every frame that was drawn alike has at least this PSNR.

Measured, the worst of a few frames: 59 where they are drawn as they were (a store rounds states to
float32), 47 with the shadow map at half its size, 45 with things where they are a physics step
(2 ms) later, less with another render profile, 33 without multisampling.
"""

_AMPLIFIED = 8


@dataclass(frozen=True)
class Likeness:
    """Stored frames against frames that were drawn here of the same states.

    Attributes:
        rows: their rows in the training split, (n,).
        errors: mean squared error of each, of values up to 255, (n,).
        worst: the least like one, (3, H, W, 3) uint8: as stored, as drawn, and the size of the
            difference times eight.
    """

    rows: np.ndarray
    errors: np.ndarray
    worst: np.ndarray

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio over all frames in dB; infinite where they are equal."""
        return _psnr(float(self.errors.mean()))

    @property
    def worst_psnr(self) -> float:
        """That of the least like frame."""
        return _psnr(float(self.errors.max()))

    @property
    def alike(self) -> bool:
        """Whether every frame is drawn here as it was."""
        return self.worst_psnr >= LIKE_DB

    def __str__(self) -> str:
        if not self.errors.any():
            return f"{len(self.rows)} stored frames equal their states drawn here, in every value"
        return (
            f"{len(self.rows)} stored frames against their states drawn here: PSNR "
            f"{self.psnr:.1f} dB, the worst {self.worst_psnr:.1f} dB (train, row "
            f"{self.rows[self.errors.argmax()]}); drawn alike, each has {LIKE_DB:.0f} or more"
        )


def likeness_of(path: Path | str, num_frames: int) -> Likeness:
    """Draw states of a store again, with its own render profile and resolution, and compare.

    Args:
        path: a pixel store with simulator states.
        num_frames: how many, evenly spaced over the training split.

    Raises:
        UserError: fewer than one frame, or a dataset that cannot be drawn.
        StoreError: the store cannot be read, or lacks frames or states.
        NoRendererError: this machine cannot draw.
    """
    store = open_store(path)
    profile = store.attributes["render_profile"] or "official"
    check_profile(profile)
    arguments = (path, profile, resolution_of(store))
    with Worker(Renderer, *arguments, variables=worker_variables(pixels=True)) as worker:
        return compare(store, worker.call("state_shapes"), partial(worker.call, "draw"), num_frames)


def compare(
    store: Store,
    shapes: Mapping[str, tuple[int, ...]],
    draw: Callable[[dict[str, np.ndarray]], np.ndarray],
    num_frames: int,
) -> Likeness:
    """Compare stored frames with drawn ones; raises like `likeness_of`.

    Args:
        store: a pixel store with simulator states.
        shapes: what a state consists of, see `states.state_shapes`.
        draw: makes a frame (H, W, 3) uint8 of a state.
        num_frames: how many, evenly spaced over the training split.
    """
    if num_frames < 1:
        raise UserError(f"{num_frames} frames to compare: it must be 1 or more.")
    split = store.train
    check_states(store, split, shapes)
    rows = np.unique(np.linspace(0, split.num_states - 1, num_frames).round().astype(int))
    errors, frames = [], []
    for row in rows:
        state = {name: read_rows(split.side[name], row, row + 1)[0] for name in shapes}
        stored, drawn = read_rows(split.observations, row, row + 1)[0], draw(state)
        if stored.shape != drawn.shape:
            raise StoreError(f"{store.path} holds frames {stored.shape}, drawn are {drawn.shape}.")
        difference = np.abs(stored.astype(np.int16) - drawn)
        shown = np.minimum(difference * _AMPLIFIED, 255).astype(np.uint8)
        errors.append(np.mean(difference.astype(float) ** 2))
        frames.append(np.stack([stored, drawn, shown]))
    return Likeness(rows, np.array(errors), frames[int(np.argmax(errors))])


def resolution_of(store: Store) -> int:
    """Pixels a side of a store's frames.

    Raises:
        StoreError: it holds states, or frames that are not square.
    """
    if not store.train.pixels:
        raise StoreError(
            f"{store.path} holds states, which have no frames: {advise_drawing(store)}."
        )
    height, width = store.train.observations.shape[1:3]
    if height != width:
        raise StoreError(
            f"{store.path} holds frames of {height} x {width} pixels; OGBench's environments draw "
            "square ones."
        )
    return int(height)


def _psnr(error: float) -> float:
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
