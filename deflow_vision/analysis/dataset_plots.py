"""Figures of a dataset's sample: its actions, and where things are in it."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from deflow_vision.analysis.frames import Sample
from deflow_vision.analysis.plots import STYLE, TRAIN, save_figure


def plot_actions(sample: Sample, path: Path, names: tuple[str, ...] = ()) -> Path:
    """Draw the distribution of each action dimension, and how they go together.

    Args:
        sample: of a dataset.
        path: a PNG file.
        names: of the action dimensions.

    Returns:
        The file written.
    """
    actions = sample.actions
    labels = list(names) or [f"dim {i}" for i in range(actions.shape[1])]
    edges = np.linspace(-1, 1, 41)
    counts = np.stack([np.histogram(column, edges)[0] for column in actions.T]) / len(actions)
    with np.errstate(invalid="ignore", divide="ignore"):
        together = np.corrcoef(actions.T)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        shown = left.imshow(
            100 * counts, extent=(-1, 1, len(labels) - 0.5, -0.5), aspect="auto", cmap="cividis"
        )
        figure.colorbar(shown, ax=left, label="states in a bin of 0.05 [%]")
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel("action")
        left.set_title(f"Actions of {len(actions):,} states")
        square = np.atleast_2d(together)
        shown = right.imshow(square, vmin=-1, vmax=1, cmap="PuOr")
        for (i, j), value in np.ndenumerate(square):
            color = "white" if abs(value) > 0.6 else "black"
            right.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
        right.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        right.set_yticks(range(len(labels)), labels)
        figure.colorbar(shown, ax=right, label="correlation")
        right.set_title("How they go together")
        for axis in (left, right):
            axis.grid(False)
        return save_figure(figure, path)


def plot_places(sample: Sample, path: Path) -> Path:
    """Draw from above where the effector and the cubes are, and how far the gripper is closed.

    Args:
        sample: one with `targets`.
        path: a PNG file.

    Returns:
        The file written.
    """
    places = {name: rows for name, rows in sample.targets.items() if rows.shape[1] == 3}
    scalars = {
        name: rows
        for name, rows in sample.targets.items()
        if rows.shape[1] == 1 or name == "buttons"
    }
    every = np.concatenate([rows[:, :2] for rows in places.values()])
    (x_low, y_low), (x_high, y_high) = every.min(0) - 0.03, every.max(0) + 0.03
    count = len(places) + len(scalars)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(2.6 * count + 0.8, 2.9), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, (name, rows) in zip(axes, places.items(), strict=False):
            dots = axis.scatter(
                rows[:, 1], rows[:, 0], c=rows[:, 2], s=3, cmap="viridis", linewidths=0
            )
            axis.set(xlim=(y_low, y_high), ylim=(x_high, x_low), aspect="equal")
            axis.set_xlabel("y, sideways [m]")
            axis.set_title(name)
            figure.colorbar(dots, ax=axis, location="bottom", label="height [m]")
        axes[0].set_ylabel("x, away from the arm [m]")
        for axis, (name, rows) in zip(axes[len(places) :], scalars.items(), strict=True):
            values = rows.sum(1) if name == "buttons" else rows[:, 0]
            weights = np.full(len(values), 100 / len(values))
            axis.hist(values, 30, weights=weights, color=TRAIN, alpha=0.6)
            unit = {"gripper": "0: open, 1: shut", "buttons": "switched"}.get(name, "slid [m]")
            axis.set_xlabel(unit)
            axis.set_ylabel("states [%]")
            axis.set_title(name)
        figure.suptitle(f"Where things are in {len(sample):,} states", fontsize=10)
        return save_figure(figure, path)
