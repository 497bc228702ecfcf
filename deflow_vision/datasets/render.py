"""Frames of stored simulator states: a pixel store out of a state store, or out of another one.

The frames are those that OGBench's pixel environment draws of these states in an episode, with any
resolution and render profile. Everything else is copied: actions, episodes, simulator states, and
the rewards and masks of all goals, which share the frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deflow_vision.datasets.card import checksum
from deflow_vision.datasets.drawable import check_states, visual_dataset
from deflow_vision.datasets.episodes import Episode, write_episodes
from deflow_vision.datasets.relabel import environment_of
from deflow_vision.datasets.schema import ZSTD_LEVEL, read_rows
from deflow_vision.datasets.store import (
    StoreWriter,
    open_store,
    refuse_existing,
)
from deflow_vision.datasets.workers import in_order, start_workers, versions
from deflow_vision.envs.make import make_collection_env
from deflow_vision.envs.rendering import check_frame, check_profile, worker_variables
from deflow_vision.envs.states import draw_state, state_shapes
from deflow_vision.types import UserError

RESOLUTION = 64
"""Pixels a side of OGBench's pixel datasets."""


def render(
    source: Path | str,
    path: Path,
    *,
    resolution: int = RESOLUTION,
    render_profile: str = "official",
    num_processes: int | None = None,
    compression_level: int = ZSTD_LEVEL,
) -> None:
    """Draw the states of a store into a pixel store of the same episodes.

    After a kill or Ctrl-C, the same call goes on from `<path>.partial`.

    Args:
        source: a store with `qpos`, `qvel` and, where there are buttons, `button_states`.
        path: the new store's folder, which must not exist.
        resolution: pixels a side.
        render_profile: how frames are drawn.
        num_processes: worker processes; by default one a core. No effect on the data.
        compression_level: zstd's, 1 to 22, see `StoreWriter`.

    Raises:
        UserError: the source's dataset has no pixel task, or a number is out of range.
        StoreError: the source cannot be read or lacks its simulator states; `path` exists, or
            another process writes it, or `<path>.partial` is of other arguments.
        NoRendererError: this machine cannot draw.
        WorkerError: an environment failed.
    """
    store = open_store(source)
    dataset = visual_dataset(store)
    check_profile(render_profile)
    refuse_existing(path)
    if resolution < 1:
        raise UserError(f"a resolution of {resolution}: it must be 1 or more pixels a side.")
    splits = {name: split for name, split in store.splits.items() if split is not None}
    numbers = {name: len(split.episode_ends) for name, split in splits.items()}
    train, facts = store.train, store.attributes
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(
            start_workers(
                *(Renderer, source, render_profile, resolution),
                variables=worker_variables(pixels=True),
                num_processes=num_processes,
                num_episodes=sum(numbers.values()),
            )
        )
        side = workers[0].call("state_shapes")
        for split in splits.values():
            check_states(store, split, side)
        writer = stack.enter_context(
            StoreWriter(
                path,
                source=(
                    f"rendered from {facts['env_id']} with the checksum {checksum(store)}, "
                    f"{facts['source']}"
                ),
                env_id=dataset,
                seeds=facts["seeds"],
                observation_shape=(resolution, resolution, 3),
                observation_dtype="uint8",
                action_dim=train.actions.shape[1],
                side=side,
                goals=train.goals(),
                versions={
                    **{f"source's {name}": value for name, value in facts["versions"].items()},
                    **versions(pixels=True),
                },
                render_profile=render_profile,
                compression_level=compression_level,
                plan={"episodes": numbers},
            )
        )
        jobs = [
            (name, index)
            for name, number in numbers.items()
            for index in range(writer.episodes_done(name), number)
        ]
        drawn = in_order(workers, jobs)
        write_episodes(writer, {}, drawn, total=sum(numbers.values()), title=dataset)


class Renderer:
    """A worker's side: the pixel environment of a store, which draws the store's states.

    Args:
        source: the store's folder.
        render_profile: how frames are drawn.
        resolution: pixels a side.
    """

    def __init__(self, source: Path | str, render_profile: str, resolution: int) -> None:
        self._store = open_store(source)
        self._name = environment_of(visual_dataset(self._store))
        self._env = make_collection_env(
            self._name, render_profile=render_profile, resolution=resolution
        )

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a state consists of, see `states.state_shapes`."""
        return state_shapes(self._env)

    def draw(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """The frame of one state, (H, W, 3) uint8, see `states.draw_state`."""
        frame = draw_state(self._env, state)
        check_frame(frame, self._name)
        return frame

    def episode(self, name: str, index: int) -> Episode:
        """Episode `index` of the split `name`, with frames."""
        split = self._store.splits[name]
        assert split is not None
        start = int(split.episode_ends[index - 1]) if index else 0
        stop = int(split.episode_ends[index])

        def rows(array: Any) -> np.ndarray:
            return read_rows(array, start, stop)

        side = {key: rows(split.side[key]) for key in self.state_shapes()}
        labels = {goal: split.labels(goal) for goal in split.goals()}
        states = ({key: side[key][i] for key in side} for i in range(stop - start))
        return Episode(
            np.stack([self.draw(state) for state in states]),
            rows(split.actions),
            side,
            {goal: (rows(rewards), rows(masks)) for goal, (rewards, masks) in labels.items()},
        )

    def close(self) -> None:
        """Free the OpenGL context."""
        self._env.close()
