"""Collection, with episodes of a few steps from the real environments and oracles."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deflow_vision.datasets import collect as collecting
from deflow_vision.datasets.collect import Collector, collect, cube_stays_visible
from deflow_vision.datasets.episodes import Episode
from deflow_vision.datasets.relabel import Goal, relabel
from deflow_vision.datasets.store import StoreError, open_store, verify
from deflow_vision.envs.make import make_collection_env
from deflow_vision.envs.rendering import NO_DRAWING, NoRendererError, worker_variables
from deflow_vision.envs.states import draw_state
from deflow_vision.envs.worker import Worker, WorkerError

GOALS = {f"task{k}": Goal(cubes=np.array([[0.1 * k, 0.0, 0.02]])) for k in range(1, 6)}


class Collectors:
    """Collectors of several environments in one process, so that each test starts fast."""

    def episode(self, name: str, kind: Any, states: int, *index: Any) -> Episode:
        return Collector(name, kind, 0, states, "official").episode(*index)

    def warm_and_cold(self, name: str, kind: Any, states: int) -> list[Episode]:
        """The same episode by a collector that made another one before, and by one that did not."""
        warm, cold = (Collector(name, kind, 0, states, "official") for _ in range(2))
        warm._attempt(20, 200)  # it leaves targets behind that the next one comes to after 10 steps
        return [warm._attempt(21, states), cold._attempt(21, states)]

    def fast_and_plain(self, name: str, kind: Any, states: int) -> list[Episode]:
        """Episode 0 as it is collected, and as OGBench's own class makes it."""
        collector = Collector(name, kind, 0, states, "official")
        fast = collector.episode("train", 0)
        arm = collector._env.unwrapped
        arm.__class__ = type(arm).__mro__[1]
        return [fast, collector.episode("train", 0)]


@pytest.fixture(scope="module")
def collectors() -> Iterator[Worker]:
    with Worker(Collectors, variables=NO_DRAWING) as worker:
        yield worker


@pytest.fixture
def known_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The goals of cube-single without asking ogbench, which takes seconds."""
    monkeypatch.setattr(collecting, "read_goals", {"cube-single": GOALS}.__getitem__)


@pytest.mark.usefixtures("known_goals")
def test_the_store_is_the_same_whatever_the_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 2):
        collect(
            "cube-single-play",
            tmp_path / f"{processes}.zarr",
            episodes=2,
            val_episodes=1,
            num_processes=processes,
            episode_states=5,
        )
    one, two = (open_store(tmp_path / f"{processes}.zarr") for processes in (1, 2))
    assert one.attributes == two.attributes
    assert verify(tmp_path / "2.zarr") == []
    assert one.attributes["env_id"] == "cube-single-play-v0"
    assert one.attributes["counts"]["train"] == {"states": 10, "episodes": 2, "transitions": 8}
    assert one.val is not None
    assert len(one.val.episode_ends) == 1
    assert one.attributes["versions"].keys() == {"ogbench", "mujoco", "deflow-vision"}
    train = one.train
    assert train.goals() == list(GOALS)
    rewards, _ = relabel(GOALS["task3"], qpos=train.side["qpos"][:])
    assert np.array_equal(train.rewards("task3"), rewards)
    assert not np.array_equal(train.observations[0], train.observations[5])
    assert not np.array_equal(train.observations[0], one.val.observations[0])


class Numbers:
    """A worker in this process, with numbers for a simulator; it dies before a given episode."""

    def __init__(self, dies_before: tuple[str, int] | None = None) -> None:
        self.dies_before = dies_before
        self.asked: list[tuple[str, int]] = []
        self.waiting: list[tuple[str, int]] = []

    def call(self, method: str) -> dict[str, Any]:
        assert method == "layout"
        layout = {"observation_shape": (3,), "observation_dtype": "float32", "action_dim": 2}
        return layout | {"side": {"qpos": (21,)}}

    def send(self, method: str, split: str, index: int) -> None:
        assert method == "episode"
        self.asked.append((split, index))
        self.waiting.append((split, index))

    def receive(self) -> Episode:
        split, index = self.waiting.pop(0)
        if (split, index) == self.dies_before:
            raise WorkerError("died")
        rng = np.random.default_rng([index, len(split)])
        states, actions, qpos = (rng.normal(size=(7, d)).astype("f4") for d in (3, 2, 21))
        return Episode(states, np.tanh(actions), {"qpos": qpos})


@pytest.mark.usefixtures("known_goals")
@pytest.mark.parametrize("dies_before", [("train", 2), ("val", 1)])
def test_a_collection_whose_worker_died_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_before: tuple[str, int]
) -> None:
    def collect_with(name: str, worker: Numbers) -> Path:
        started = contextlib.nullcontext([worker])
        monkeypatch.setattr(collecting, "start_workers", lambda *_, **__: started)
        path = tmp_path / name
        collect("cube-single-play", path, episodes=4, val_episodes=2, episode_states=7)
        return path

    whole = collect_with("whole.zarr", Numbers())
    with pytest.raises(WorkerError):
        collect_with("a.zarr", Numbers(dies_before))
    assert sorted(os.listdir(tmp_path)) == ["a.zarr.partial", "whole.zarr"]
    second = Numbers()
    path = collect_with("a.zarr", second)
    assert second.asked[0] == dies_before
    assert open_store(path).attributes == open_store(whole).attributes
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "whole.zarr"]


@pytest.mark.parametrize(
    ("name", "kind", "dimension", "buttons"),
    [
        ("cube-triple", "noisy", 46, 0),
        ("scene", "play", 40, 2),
        ("scene", "noisy", 40, 2),
        ("puzzle-3x3", "noisy", 55, 9),
    ],
)
def test_every_kind_of_environment_makes_episodes_of_its_datasets_layout(
    collectors: Worker, name: str, kind: str, dimension: int, buttons: int
) -> None:
    episode = collectors.call("episode", name, kind, 40, "train", 0)
    assert episode.observations.shape == (40, dimension)
    assert episode.observations.dtype == np.float32
    assert episode.actions.shape == (39, 5)
    assert np.abs(episode.actions).max() <= 1
    assert episode.actions[:, :3].std(axis=0).min() > 0
    assert episode.side["qpos"].dtype == np.float32
    assert ("button_states" in episode.side) == (buttons > 0)
    if buttons:
        assert episode.side["button_states"].shape == (40, buttons)


def test_a_row_holds_the_simulator_state_that_its_observation_shows(collectors: Worker) -> None:
    episode = collectors.call("episode", "cube-double", "noisy", 12, "train", 3)
    assert np.array_equal(episode.observations[:, :6], episode.side["qpos"][:, :6])
    moved = np.abs(np.diff(episode.side["qpos"][:, :6], axis=0)).max(axis=1)
    assert moved.min() > 0


def test_an_episode_does_not_depend_on_those_before_it(collectors: Worker) -> None:
    warm, cold = collectors.call("warm_and_cold", "scene", "noisy", 25)
    assert np.array_equal(warm.observations, cold.observations)
    assert np.array_equal(warm.actions, cold.actions)


@pytest.mark.parametrize(("name", "kind"), [("cube-double", "play"), ("puzzle-3x3", "noisy")])
def test_computing_the_state_once_a_step_changes_no_bit(
    collectors: Worker, name: str, kind: str
) -> None:
    fast, plain = collectors.call("fast_and_plain", name, kind, 120)
    assert np.array_equal(fast.observations, plain.observations)
    assert np.array_equal(fast.actions, plain.actions)
    for key, rows in plain.side.items():
        assert np.array_equal(fast.side[key], rows)
    if kind == "noisy":
        assert np.ptp(plain.side["button_states"], axis=0).any()  # a button was pressed


def test_training_and_validation_episodes_are_different_ones(collectors: Worker) -> None:
    train = collectors.call("episode", "cube-double", "play", 2, "train", 0)
    val = collectors.call("episode", "cube-double", "play", 2, "val", 0)
    assert not np.array_equal(train.observations, val.observations)


class Loses(Collector):
    """A scene whose cube is lost in the first attempts."""

    def __init__(self) -> None:
        self._seed, self._family, self._episode_states = 0, "scene", 3
        self.seeds: list[int] = []

    def _attempt(self, seed: int, num_states: int) -> Episode:
        self.seeds.append(seed)
        qpos = np.zeros((num_states, 25))
        qpos[1, 15] = 0.3 if len(self.seeds) < 3 else 0.1
        return Episode(np.zeros((3, 2)), np.zeros((2, 5)), {"qpos": qpos})


def test_a_scene_that_loses_its_cube_is_made_again_from_another_seed() -> None:
    collector = Loses()
    assert cube_stays_visible(collector.episode("train", 0).side["qpos"])
    assert len(set(collector.seeds)) == 3


@pytest.mark.parametrize(
    ("y", "z", "visible"),
    [(0.28, 0.02, True), (0.29, 0.02, False), (-0.3, 0.07, True), (-0.3, 0.05, False)],
)
def test_a_cube_is_visible_on_the_table_and_in_the_drawer(
    y: float, z: float, visible: bool
) -> None:
    qpos = np.zeros((2, 25))
    qpos[0, 15:17] = y, z
    assert cube_stays_visible(qpos) == visible


class Drawing(Collector):
    """A collector that also draws the first state of episode 0 in another environment."""

    def drawn_with(self, profile: str) -> np.ndarray:
        env = make_collection_env("visual-cube-double", render_profile=profile)
        episode = self.episode("train", 0)
        frame = draw_state(env, {name: rows[0] for name, rows in episode.side.items()})
        env.close()
        return frame


def test_pixels_are_collected_with_the_states_that_they_show_and_in_their_render_profile() -> None:
    variables = worker_variables(pixels=True)
    arguments = ("visual-cube-double", "play", 0, 2, "draft")
    with Worker(Drawing, *arguments, variables=variables) as worker:
        episode = worker.call("episode", "train", 0)
        layout = worker.call("layout")
        errors = {
            profile: np.square(
                worker.call("drawn_with", profile) - episode.observations[0].astype(float)
            ).mean()
            for profile in ("draft", "official")
        }
    assert errors["draft"] < 0.6 < errors["official"]  # 50 dB
    assert episode.observations.shape == (2, 64, 64, 3)
    assert episode.observations.dtype == np.uint8
    assert episode.observations.std() > 5
    assert layout["side"] == {"qpos": (28,), "qvel": (26,)}
    assert layout["observation_dtype"] == "uint8"


def test_a_dataset_of_trained_experts_is_refused_with_the_ways_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"(?s)trained policies.*data.py download.*data.py convert"
    ):
        collect("antmaze-large-navigate", tmp_path / "store.zarr", episodes=1)


def test_an_unknown_render_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of: official"):
        collect("cube-single-play", tmp_path / "a.zarr", episodes=1, render_profile="best")


def test_no_episodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 training episode"):
        collect("cube-single-play", tmp_path / "a.zarr", episodes=0)


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="exists"):
        collect("cube-single-play", tmp_path, episodes=1)


def test_pixels_are_refused_before_any_work_where_nothing_can_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(NoRendererError, match="apt-get install"):
        collect("visual-cube-single-play", tmp_path / "a.zarr", episodes=1)
