"""Figures of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from deflow_vision.analysis.embedding_report import Report, Row
from deflow_vision.analysis.embeddings import singular_values
from deflow_vision.analysis.encoders import Features
from deflow_vision.analysis.frames import Sample
from deflow_vision.analysis.plots import PALETTE, REFERENCE, STYLE, label_steps, save_figure
from deflow_vision.analysis.projections import PROJECTIONS, Projection, project
from deflow_vision.seeding import derive_seed

*COLORS, BLACK = PALETTE
MARKERS = "osD^v"
"""With the colours, 30 pairs."""
BASELINES = {"random": (BLACK, "x", "--"), "pixels": (BLACK, "+", ":")}
"""How what no run has trained is drawn: colour, shape, line."""

MAP_POINTS = 2000
"""States of a map: beyond that points only cover each other."""
MAX_COLOURS = 4
WIDE = 55
"""Letters of a name of which two columns fit below a figure."""


def plot_numbers(report: Report, features: Sequence[Features], path: Path) -> Path:
    """Draw the probes, the action's consistency, and the spectra of the features.

    Args:
        report: the numbers.
        features: of the report's rows, in their order.
        path: a PNG file.

    Returns:
        The file written.
    """
    labels = [*(f"probe: {name}" for name in report.targets), "kNN: action"]
    spread = np.linspace(-0.3, 0.3, len(report.rows)) if len(report.rows) > 1 else [0.0]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        lines = (len(report.rows) + 1) / _legend_columns(report.names)
        height = max(3.0, 0.45 * len(labels) + 1.0) + 0.19 * lines
        figure = Figure(figsize=(9.5, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        for number, (row, name) in enumerate(zip(report.rows, report.names, strict=True)):
            color, marker, line = _look(row, number)
            rank = row.effective_rank
            values = np.array([*row.r2.values(), row.consistency])
            errors = np.array([*row.r2_errors.values(), row.consistency_error])
            places = np.arange(len(labels)) + spread[number]
            ends = np.clip([values - errors, values + errors], -1, 1)
            left.hlines(places, *ends, color=color, linewidth=0.9)
            left.scatter(
                values.clip(-1, 1),
                places,
                s=26,
                color=color,
                marker=marker,
                label=f"{name} (rank {rank:.1f} of {row.dim})",
                clip_on=False,
                zorder=3,
            )
            shares = np.cumsum(singular_values(features[number].values))
            shares /= shares[-1] or 1.0
            counts = np.arange(1, len(shares) + 1)
            right.plot(counts, shares, line, color=color)
            height_there = float(np.interp(rank, counts, shares))
            right.plot(rank, height_there, marker, color=color, markersize=6)
        left.set_yticks(range(len(labels)), labels)
        left.set_ylim(len(labels) - 0.5, -0.5)
        left.set_xlim(-1, 1)
        left.axvline(0, color=REFERENCE, linewidth=1, linestyle="--")
        left.grid(True, axis="x")
        left.set_xlabel("R² in held-out episodes, standard error; below -1 drawn at -1")
        left.set_title("What the features tell")
        right.set_xscale("log")
        right.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        right.set_ylim(0, 1.02)
        right.set_xlabel("number of singular values, the greatest first")
        right.set_ylabel("share of their sum")
        right.set_title("Spectrum, and effective rank as a mark")
        _legend_below(figure, left)
        return save_figure(figure, path)


def _legend_below(figure: Figure, axis: Axes) -> None:
    """Name what `axis` has."""
    handles, names = axis.get_legend_handles_labels()
    columns = _legend_columns(names)
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def _legend_columns(names: Sequence[str]) -> int:
    """Two where the names are short enough for the page."""
    return 2 if max(map(len, names)) <= WIDE else 1


def plot_cka(names: Sequence[str], cka: np.ndarray, path: Path, title: str) -> Path:
    """Draw a CKA matrix (F, F) with its numbers; gives the path back."""
    side = max(0.42 * len(names), 1.6)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        words_wide = 0.075 * max(map(len, names)) + 0.3
        figure = Figure(figsize=(side + words_wide + 1.0, side + 0.7), layout="constrained")
        axis = figure.subplots()
        picture = axis.imshow(cka, vmin=0, vmax=1, cmap="cividis")
        for (i, j), value in np.ndenumerate(cka):
            words = "-" if np.isnan(value) else f"{value:.2f}".replace("0.", ".", 1)
            color = "white" if np.isnan(value) or value < 0.55 else "black"
            axis.text(j, i, words, ha="center", va="center", fontsize=7, color=color)
        numbered = [f"{i}  {name}" for i, name in enumerate(names, start=1)]
        axis.set_yticks(range(len(names)), numbered)
        axis.set_xticks(range(len(names)), [str(i) for i in range(1, len(names) + 1)])
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.set_title(title)
        figure.colorbar(picture, ax=axis, aspect=30, label="linear CKA, 1: alike")
        return save_figure(figure, path)


def plot_progress(report: Report, path: Path) -> Path:
    """Draw the numbers of encoders over the updates of their runs; gives the path back.

    Args:
        report: with several checkpoints of a run.
        path: a PNG file.
    """
    lines: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row in report.rows:
        if row.updates is not None:
            lines.setdefault((row.policy, row.heads), []).append(row)
    panels: dict[str, Callable[[Row], float]] = {
        f"Probe R²: {target}": lambda row, target=target: row.r2[target]  # type: ignore[misc]
        for target in report.targets
    }
    panels |= {
        "kNN: R² of the action": lambda row: row.consistency,
        "Effective rank": lambda row: row.effective_rank,
    }
    columns = min(3, len(panels))
    count = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(3.4 * columns, 2.3 * count + 0.8), layout="constrained")
        axes = figure.subplots(count, columns, squeeze=False).flatten()
        for axis, (title, value) in zip(axes, panels.items(), strict=False):
            for number, ((policy, heads), rows) in enumerate(lines.items()):
                color, marker, line = _look(rows[0], number)
                axis.plot(
                    [row.updates for row in rows],
                    [value(row) for row in rows],
                    line,
                    color=color,
                    marker=marker,
                    markersize=4,
                    label=f"{policy}: {', '.join(heads)}",
                )
            for row in report.rows:
                if row.updates is None:
                    color, _, line = _look(row, 0)
                    label = f"{row.policy} ({row.encoder})"
                    axis.axhline(value(row), color=color, linestyle=line, lw=1, label=label)
            axis.set_title(title)
            label_steps(axis)
        # Shares have one scale: a difference of 0.01 is not to look like one of 0.1.
        shares = [axis for axis, title in zip(axes, panels, strict=False) if "R²" in title]
        lowest = min(0.0, *(axis.get_ylim()[0] for axis in shares))
        for axis in shares:
            axis.set_ylim(lowest, 1.0)
        for axis in axes[len(panels) :]:
            axis.remove()
        _legend_below(figure, axes[0])
        return save_figure(figure, path)


def plot_maps(
    features: Features, sample: Sample, path: Path, methods: Sequence[Projection], seed: int = 0
) -> Path:
    """Draw features in two dimensions, a row a method, coloured by what is true in the states.

    Args:
        features: of the sample.
        sample: what they are of.
        path: a PNG file.
        methods: "pca", "tsne", "umap".
        seed: of the choice of at most `MAP_POINTS` states, and of the maps.

    Returns:
        The file written.
    """
    rng = np.random.default_rng(derive_seed(seed, "analysis", "map"))
    chosen = rng.permutation(len(sample))[:MAP_POINTS]
    colours = dict(list(colours_of(sample).items())[:MAX_COLOURS])
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(
            figsize=(2.6 * len(colours) + 0.4, 2.3 * len(methods) + 0.7), layout="constrained"
        )
        axes = figure.subplots(len(methods), len(colours), squeeze=False)
        for method, row in zip(methods, axes, strict=True):
            points = project(features.values[chosen], method, seed)
            for axis, (label, values) in zip(row, colours.items(), strict=True):
                dots = axis.scatter(*points.T, c=values[chosen], s=3, cmap="viridis", linewidths=0)
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if method == methods[0]:
                    axis.set_title(label.partition(" [")[0])
                if method == methods[-1]:
                    figure.colorbar(dots, ax=axis, location="bottom", label=label, aspect=25)
            row[0].set_ylabel(PROJECTIONS[method])
        figure.suptitle(f"{features.name}: {len(chosen):,} states in two dimensions", fontsize=10)
        return save_figure(figure, path)


def colours_of(sample: Sample) -> dict[str, np.ndarray]:
    """Scalars to colour states by, (N,) each, by a label with its unit."""
    found: dict[str, np.ndarray] = {}
    for name, values in sample.targets.items():
        if name == "gripper":
            found["gripper closed [0: open, 1: shut]"] = values[:, 0]
        elif name == "effector":
            found["effector's height [m]"] = values[:, 2]
        elif name == "buttons":
            found["buttons switched [count]"] = values.sum(1)
        elif values.shape[1] == 3:
            found[f"{name}, sideways [m]"] = values[:, 1]
        else:
            found[f"{name} slid [m]"] = values[:, 0]
    return found or {"step in the episode [steps]": sample.times}


def _look(row: Row, number: int) -> tuple[str, str, str]:
    """Colour, marker and line of an encoder, the `number`-th of a figure."""
    if row.updates is None:
        return BASELINES[row.policy]
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)], "-"
