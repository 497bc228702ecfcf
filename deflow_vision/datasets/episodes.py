"""Episodes on their way into a store: labelled for every goal, under a progress bar."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
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
from deflow_vision.datasets.store import StoreWriter

_log = logging.getLogger(__name__)


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
    writer: StoreWriter, goals: Mapping[str, Goal], episodes: Iterable[tuple[str, Episode]]
) -> None:
    """Write episodes into a store, with rewards and masks of every goal.

    Args:
        writer: the open store.
        goals: by their key; empty where the episodes have rewards and masks of their own.
        episodes: pairs of the split and the episode, without those that the writer has already.
    """
    for split, episode in episodes:
        labels = {**relabel_all(goals, episode.side), **episode.goals}
        writer.append_episode(split, episode.observations, episode.actions, labels, **episode.side)


def track(
    items: Iterable[tuple[str, Episode]], total: int, title: str, done: int = 0
) -> Iterator[tuple[str, Episode]]:
    """Pass episodes on under a progress bar that also shows the rate in states.

    Args:
        items: pairs of the split and the episode, those still to come.
        total: number of episodes, those that are done already included.
        title: what is made.
        done: so many were written by a run before.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes, {task.fields[rate]:.0f} states/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=total, completed=done, rate=0.0)
        start, states = time.monotonic(), 0
        for number, item in enumerate(items, start=done + 1):
            states += len(item[1].observations)
            rate = states / (time.monotonic() - start)
            progress.update(bar, advance=1, rate=rate)
            # Without a terminal the bar shows only its end: say every tenth part in the log.
            if (
                not progress.console.is_terminal
                and number * 10 // total > (number - 1) * 10 // total
            ):
                _log.info("%s: %d of %d episodes, %.0f states/s", title, number, total, rate)
            yield item
