"""What a run came to, in a few lines, from nothing but its folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from deflow_vision.analysis.tables import read_table
from deflow_vision.config import from_yaml


def summarise(run_dir: Path, published_steps: int) -> str:
    """Success or return at the start and at the end, the best-known files, how short the run was.

    Args:
        run_dir: a finished run folder.
        published_steps: updates of the published protocol for its task.

    Returns:
        Text for a terminal.
    """
    config = from_yaml(run_dir / "config.yaml")
    lines, solved = [f"Run folder: {run_dir}"], 0.0
    if (run_dir / "episodes.csv").is_file():
        episodes = read_table(run_dir / "episodes.csv", ("step", "return", "length", "capped"))
        lines += [] if episodes.empty else _successes(episodes)
        if "success" in episodes and not episodes.empty:
            solved = episodes[episodes["step"] == episodes["step"].max()]["success"].mean()
    if (run_dir / "report.html").is_file():
        lines.append(f"Report: {run_dir / 'report.html'}")
    for name, what in (("plots", "Curves"), ("videos", "Videos"), ("checkpoints", "Checkpoints")):
        if any((run_dir / name).glob("*")):
            lines.append(f"{what}: {run_dir / name}")
    steps = config.offline_steps
    if steps < published_steps:
        hope = ": a run this short does not solve the task" if solved == 0 else ""
        lines += [
            f"These were {steps:,} of the {published_steps:,} updates of the published "
            f"protocol{hope}. The full one:",
            f"  accelerate launch scripts/train.py --task {config.task} --algo {config.algo}",
        ]
    return "\n".join(lines)


def _successes(episodes: pd.DataFrame) -> list[str]:
    groups = episodes.groupby("step")
    lines = []
    for step in dict.fromkeys((episodes["step"].min(), episodes["step"].max())):
        group = groups.get_group(step)
        capped = f", cut at {group['length'].max()} steps" if group["capped"].any() else ""
        if "success" in group and group["success"].notna().all():
            what, value = "Success", f"{100 * group['success'].mean():.0f}%"
        else:  # somebody's own environment need not report it
            what, value = "Mean return", f"{group['return'].mean():.4g}"
        lines.append(f"{what} after {step:,} updates: {value} of {len(group)} episodes{capped}")
    return lines
