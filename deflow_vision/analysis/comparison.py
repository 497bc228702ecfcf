"""Curves of several runs in one picture, drawn from nothing but their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deflow_vision.analysis.plots import (
    PALETTE,
    REFERENCE,
    STYLE,
    label_steps,
    log_scale,
    read_config,
    read_episodes,
    save_figure,
    success_curve,
)
from deflow_vision.analysis.tables import read_table
from deflow_vision.types import UserError

USUAL = ("online/success", "train/actor/divergence", "train/alpha/value", "train/critic/q_mean")
"""Columns of `train.csv` that are drawn where runs have them, beside the success of evaluations."""


def compare_runs(
    run_dirs: Sequence[Path], path: Path, columns: Sequence[str] | None = None, smooth: int = 1
) -> Path:
    """Draw a panel for each quantity, a line for each run, named by its folder.

    The success of evaluations comes first, with Wilson's 95% intervals; `online/success` is that of
    the episodes which were collected, over at least ten rows of `train.csv`. A dotted line marks
    where collecting began, dashed ones the divergence to hold.

    Args:
        run_dirs: run folders, at most seven, with names of their own.
        path: the PNG file to write.
        columns: columns of `train.csv`; by default the usual ones that any of the runs has.
        smooth: rows of `train.csv` that a point is the mean of.

    Returns:
        `path`.

    Raises:
        UserError: too many runs, two of one name, or a column that none of them has.
    """
    names = [run_dir.resolve().name for run_dir in run_dirs]
    if len(names) > len(PALETTE) or len(set(names)) < len(names):
        raise UserError(f"runs {', '.join(names)}: give at most {len(PALETTE)}, no name twice")
    runs = dict(zip(names, run_dirs, strict=True))
    tables = {name: read_table(run_dir / "train.csv", ("step",)) for name, run_dir in runs.items()}
    known = {str(column) for table in tables.values() for column in table}
    if missing := set(columns or ()) - known:
        choices = ", ".join(sorted(known - {"step"}))
        raise UserError(f"no run has {', '.join(sorted(missing))}; they have {choices}")
    chosen = [column for column in USUAL if column in known] if columns is None else columns

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        width = min(3, 1 + len(chosen))
        height = -(-(1 + len(chosen)) // width)
        figure = Figure(figsize=(3.6 * width, 2.5 * height + 0.5), layout="constrained")
        first, *others = figure.subplots(height, width, squeeze=False).flatten()
        _success(first, runs)
        for axis, column in zip(others, chosen, strict=False):
            _column(axis, tables, column, smooth)
        for axis in others[len(chosen) :]:
            axis.remove()
        configs = [read_config(run_dir) for run_dir in run_dirs]
        for axis in figure.axes:
            _mark(axis, configs)
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return save_figure(figure, path)


def _success(axis: Axes, runs: dict[str, Path]) -> None:
    for color, (name, run_dir) in zip(PALETTE, runs.items(), strict=False):
        success_curve(axis, read_episodes(run_dir), color, name)
    axis.set_title("Success in evaluations, 95 % interval")
    axis.set_ylim(-3, 103)


def _column(axis: Axes, tables: dict[str, pd.DataFrame], column: str, smooth: int) -> None:
    for color, table in zip(PALETTE, tables.values(), strict=False):
        if column in table:
            known = table.dropna(subset=[column])
            rows = max(smooth, 10) if column.startswith("online/") else smooth
            means = known[column].rolling(rows, min_periods=1).mean()
            axis.plot(known["step"], means, color=color)
    if column in ("train/actor/divergence", "train/alpha/value"):
        log_scale(axis)
    axis.set_title(column.removeprefix("train/"))


def _mark(axis: Axes, configs: Sequence[dict[str, Any]]) -> None:
    """Where runs went online, the divergence that they hold, and what every axis of steps has."""
    for start in {c["offline_steps"] for c in configs if c.get("online_steps")} - {0}:
        axis.axvline(start, color=REFERENCE, linestyle=":", linewidth=1)
    if axis.get_title(loc="left") == "actor/divergence":
        for target in {c.get("agent", {}).get("target_divergence") for c in configs} - {None}:
            axis.axhline(target, color=REFERENCE, linestyle="--", linewidth=1)
    label_steps(axis)
