"""Episodes on their way into a store: labelled for every goal, under a progress bar."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deflow_vision.datasets.goals import Labels
from deflow_vision.datasets.relabel import Goal, relabel_all
from deflow_vision.datasets.schema import SPLITS
from deflow_vision.datasets.writer import StoreWriter

_log = logging.getLogger(__name__)

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("episodes, {task.fields[rate]:.0f} states/s"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


@dataclass(frozen=True)
class Episode:
    """One episode of S states.

    Attributes:
        observations: (S, H, W, C) uint8 or (S, D) float32.
        actions: (S - 1, A) float32 in [-1, 1]; or (S, A), of which the last has no meaning.
        side: `qpos` and `qvel`, float32, and `button_states`, int64, where there are buttons.
        goals: (rewards, masks) of each goal, (S,) float32, where the source has them.
    """

    observations: np.ndarray
    actions: np.ndarray
    side: dict[str, np.ndarray]
    goals: Labels = field(default_factory=dict)


def write_episodes(
    writer: StoreWriter,
    goals: Mapping[str, Goal],
    episodes: Iterable[tuple[str, Episode]],
    *,
    total: int,
    title: str,
) -> None:
    """Write episodes into a store under a progress bar, with rewards and masks of every goal.

    Args:
        writer: the open store.
        goals: by their key; empty where the episodes have rewards and masks of their own.
        episodes: pairs of the split and the episode, without those that the writer has already.
        total: number of episodes of both splits, with those that the writer has already.
        title: what is made.
    """
    done = sum(writer.episodes_done(split) for split in SPLITS)
    start, states = time.monotonic(), 0
    with Progress(*_COLUMNS, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, completed=done, total=total, rate=0.0)
        for number, (split, episode) in enumerate(episodes, start=done + 1):
            labels = {**relabel_all(goals, episode.side), **episode.goals}
            writer.append_episode(
                split, episode.observations, episode.actions, labels, **episode.side
            )
            states += len(episode.observations)
            rate = states / (time.monotonic() - start)
            progress.update(bar, advance=1, rate=rate)
            # Without a terminal the bar shows only its end: say every tenth part in the log.
            tenth = number * 10 // total > (number - 1) * 10 // total
            if tenth and not progress.console.is_terminal:
                _log.info("%s: %d of %d episodes, %.0f states/s", title, number, total, rate)
