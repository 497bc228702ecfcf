"""Rewards and masks of OGBench's single-task goals, computed from stored simulator states.

The reward belongs to the state in which the action is taken (not to the one it leads to):
r = (conditions met) - (conditions), in {-n, ..., 0} for arms and {-1, 0} for mazes, and
mask = 0 where all are met, else 1, equal to `ogbench.relabel_utils` (OGBench, arXiv 2410.20092).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deflow_vision.datasets.address import refuse_address
from deflow_vision.datasets.schema import StoreError, read_all
from deflow_vision.datasets.store import add_goals, open_store
from deflow_vision.envs.make import make_env
from deflow_vision.envs.rendering import NO_DRAWING
from deflow_vision.envs.worker import run_in_worker
from deflow_vision.tasks import resolve_dataset
from deflow_vision.types import UserError

_TOLERANCE = 0.04  # metres, of a cube, the drawer and the window
_ARM_QPOS = 14  # the arm and its gripper come first in qpos, then 7 numbers a cube
_CUBE_QPOS = 7
_BALL_QPOS = 15


@dataclass(frozen=True)
class Goal:
    """What a single-task goal asks for. A field is None where the environment has no such thing.

    Attributes:
        cubes: target positions in metres, (number of cubes, 3).
        buttons: target state of each button, (number of buttons,).
        drawer: target of the drawer's slide in metres.
        window: target of the window's slide in metres.
        xy: target position in a maze, (2,).
        xy_qpos: where in qpos the position that must reach `xy` begins: the body's or the ball's.
        xy_tolerance: how near is reached.
    """

    cubes: np.ndarray | None = None
    buttons: np.ndarray | None = None
    drawer: float | None = None
    window: float | None = None
    xy: np.ndarray | None = None
    xy_qpos: int = 0
    xy_tolerance: float = 0.0


def read_goals(name: str) -> dict[str, Goal]:
    """The goals of an environment, "task1" to "task5", read from ogbench in a worker process.

    Args:
        name: an OGBench environment without the dataset's type, such as "cube-double" or
            "visual-scene" (whose goals are those of "scene").

    Returns:
        Goal by its key.
    """
    goals: dict[str, Goal] = run_in_worker(
        goals_of, name.removeprefix("visual-"), variables=NO_DRAWING
    )
    return goals


def goals_of(name: str) -> dict[str, Goal]:
    """`read_goals` in this process, which imports ogbench and mujoco here."""
    env = make_env(f"{name}-singletask-v0").unwrapped
    goals = {}
    for number, task in enumerate(env.task_infos, start=1):
        # Scene nests its targets under "goal"; the others prefix them with "goal_".
        target = task.get("goal") or {
            key.removeprefix("goal_"): value for key, value in task.items() if "goal_" in key
        }
        goals[f"task{number}"] = Goal(
            cubes=target.get("xyzs", target.get("block_xyzs")),
            buttons=target.get("button_states"),
            drawer=target.get("drawer_pos"),
            window=target.get("window_pos"),
            xy=np.asarray(target["xy"]) if "xy" in target else None,
            xy_qpos=_BALL_QPOS if name.startswith("antsoccer") else 0,
            xy_tolerance=float(getattr(env, "_goal_tol", 0.0)),
        )
    env.close()
    return goals


def relabel(
    goal: Goal, *, qpos: np.ndarray, button_states: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reward and mask of each state for a goal.

    Args:
        goal: from `read_goals`.
        qpos: simulator positions, (N, Q), of the dtype in which they are stored.
        button_states: (N, number of buttons), for goals with buttons.

    Returns:
        rewards (N,) float32, number of conditions met minus number of conditions; masks (N,)
        float32, 0 where all are met, else 1.

    Raises:
        ValueError: the goal has buttons and `button_states` is None.
    """
    met = np.concatenate(_conditions(goal, qpos, button_states), axis=1)
    rewards: np.ndarray = met.sum(axis=1) - met.shape[1]
    masks: np.ndarray = np.where(met.all(axis=1), 0.0, 1.0)
    return rewards.astype(np.float32), masks.astype(np.float32)


def relabel_store(path: Path) -> None:
    """Write rewards and masks of all five goals into an OGBench store, for every split.

    For one's own episodes of an OGBench environment: what is collected, converted or rendered has
    them. Rewards and masks that the store has of these goals are replaced.

    Args:
        path: a store with `qpos` (and `button_states` where there are buttons), of which
            `env_id` is an OGBench dataset.

    Raises:
        StoreError: it lacks the simulator states.
        UserError: it is not an OGBench dataset.
    """
    refuse_address(path)
    store = open_store(path)
    task = resolve_dataset(str(store.attributes["env_id"]))
    if task.suite != "ogbench":
        raise UserError(f"{path} holds {task.dataset}, which has no goals of OGBench's.")
    goals = read_goals(environment_of(task.dataset))
    buttons = any(goal.buttons is not None for goal in goals.values())
    labels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name, split in store.splits.items():
        if split is None:
            continue
        for needed in ("qpos", "button_states") if buttons else ("qpos",):
            if needed not in split.side:
                raise StoreError(
                    f"{path} has no {name}/{needed}, from which rewards are computed. Write it "
                    "with its simulator states."
                )
        side = {key: read_all(array) for key, array in split.side.items() if key != "qvel"}
        labels[name] = relabel_all(goals, side)
    add_goals(path, labels)


def relabel_all(
    goals: Mapping[str, Goal], side: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rewards and masks of several goals.

    Args:
        goals: by their key.
        side: `qpos` and, where there are buttons, `button_states`.

    Returns:
        (rewards, masks) by goal, as `relabel`.
    """
    return {
        key: relabel(goal, qpos=side["qpos"], button_states=side.get("button_states"))
        for key, goal in goals.items()
    }


def environment_of(dataset: str) -> str:
    """The OGBench environment of a dataset: "cube-double" for "cube-double-play-v0"."""
    return resolve_dataset(dataset).dataset.removesuffix("-v0").rpartition("-")[0]


def _conditions(goal: Goal, qpos: np.ndarray, button_states: np.ndarray | None) -> list[np.ndarray]:
    """Which conditions each state meets, blocks of (N, number) bool."""
    conditions = []
    slides = _ARM_QPOS
    if goal.cubes is not None:
        num_cubes = len(goal.cubes)
        slides += num_cubes * _CUBE_QPOS
        cubes = qpos[:, _ARM_QPOS:slides].reshape(len(qpos), num_cubes, _CUBE_QPOS)[:, :, :3]
        conditions.append(np.linalg.norm(goal.cubes - cubes, axis=-1) <= _TOLERANCE)
    if goal.buttons is not None:
        if button_states is None:
            raise ValueError("this goal has buttons: give button_states.")
        slides += len(goal.buttons)
        conditions.append(button_states == goal.buttons)
    for offset, target in enumerate((goal.drawer, goal.window)):
        if target is not None:
            distance = np.abs(qpos[:, slides + offset] - target)
            conditions.append((distance <= _TOLERANCE)[:, None])
    if goal.xy is not None:
        position = qpos[:, goal.xy_qpos : goal.xy_qpos + 2]
        distance = np.linalg.norm(position - goal.xy, axis=-1)
        conditions.append((distance <= goal.xy_tolerance)[:, None])
    return conditions
