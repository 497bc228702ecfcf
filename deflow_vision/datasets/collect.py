"""Collecting OGBench's manipulation datasets with OGBench's own scripted oracles and rules.

As OGBench makes them (arXiv 2410.20092, data-generation code of release 1.2): episodes of 1,001
states toward one random target after another, and never an end at a goal. Episode i of a split is a
function of (seed, split, i): the same store whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from deflow_vision.datasets.episodes import Episode, write_episodes
from deflow_vision.datasets.relabel import environment_of, read_goals
from deflow_vision.datasets.schema import ZSTD_LEVEL
from deflow_vision.datasets.store import StoreWriter, refuse_existing
from deflow_vision.datasets.workers import in_order, start_workers, versions
from deflow_vision.envs.make import make_collection_env, make_oracles
from deflow_vision.envs.rendering import NO_DRAWING, check_profile, worker_variables
from deflow_vision.seeding import derive_seed
from deflow_vision.tasks import resolve_dataset
from deflow_vision.types import UserError

EPISODE_STATES = 1001
"""States of an episode in OGBench's datasets: 1,000 transitions and the last state."""

_STACKING = {
    "single": (0.0, 0.0),
    "double": (0.0, 0.25),
    "triple": (0.05, 0.35),
    "quadruple": (0.1, 0.5),
    "octuple": (0.0, 0.35),
}  # range from which an episode draws the probability that a target is on top of another cube
_NOISE = 0.1  # the greatest standard deviation of a noisy episode
_NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # x, y, z, yaw, gripper
_SIDE = {"qpos": np.float32, "qvel": np.float32, "button_states": np.int64}
_RANDOM_ACTIONS = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}


def collect(
    dataset: str,
    path: Path,
    *,
    episodes: int,
    val_episodes: int | None = None,
    seed: int = 0,
    num_processes: int | None = None,
    render_profile: str = "official",
    episode_states: int = EPISODE_STATES,
    compression_level: int = ZSTD_LEVEL,
) -> None:
    """Collect a dataset into a store, rewards and masks of all five goals included.

    After a kill or Ctrl-C, the same call goes on from `<path>.partial`.

    Args:
        dataset: such as "cube-double-play" or "visual-scene-noisy-v0".
        path: the store's folder, which must not exist.
        episodes: number of training episodes.
        val_episodes: number of validation episodes; by default `episodes // 10`.
        seed: what all episodes are drawn from.
        num_processes: worker processes; by default one a core. No effect on the data.
        render_profile: how frames are drawn.
        episode_states: states an episode; OGBench's datasets have 1,001.
        compression_level: zstd's, 1 to 22, see `StoreWriter`.

    Raises:
        UserError: the dataset is unknown, or has no scripted oracle, or a number is out of range.
        StoreError: `path` exists, or another process collects it, or `<path>.partial` is of other
            arguments.
        NoRendererError: it is a pixel dataset, and this machine cannot draw.
        WorkerError: an environment failed.
    """
    name, kind = _collectable(dataset)
    check_profile(render_profile)
    refuse_existing(path)
    val_episodes = episodes // 10 if val_episodes is None else val_episodes
    if episodes < 1 or val_episodes < 0 or episode_states < 2:
        raise UserError(
            f"{episodes} training and {val_episodes} validation episodes of {episode_states} "
            "states: collect at least 1 training episode, of at least 2 states."
        )
    pixels = name.startswith("visual-")
    variables = worker_variables(pixels=True) if pixels else NO_DRAWING
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(
            start_workers(
                *(Collector, name, kind, seed, episode_states, render_profile),
                variables=variables,
                num_processes=num_processes,
                num_episodes=episodes + val_episodes,
            )
        )
        goals = read_goals(name)
        numbers = {"train": episodes, "val": val_episodes}
        writer = stack.enter_context(
            StoreWriter(
                path,
                source=f"collected with OGBench's {kind} oracles",
                env_id=resolve_dataset(dataset).dataset,
                seeds={"collect": seed},
                versions=versions(pixels=pixels),
                render_profile=render_profile if pixels else None,
                compression_level=compression_level,
                goals=list(goals),
                plan={"episodes": numbers, "states of an episode": episode_states},
                **workers[0].call("layout"),
            )
        )
        jobs = [
            (split, index)
            for split, number in numbers.items()
            for index in range(writer.episodes_done(split), number)
        ]
        made = in_order(workers, jobs)
        write_episodes(writer, goals, made, total=episodes + val_episodes, title=dataset)


class Collector:
    """A worker's side: an environment and its oracles, making one episode after another.

    Args:
        name: environment, such as "visual-cube-double".
        kind: "play" or "noisy".
        seed: the collection's seed.
        episode_states: states an episode.
        render_profile: how frames are drawn.
    """

    def __init__(
        self,
        name: str,
        kind: Literal["play", "noisy"],
        seed: int,
        episode_states: int,
        render_profile: str,
    ) -> None:
        self._seed = seed
        self._noisy = kind == "noisy"
        self._episode_states = episode_states
        self._family = name.removeprefix("visual-").split("-")[0]
        self._env = make_collection_env(name, render_profile=render_profile)
        self._oracles = make_oracles(self._env, name, kind)
        self._stacking = _STACKING.get(name.split("-")[-1], (0.5, 0.5))
        arm = vars(self._env.unwrapped)
        self._targets = copy.deepcopy({key: arm[key] for key in arm if key.startswith("_target_")})

    def layout(self) -> dict[str, Any]:
        """Shapes and dtypes of an episode, as `StoreWriter` wants them."""
        episode = self._attempt(0, num_states=2)
        return {
            "observation_shape": episode.observations.shape[1:],
            "observation_dtype": episode.observations.dtype.name,
            "action_dim": episode.actions.shape[1],
            "side": {key: rows.shape[1:] for key, rows in episode.side.items()},
        }

    def episode(self, split: str, index: int) -> Episode:
        """Episode `index` of a split. One that leaves the visible part of a scene is made again."""
        root = derive_seed(self._seed, "collect", split, index)
        attempt = 0
        while True:
            episode = self._attempt(derive_seed(root, attempt), self._episode_states)
            if self._family != "scene" or cube_stays_visible(episode.side["qpos"]):
                return episode
            attempt += 1

    def _attempt(self, seed: int, num_states: int) -> Episode:
        self._forget_targets()
        observation, info = self._env.reset(seed=seed)  # seeds NumPy's generator too
        p_stack = np.random.uniform(*self._stacking)
        noise = np.random.uniform(0.0, _NOISE) * _NOISE_SHAPE
        p_random = _RANDOM_ACTIONS[self._family] if self._noisy else 0.0
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        observations, actions, states = [observation], [], [_stored(info)]
        while len(observations) < num_states:
            if np.random.uniform() < p_random:
                action = np.random.uniform(-1.0, 1.0, len(_NOISE_SHAPE))
            else:
                action = oracle.select_action(observation, info)
                if self._noisy:
                    action = action + np.random.normal(0.0, noise)
            action = np.clip(action, -1.0, 1.0)
            observation, _, _, _, info = self._env.step(action)
            observations.append(observation)
            actions.append(action)
            states.append(_stored(info))
            if oracle.done:
                # `info` stays that of the step, as in OGBench's code: for one step more a Markov
                # oracle sees the target before.
                arm = self._env.unwrapped
                arm.set_new_target(p_stack=p_stack, return_info=False)
                new_info = arm.get_reset_info()
                oracle = self._oracles[new_info["privileged/target_task"]]
                oracle.reset(observation, new_info)
        pixels = observation.dtype == np.uint8
        side = {
            key: np.asarray([state[key] for state in states], dtype)
            for key, dtype in _SIDE.items()
            if key in states[0]
        }
        return Episode(
            np.asarray(observations, np.uint8 if pixels else np.float32),
            np.asarray(actions, np.float32),
            side,
        )

    def _forget_targets(self) -> None:
        """Forget the targets of the episode before, which OGBench's reset keeps.

        Where the first drawer, window or button of an episode becomes the target, a Markov oracle
        sees the one before for a step: with it, episodes would depend on which process made what.
        """
        arm = self._env.unwrapped
        vars(arm).update(copy.deepcopy(self._targets))
        if self._family == "scene" and arm._model is not None:
            arm._model.site("drawer_handle_center_target").pos[1] = arm._target_drawer_pos
            arm._model.site("window_handle_center_target").pos[0] = arm._target_window_pos


def _stored(info: dict[str, Any]) -> dict[str, Any]:
    """The part of a step's info that a store keeps."""
    return {key: info[key] for key in _SIDE if key in info}


def cube_stays_visible(qpos: np.ndarray) -> bool:
    """Whether a scene's cube is, in every state, where the camera sees it or in the drawer.

    Args:
        qpos: simulator positions of an episode of `scene`, (S, Q).
    """
    y, z = qpos[:, 15], qpos[:, 16]
    lost = (y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))
    return not lost.any()


def _collectable(dataset: str) -> tuple[str, Literal["play", "noisy"]]:
    """The environment and the kind of a dataset that scripted oracles can make."""
    task = resolve_dataset(dataset)
    kind = task.dataset.removesuffix("-v0").split("-")[-1]
    if task.suite != "ogbench" or kind not in ("play", "noisy"):
        raise UserError(
            f"{task.dataset} comes from trained policies, not from scripted oracles: it cannot be "
            "collected. Get it with one of\n"
            f"  python scripts/data.py download {dataset}\n"
            f"  python scripts/data.py convert FILE --path data/{task.dataset}.zarr"
        )
    return environment_of(task.dataset), cast(Literal["play", "noisy"], kind)
