"""Figures of a flow over actions, and of its refinement."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from deflow_vision.agents.base import Agent, standard_normal
from deflow_vision.analysis.plots import REFERENCE, STYLE, TRAIN, VALIDATION, save_figure
from deflow_vision.analysis.refinement import (
    Moves,
    busiest_dims,
    modes,
    paths,
    vector_field,
)

TIMES = (0.0, 0.5, 0.9)
GRID, REACH = 17, 1.6
"""Arrows a side, and how far from 0 they are drawn; actions end within 1."""


def plot_flow(
    agent: Agent,
    observation: Tensor,
    path: Path,
    *,
    samples: int = 1000,
    seed: int = 0,
    names: tuple[str, ...] = (),
) -> Path:
    """Draw the base flow in one state: its field at three times, and where its samples end.

    On the two action dimensions in which the samples differ most; modes are those of all.
    Arrows are the velocity at the mean of the paths in the other dimensions.

    Args:
        agent: with a base flow.
        observation: (...,), one.
        path: a PNG file.
        samples: K.
        seed: of the noises.
        names: of the action dimensions.

    Returns:
        The file written.
    """
    noises = standard_normal(samples, agent.spec.action_dim, torch.Generator().manual_seed(seed))
    walked = paths(agent, observation, noises.to(observation.device))
    ends = walked[-1].clamp(-1, 1).cpu().numpy()
    dims = busiest_dims(ends)
    labels = [names[d] if names else f"action dimension {d}" for d in dims]
    grid = torch.linspace(-REACH, REACH, GRID, device=observation.device)
    middles, shares = modes(ends)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 3.3), layout="constrained")
        axes = figure.subplots(1, len(TIMES) + 1)
        for axis, time in zip(axes, TIMES, strict=False):
            points = walked[round(time * (len(walked) - 1))]
            field = vector_field(agent, observation, dims, time, points.mean(0), grid).cpu().numpy()
            axis.quiver(
                grid.cpu(),
                grid.cpu(),
                field[..., 0],
                field[..., 1],
                color=REFERENCE,
                width=0.004,
                angles="xy",
                scale_units="xy",
                scale=12,
            )
            axis.scatter(*points[:, list(dims)].cpu().T, s=4, color=TRAIN, linewidths=0)
            axis.set_title(f"t = {time:g}: velocity/12 and samples")
        last = axes[-1]
        lines = walked[:, :40, list(dims)].cpu().transpose(0, 1).numpy()
        last.add_collection(LineCollection(list(lines), colors=REFERENCE, linewidths=0.4))
        last.scatter(*ends[:, list(dims)].T, s=4, color=TRAIN, linewidths=0)
        for middle, share in zip(middles[:, list(dims)], shares, strict=True):
            last.plot(*middle, "X", color=VALIDATION, markersize=7, markeredgecolor="white")
            words = f"{100 * share:.0f} %"
            last.annotate(
                words,
                middle,
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
        last.set_title(f"t = 1, clipped: {_count(len(middles))}, 40 paths")
        for axis in axes:
            axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
            axis.add_patch(
                mpl.patches.Rectangle((-1, -1), 2, 2, fill=False, color=REFERENCE, lw=0.8, ls="--")
            )
            axis.grid(False)
            axis.set_xlabel(labels[0])
        axes[0].set_ylabel(labels[1])
        figure.suptitle(
            f"{type(agent).__name__}'s base flow in one state, {samples} samples; dashed: where "
            "actions may lie",
            fontsize=9,
        )
        return save_figure(figure, path)


def plot_moves(found: Moves, path: Path, names: tuple[str, ...] = ()) -> Path:
    """Draw how far base actions are refined, in which dimensions, and what Q gains by it.

    Args:
        found: of some states.
        path: a PNG file.
        names: of the action dimensions.

    Returns:
        The file written.
    """
    sizes, delta = found.sizes.flatten(), found.target_divergence
    facts = found.summary()
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 3.0), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        low = max(1e-9, min(np.quantile(sizes, 0.001), delta) / 3)
        edges = np.geomspace(low, max(sizes.max(), delta) * 3, 50)
        weights = np.full(len(sizes), 100 / len(sizes))
        left.hist(sizes.clip(low), edges.tolist(), weights=weights, color=TRAIN, alpha=0.5)
        left.axvline(facts["divergence"], color=TRAIN, label=f"mean {facts['divergence']:.2g}")
        left.axvline(delta, color=VALIDATION, linestyle="--", label=f"target {delta:.2g}")
        left.set_xscale("log")
        left.set_xlabel("mean squared refinement of a sample")
        left.set_ylabel("samples [%]")
        left.set_title("How far actions are moved")
        left.margins(y=0.35)
        left.legend(loc="upper left", frameon=True, edgecolor="none")
        displacements = found.displacements.reshape(-1, found.displacements.shape[-1])
        shown = np.arange(displacements.shape[1])
        middle.bar(shown - 0.2, displacements.mean(0), 0.4, color=TRAIN, label="mean")
        middle.bar(
            shown + 0.2, displacements.std(0), 0.4, color=VALIDATION, label="standard deviation"
        )
        middle.axhline(0, color=REFERENCE, linewidth=0.8)
        middle.set_xticks(shown, list(names) or [f"dim {d}" for d in shown])
        middle.set_ylabel("refinement, units of action")
        middle.set_title("In which dimensions")
        middle.margins(y=0.35)
        middle.legend(loc="upper right")
        gains = found.gains.flatten()
        edges = np.linspace(np.quantile(gains, 0.005), np.quantile(gains, 0.995), 50)
        if edges[0] < edges[-1]:
            right.hist(gains, edges.tolist(), weights=weights, color=TRAIN, alpha=0.5)
        right.axvline(0, color=REFERENCE, linewidth=1, linestyle="--")
        right.xaxis.set_major_locator(MaxNLocator(5))
        right.ticklabel_format(axis="x", scilimits=(-2, 3))
        right.set_xlabel("Q(refined) - Q(base)")
        right.set_ylabel("samples [%]")
        right.set_title(f"What Q gains: {100 * facts['share_uphill']:.0f} % go uphill")
        states, samples = found.gains.shape
        figure.suptitle(f"Refinement in {states} states, {samples} base actions each", fontsize=9)
        return save_figure(figure, path)


def _count(number: int) -> str:
    return f"{number} mode{'s' * (number != 1)}"
