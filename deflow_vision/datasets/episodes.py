"""Episodes on their way into a store: labelled for every goal, under a progress bar."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

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
    """

    observations: np.ndarray
    actions: np.ndarray
    side: dict[str, np.ndarray]


def write_episodes(
    writer: StoreWriter, goals: Mapping[str, Goal], episodes: Iterable[tuple[str, Episode]]
) -> None:
    """Write episodes into a store, then the rewards and masks of every goal for each split.

    Args:
        writer: the open store.
        goals: by their key.
        episodes: pairs of the split and the episode.
    """
    labels: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for split, episode in episodes:
        writer.append_episode(split, episode.observations, episode.actions, **episode.side)
        for goal, label in relabel_all(goals, episode.side).items():
            labels.setdefault((split, goal), []).append(label)
    for (split, goal), rows in labels.items():
        rewards, masks = (np.concatenate(column) for column in zip(*rows, strict=True))
        writer.write_goal(split, goal, rewards, masks)


def track(
    items: Iterable[tuple[str, Episode]], total: int, title: str
) -> Iterator[tuple[str, Episode]]:
    """Pass episodes on under a progress bar that also shows the rate in states."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes, {task.fields[rate]:.0f} states/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=total, rate=0.0)
        start, states = time.monotonic(), 0
        for number, item in enumerate(items, start=1):
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
