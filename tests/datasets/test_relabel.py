"""Rewards and masks, against ogbench's own function on every goal, in a worker process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deflow_vision.datasets import relabel as relabelling
from deflow_vision.datasets.relabel import Goal, environment_of, goals_of, relabel, relabel_store
from deflow_vision.datasets.store import StoreError, StoreWriter, open_store, verify
from deflow_vision.envs.make import make_env
from deflow_vision.envs.rendering import NO_DRAWING
from deflow_vision.envs.worker import Worker
from deflow_vision.types import UserError

ARMS = ("cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene", "puzzle-3x3")
PUZZLES = ("puzzle-4x4", "puzzle-4x5", "puzzle-4x6")
MAZES = ("pointmaze-medium", "antmaze-large", "antsoccer-arena", "humanoidmaze-medium")
NUM_STATES = 12


class Reference:
    """What ogbench says, on states of a real environment moved onto and near its goals."""

    def labels(self, name: str) -> dict[str, tuple[dict[str, np.ndarray], Goal, Any, Any]]:
        """By goal: states, our goal, ogbench's rewards and masks."""
        from ogbench.relabel_utils import relabel_dataset

        env = make_env(f"{name}-singletask-task1-v0")
        arm = env.unwrapped
        generator = np.random.default_rng(0)
        labels = {}
        for number, goal in enumerate(goals_of(name).values(), start=1):
            arm._reward_task_id = number
            env.reset(seed=number)
            data = self._states(env, goal, generator)
            states = dict(data)
            relabel_dataset(name, env, data)
            labels[f"task{number}"] = (states, goal, data["rewards"], data["masks"])
        return labels

    def _states(self, env: Any, goal: Goal, generator: Any) -> dict[str, np.ndarray]:
        """A few random steps; then states that meet all, some and nearly all conditions."""
        arm, qpos, buttons = env.unwrapped, [], []
        for _ in range(NUM_STATES):
            env.step(generator.uniform(-1, 1, env.action_space.shape))
            qpos.append((arm._data if goal.xy is None else arm.data).qpos.copy())
            buttons.append(getattr(arm, "_cur_button_states", np.zeros(0, int)).copy())
        states = {"qpos": np.asarray(qpos, np.float32), "button_states": np.asarray(buttons)}
        place(states, goal, slice(4, 12))
        offsets = generator.uniform(-0.03, 0.03, (4, states["qpos"].shape[1]))
        states["qpos"][8:] += offsets.astype(np.float32)  # about half of them within 0.04 m
        if goal.buttons is not None:
            states["button_states"][10:, 0] ^= 1
        return states


def place(states: dict[str, np.ndarray], goal: Goal, rows: slice) -> None:
    """Write a goal into stored states, by the names of the fields and not by `relabel`'s code."""
    qpos = states["qpos"]
    if goal.cubes is not None:
        for cube, xyz in enumerate(goal.cubes):
            qpos[rows, 14 + 7 * cube : 17 + 7 * cube] = xyz
    if goal.buttons is not None:
        states["button_states"][rows] = goal.buttons
    if goal.drawer is not None:
        qpos[rows, -2], qpos[rows, -1] = goal.drawer, goal.window
    if goal.xy is not None:
        qpos[rows, goal.xy_qpos : goal.xy_qpos + 2] = goal.xy


@pytest.fixture(scope="module")
def reference() -> Iterator[Worker]:
    with Worker(Reference, variables=NO_DRAWING) as worker:
        yield worker


@pytest.mark.parametrize("name", ARMS + PUZZLES + MAZES)
def test_rewards_and_masks_equal_those_of_ogbench_on_every_goal(
    reference: Worker, name: str
) -> None:
    labels = reference.call("labels", name)
    assert list(labels) == ["task1", "task2", "task3", "task4", "task5"]
    for key, (states, goal, expected_rewards, expected_masks) in labels.items():
        rewards, masks = relabel(goal, **states)
        assert rewards.dtype == expected_rewards.dtype == np.float32, key
        assert masks.dtype == expected_masks.dtype == np.float32, key
        assert np.array_equal(rewards, expected_rewards), key
        assert np.array_equal(masks, expected_masks), key
        assert masks[4:8].max() == 0, f"{key}: the hand-made successes are none"
        assert rewards[4:8].max() == 0, key


def test_the_reward_counts_the_conditions_that_are_not_met() -> None:
    goal = Goal(cubes=np.array([[0.4, 0.1, 0.02], [0.4, -0.1, 0.02]]))
    qpos = np.zeros((3, 28), np.float32)
    qpos[1:, 14:17] = [0.4, 0.1, 0.02]
    qpos[2, 21:24] = [0.4, -0.1, 0.05]
    rewards, masks = relabel(goal, qpos=qpos)
    assert rewards.tolist() == [-2, -1, 0]
    assert masks.tolist() == [1, 1, 0]


def test_a_cube_counts_up_to_four_centimetres_away() -> None:
    goal = Goal(cubes=np.array([[0.0, 0.0, 0.0]]))
    qpos = np.zeros((2, 21))
    qpos[:, 15] = 0.0399, 0.0401
    assert relabel(goal, qpos=qpos)[0].tolist() == [0, -1]


def test_a_goal_with_buttons_asks_for_their_states() -> None:
    with pytest.raises(ValueError, match="give button_states"):
        relabel(Goal(buttons=np.array([0, 1])), qpos=np.zeros((2, 20)))


def test_a_dataset_names_its_environment() -> None:
    assert environment_of("visual-cube-double-play-v0") == "visual-cube-double"
    assert environment_of("antsoccer-arena-navigate-v0") == "antsoccer-arena"


def write(path: Path, **side: np.ndarray) -> Path:
    with StoreWriter(
        path,
        source="test",
        env_id="puzzle-3x3-play-v0",
        seeds=0,
        observation_shape=(2,),
        observation_dtype="float32",
        action_dim=5,
        side={key: rows.shape[1:] for key, rows in side.items()},
    ) as writer:
        for split in ("train", "val"):
            writer.append_episode(split, np.zeros((4, 2)), np.zeros((3, 5)), **side)
    return path


def test_a_converted_store_gets_all_goals_in_both_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = np.arange(9) % 2
    goals = {"task1": Goal(buttons=wanted), "task2": Goal(buttons=1 - wanted)}
    monkeypatch.setattr(relabelling, "read_goals", {"puzzle-3x3": goals}.__getitem__)
    buttons = np.stack([wanted, 1 - wanted, wanted, np.zeros(9, int)])
    path = write(tmp_path / "store.zarr", qpos=np.zeros((4, 23)), button_states=buttons)
    relabel_store(path)
    for split in open_store(path).splits.values():
        assert split is not None
        assert split.goals() == ["task1", "task2"]
        assert split.rewards("task1").tolist() == [0, -9, 0, -4]
        assert split.masks("task2").tolist() == [1, 0, 1, 1]
    assert verify(path) == []


def test_a_store_without_simulator_states_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relabelling, "read_goals", lambda name: {})
    with pytest.raises(StoreError, match="has no train/qpos"):
        relabel_store(write(tmp_path / "store.zarr"))


def test_a_store_without_the_buttons_that_a_goal_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goals = {"task1": Goal(buttons=np.zeros(9, int))}
    monkeypatch.setattr(relabelling, "read_goals", lambda name: goals)
    with pytest.raises(StoreError, match="has no train/button_states"):
        relabel_store(write(tmp_path / "store.zarr", qpos=np.zeros((4, 23))))


def test_a_dataset_of_another_suite_has_no_goals_to_label(make_store: Any) -> None:
    with pytest.raises(UserError, match="no goals of OGBench's"):
        relabel_store(make_store(env_id="antmaze-umaze-v2"))
