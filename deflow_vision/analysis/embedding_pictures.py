"""Figures of embeddings that show frames: nearest neighbours, and where a value looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deflow_vision.analysis.embeddings import nearest_neighbours
from deflow_vision.analysis.encoders import Features
from deflow_vision.analysis.frames import Sample
from deflow_vision.analysis.plots import STYLE, save_figure
from deflow_vision.seeding import derive_seed


def plot_neighbours(
    features: Features, sample: Sample, path: Path, queries: int = 5, k: int = 5, seed: int = 0
) -> Path:
    """Draw held-out frames beside their nearest training frames, with how far their actions are.

    Args:
        features: of the sample.
        sample: of pixels.
        path: a PNG file.
        queries: how many frames.
        k: neighbours of each, all of different episodes than the frame's own.
        seed: of their choice.

    Returns:
        The file written.
    """
    rng = np.random.default_rng(derive_seed(seed, "analysis", "neighbours"))
    held, pool = np.flatnonzero(sample.held_out), np.flatnonzero(~sample.held_out)
    chosen = np.sort(rng.permutation(held)[:queries])
    found, _ = nearest_neighbours(features.values, sample.episodes, chosen, pool, k)
    apart = np.sqrt(np.square(sample.actions[chosen, None] - sample.actions[found]).mean(-1))
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(1.25 * (k + 1), 1.42 * len(chosen) + 0.7), layout="constrained")
        axes = figure.subplots(len(chosen), k + 1, squeeze=False)
        for i, row in enumerate(axes):
            _show(row[0], sample.pictures[chosen[i]])
            row[0].set_xlabel(f"step {sample.times[chosen[i]]}", fontsize=7)
            for j, axis in enumerate(row[1:]):
                _show(axis, sample.pictures[found[i, j]])
                axis.set_xlabel(f"Δ action {apart[i, j]:.2f}", fontsize=7)
        axes[0, 0].set_title("held out", fontsize=8)
        axes[0, 1].set_title("nearest training frames", fontsize=8)
        figure.suptitle(
            f"{features.name}: neighbours in feature space\n"
            "Δ action: root mean square difference of the actions, which lie in [-1, 1]",
            fontsize=8,
        )
        return save_figure(figure, path)


def plot_saliency(
    pictures: np.ndarray, maps: Mapping[str, np.ndarray], path: Path, title: str
) -> Path:
    """Draw pictures (B, H, W, 3), and below each the maps (B, H, W) over it in grey.

    Each map has its own scale, from 0 to what 99 % of its values in all pictures lie below.

    Args:
        pictures: uint8.
        maps: by a label that says the unit.
        path: a PNG file.
        title: above all.

    Returns:
        The file written.
    """
    grey = pictures.mean(-1)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(
            figsize=(1.5 * len(pictures) + 1.3, 1.55 * (len(maps) + 1) + 0.4), layout="constrained"
        )
        axes = figure.subplots(len(maps) + 1, len(pictures), squeeze=False)
        for axis, picture in zip(axes[0], pictures, strict=True):
            _show(axis, picture)
        axes[0, 0].set_ylabel("the newest frame", fontsize=7)
        for row, (label, values) in zip(axes[1:], maps.items(), strict=True):
            most = float(np.quantile(values, 0.99)) or float(values.max()) or 1.0
            for axis, under, over in zip(row, grey, values, strict=True):
                _show(axis, np.repeat(under[..., None] / 255, 3, axis=-1))
                picture = axis.imshow(
                    over, vmin=0, vmax=most, cmap="inferno", alpha=(over / most).clip(0.1, 0.85)
                )
            row[0].set_ylabel(label.partition(" [")[0], fontsize=7)
            bar = mpl.cm.ScalarMappable(picture.norm, picture.cmap)
            unit = label.partition(" [")[2].removesuffix("]")
            figure.colorbar(bar, ax=list(row), aspect=12, extend="max", label=unit)
        figure.suptitle(title, fontsize=9)
        return save_figure(figure, path)


def _show(axis: Axes, picture: np.ndarray) -> None:
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
