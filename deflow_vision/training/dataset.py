"""The dataset of a task, checked against the task."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from deflow_vision.config import DataConfig, TrainConfig
from deflow_vision.datasets.address import locate
from deflow_vision.datasets.block_cache import BlockCache
from deflow_vision.datasets.likeness import resolution_of
from deflow_vision.datasets.schema import map_blocks, read_rows
from deflow_vision.datasets.store import Store, missing_message, open_store
from deflow_vision.tasks import Task
from deflow_vision.types import Spec, UserError

log = logging.getLogger(__name__)


def open_configured(data: DataConfig) -> Store:
    """Open the store that a resolved configuration names; one at an address, with its cache.

    Raises:
        UserError: there is none, it cannot be read, or the cache cannot be written.
    """
    path = locate(data.path or "")
    if isinstance(path, Path):
        return open_store(path)
    cache = None
    if data.cache_gib > 0:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deflow-vision"
        cache = BlockCache((data.cache or folder).expanduser(), int(data.cache_gib * 2**30))
    return open_store(path, cache, retry_seconds=60 * data.retry_minutes)


def open_task_store(config: TrainConfig, task: Task) -> Store:
    """Open the dataset of a task and check that it is that dataset.

    Raises:
        UserError: there is none, or it is of another task or kind of observation.
    """
    path = locate(config.data.path or "")
    if isinstance(path, Path) and not path.exists():
        raise UserError(missing_message(path, task.dataset))
    store = open_configured(config.data)
    have = store.attributes["env_id"]
    if have != task.dataset:
        raise UserError(
            f"{path} holds {have}, the task {task.name} needs {task.dataset}: pass another "
            "--data.path or --task."
        )
    if task.goal_key not in store.train.goals():
        raise UserError(
            f"{path} has no rewards for {task.goal_key}, only for "
            f"{', '.join(store.train.goals()) or 'no goal'}."
        )
    if task.pixels:
        resolution_of(store)  # refuses frames that no environment draws, before anything is written
    if task.deviation:
        log.info("the environment of %s has %s", task.name, task.deviation)
    return store


def make_spec(store: Store, task: Task, frame_stack: int) -> Spec:
    """What an agent must know of the dataset."""
    *image, channels = store.train.observations.shape[1:]
    return Spec(
        observation_shape=(*image, channels * frame_stack),
        observation_dtype="uint8" if store.train.pixels else "float32",
        action_dim=int(store.train.actions.shape[1]),
        reward_range=value_range(store.train.labels(task.goal_key)[0]),
    )


def value_range(array: Any) -> tuple[float, float]:
    """The least and the greatest value of an array of a store, which is read block by block.

    Raises:
        StoreError: a damaged block.
    """

    def read(start: int, stop: int) -> tuple[float, float]:
        values = read_rows(array, start, stop)
        return float(values.min()), float(values.max())

    least, greatest = zip(*map_blocks(read, array), strict=True)
    return min(least), max(greatest)
