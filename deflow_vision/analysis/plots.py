"""Pictures of a run, drawn from nothing but its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from deflow_vision.analysis.episodes import return_by_step, success_by_step
from deflow_vision.analysis.tables import read_table
from deflow_vision.config.layers import read_yaml
from deflow_vision.files import write_whole
from deflow_vision.types import UserError

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which the colour-blind tell apart."""
TRAIN, VALIDATION, REFERENCE = PALETTE[0], PALETTE[1], "#555555"

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
}

Panel = Callable[[Axes], None]


def learning_curves(run_dir: Path) -> list[Path]:
    """Draw the curves of a run into `run_dir/plots`: one figure, a panel for each thing measured.

    Success with its counts, return, losses on training and validation batches, the multiplier
    alpha and the divergence D against its target, Q, and the rate. Works while the run goes on.

    Args:
        run_dir: a run folder: `train.csv`, and where they are there `episodes.csv`, `config.yaml`.

    Returns:
        The files written.

    Raises:
        UserError: the folder has no `train.csv`, or nothing in it to draw.
    """
    train = read_table(run_dir / "train.csv", ("step",))
    if train.empty:
        raise UserError(f"{run_dir / 'train.csv'} has no rows yet: nothing to draw")
    episodes, config = read_episodes(run_dir), read_config(run_dir)

    panels = _panels(train, episodes, config)
    if not panels:
        raise UserError(
            f"{run_dir / 'train.csv'} has nothing yet that is drawn; its columns: "
            f"{', '.join(map(str, train.columns[:5]))}"
        )
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(3.6 * columns, 2.5 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, panel in zip(axes, panels, strict=False):
            panel(axis)
            label_steps(axis)
        for axis in axes[len(panels) :]:
            axis.remove()
        words = [config.get("task"), config.get("algo"), f"seed {config.get('seed')}"]
        figure.suptitle("  ·  ".join(map(str, words)) if config else run_dir.name, fontsize=11)
        return [save_figure(figure, run_dir / "plots" / "learning_curves.png")]


def read_episodes(run_dir: Path) -> pd.DataFrame:
    """The evaluated episodes of a run; empty where there are none."""
    path = run_dir / "episodes.csv"
    return read_table(path, ("step", "return")) if path.exists() else pd.DataFrame()


def read_config(run_dir: Path) -> dict[str, Any]:
    """The plain values of a run's configuration; empty where there is none."""
    path = run_dir / "config.yaml"
    return read_yaml(path) if path.exists() else {}


def label_steps(axis: Axes) -> None:
    """Make an axis' x one of gradient steps."""
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_xlabel("gradient steps")


def _panels(train: pd.DataFrame, episodes: pd.DataFrame, config: Mapping[str, Any]) -> list[Panel]:
    """The panels for which there is anything to show."""
    panels: list[Panel] = []
    if not episodes.empty:
        if "success" in episodes:
            panels.append(lambda axis: _success(axis, episodes))
        panels.append(lambda axis: _return(axis, episodes))
    if "train/actor/divergence" in train:
        agent = config.get("agent")
        target = agent.get("target_divergence") if isinstance(agent, Mapping) else None
        known = target if isinstance(target, float) else None
        panels.append(lambda axis: _divergence(axis, train, known))
    if "train/alpha/value" in train:
        panels.append(
            lambda axis: _curve(axis, train, "alpha/value", r"Multiplier $\alpha$", log=True)
        )
    if "train/critic/q_mean" in train:
        panels.append(lambda axis: _q(axis, train))
    for key in map(str, train.columns):
        name = key.removeprefix("train/")
        # The multiplier's loss says nothing that D beside its target does not show.
        if name != key and name.endswith(("/loss", "_loss")) and name != "alpha/loss":
            panels.append(lambda axis, name=name: _loss(axis, train, name))  # type: ignore[misc]
    if "time/steps_per_second" in train:
        panels.append(lambda axis: _rate(axis, train))
    return panels


def success_curve(
    axis: Axes, episodes: pd.DataFrame, color: str, label: str | None = None
) -> pd.DataFrame:
    """Draw the success of evaluations in percent, with Wilson's 95% intervals.

    Args:
        axis: where.
        episodes: of a run; nothing but the label is drawn where they have no success.
        color: of the line and the intervals.
        label: of the line.

    Returns:
        What `success_by_step` makes of them.
    """
    found = success_by_step(episodes)
    axis.fill_between(
        found.index, found["low"], found["high"], color=color, alpha=0.15, linewidth=0
    )
    axis.plot(found.index, found["rate"], color=color, marker="o", markersize=3, label=label)
    axis.set_ylabel("episodes won [%]")
    return found


def _success(axis: Axes, episodes: pd.DataFrame) -> None:
    found = success_curve(axis, episodes, TRAIN)
    rates, count = found["rate"], len(found)
    marked = range(count) if count <= 6 else [int(np.argmax(rates)), -1]
    for i in marked:
        axis.annotate(
            f"{found['wins'].iloc[i]:.0f}/{found['episodes'].iloc[i]}",
            (float(found.index[i]), float(rates.iloc[i])),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axis.margins(x=0.08)
    axis.set_ylim(-3, 112)
    axis.set_yticks([0, 25, 50, 75, 100])
    capped = "capped" in episodes and bool(episodes["capped"].any())
    axis.set_title("Success, 95 % interval" + (" (episodes cut short)" if capped else ""))


def _return(axis: Axes, episodes: pd.DataFrame) -> None:
    found = return_by_step(episodes)
    axis.fill_between(
        found.index, found["low"], found["high"], color=TRAIN, alpha=0.15, linewidth=0
    )
    axis.plot(found.index, found["mean"], color=TRAIN, marker="o", markersize=3)
    axis.set_title("Return, 95 % interval")
    axis.set_ylabel("mean sum of rewards")


def _divergence(axis: Axes, train: pd.DataFrame, target: float | None) -> None:
    _curve(axis, train, "actor/divergence", "Divergence D", log=True)
    if target is not None:
        axis.axhline(target, color=REFERENCE, linestyle="--", linewidth=1)
        axis.set_title(f"Divergence D, target {target:g}")
    axis.set_ylabel("mean squared refinement")


def _q(axis: Axes, train: pd.DataFrame) -> None:
    if {"train/critic/q_min", "train/critic/q_max"} <= set(train.columns):
        known = train.dropna(subset=["train/critic/q_min", "train/critic/q_max"])
        low, high = known["train/critic/q_min"], known["train/critic/q_max"]
        axis.fill_between(known["step"], low, high, color=TRAIN, alpha=0.15, linewidth=0)
    _curve(axis, train, "critic/q_mean", "Q of the data, mean and range of a batch")
    axis.set_ylabel("discounted return")


def _rate(axis: Axes, train: pd.DataFrame) -> None:
    known = train.dropna(subset=["time/steps_per_second"])
    axis.plot(known["step"], known["time/steps_per_second"], color=TRAIN)
    axis.set_ylim(bottom=0)
    title = f"Rate, median {known['time/steps_per_second'].median():.3g}/s"
    if "time/data_wait" in known:
        title += f", data wait {100 * known['time/data_wait'].median():.1f} %"
    axis.set_title(title)
    axis.set_ylabel("gradient steps a second")


def _loss(axis: Axes, train: pd.DataFrame, name: str) -> None:
    values = train[f"train/{name}"].dropna()
    spread = bool((values > 0).all()) and values.max() > 20 * values.median()
    _curve(axis, train, name, f"Loss: {name}", log=spread)


def _curve(axis: Axes, train: pd.DataFrame, key: str, title: str, log: bool = False) -> None:
    """One quantity on training batches and, where it is there, on validation batches."""
    for split, color in (("train", TRAIN), ("val", VALIDATION)):
        if (name := f"{split}/{key}") in train and (known := train.dropna(subset=[name])).size:
            marker = "o" if split == "val" or len(known) < 3 else None
            axis.plot(known["step"], known[name], color=color, marker=marker, markersize=3)
    if len(axis.lines) > 1:
        axis.legend(axis.lines, ["training", "validation"], loc="best")
    if log:
        log_scale(axis)
    axis.set_title(title)


def log_scale(axis: Axes) -> None:
    """Make an axis' y logarithmic, with plain numbers at 1, 2 and 5."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file, whole or not at all; gives the path back."""
    return write_whole(path, lambda part: figure.savefig(part, dpi=150))
