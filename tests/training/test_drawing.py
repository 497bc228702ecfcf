"""The check that a policy is shown in evaluation what its dataset shows, with a scripted pool."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from deflow_vision.datasets.store import StoreWriter, open_store
from deflow_vision.envs.rendering import NoRendererError
from deflow_vision.training import restore, setup
from deflow_vision.training.drawing import check_drawing
from deflow_vision.training.loop import train
from deflow_vision.training.run_folder import find_dataset
from tests.training.conftest import write_task_store


class Pool:
    """Draws a state as a frame of the value of its first number, brightened."""

    env_id = "visual-cube-single-singletask-task1-v0"
    observation_dtype = "uint8"

    def __init__(self, brighter=0):
        self.brighter = brighter
        self.drawn = 0

    def state_shapes(self):
        return {"qpos": (3,), "qvel": (2,)}

    def draw(self, state):
        self.drawn += 1
        return np.full((4, 4, 3), state["qpos"][0] + self.brighter, np.uint8)


def write(path, side=("qpos", "qvel")):
    states = {"qpos": np.zeros((9, 3)), "qvel": np.zeros((9, 2))}
    states["qpos"][:] = np.arange(9)[:, None]
    with StoreWriter(
        path,
        source="test",
        env_id="visual-cube-single-play-v0",
        seeds=0,
        observation_shape=(4, 4, 3),
        observation_dtype="uint8",
        action_dim=5,
        side={name: states[name].shape[1:] for name in side},
    ) as writer:
        frames = np.arange(9, dtype=np.uint8)[:, None, None, None] + np.zeros((4, 4, 3), np.uint8)
        writer.append_episode("train", frames, np.zeros((8, 5)), **{n: states[n] for n in side})
    return open_store(path)


@pytest.fixture(autouse=True)
def _log_all(caplog):
    caplog.set_level(logging.INFO)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_frames_drawn_as_they_are_stored_warn_of_nothing(tmp_path, caplog):
    pool = Pool()
    check_drawing(pool, write(tmp_path / "a.zarr"))
    assert pool.drawn == 6
    assert not warnings(caplog)
    assert "6 stored frames" in caplog.text


def test_frames_drawn_otherwise_are_warned_of_with_the_command_that_shows_them(tmp_path, caplog):
    check_drawing(Pool(brighter=5), write(tmp_path / "a.zarr"))
    (warning,) = warnings(caplog)
    assert "PSNR 34.2 dB" in warning
    assert f"data.py verify {tmp_path / 'a.zarr'} --render --picture" in warning


def test_what_has_no_states_to_draw_is_not_checked_and_says_so(tmp_path, caplog):
    pool = Pool()
    check_drawing(pool, write(tmp_path / "a.zarr", side=()))
    check_drawing(pool, None)
    assert pool.drawn == 0
    assert not warnings(caplog)
    assert "no simulator states" in caplog.text
    assert "is not here" in caplog.text


def test_half_a_state_is_warned_of_and_stops_nothing(tmp_path, caplog):
    check_drawing(Pool(), write(tmp_path / "a.zarr", side=("qpos",)))
    (warning,) = warnings(caplog)
    assert "has no train/qvel" in warning


def test_a_state_task_is_not_checked(tmp_path, caplog):
    pool = Pool()
    pool.observation_dtype = "float32"
    check_drawing(pool, None)
    assert not caplog.records


class PoolAsked(Exception):
    """Raised in place of making environments, with what was asked of them."""


@pytest.fixture
def asked(monkeypatch):
    def raise_arguments(*_, **arguments):
        raise PoolAsked(arguments)

    monkeypatch.setattr(setup, "EnvPool", raise_arguments)
    monkeypatch.setattr(restore, "EnvPool", raise_arguments)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("kind", "resolution"), [("pixels", 16), ("state", None)])
def test_training_evaluates_at_the_resolution_of_its_dataset(tmp_path, configure, kind, resolution):
    with pytest.raises(PoolAsked) as caught:
        train(configure(kind, tmp_path / "run", "--eval.episodes", "1"))
    assert caught.value.args[0]["resolution"] == resolution


@pytest.mark.usefixtures("asked")
def test_a_policy_is_evaluated_in_frames_drawn_as_those_it_was_trained_on(tmp_path, configure):
    path = str(write_task_store(tmp_path / "fast.zarr", "pixels", render_profile="fast"))
    run = train(configure("pixels", tmp_path / "run", "--data.path", path))
    with pytest.raises(PoolAsked) as in_training:
        train(configure("pixels", tmp_path, "--data.path", path, "--eval.episodes", "1"))
    with pytest.raises(PoolAsked) as again:
        restore.evaluate_run(run, tmp_path / "out", episodes=1, videos=0, num_envs=1)
    for caught in (in_training, again):
        assert caught.value.args[0]["render_profile"] == "fast"
        assert caught.value.args[0]["resolution"] == 16


def test_where_nothing_can_draw_a_pixel_run_leaves_no_folder(tmp_path, configure, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(NoRendererError, match="switches drawing off"):
        train(configure("pixels", tmp_path / "run", "--eval.episodes", "1"))
    assert not (tmp_path / "run").exists()


def test_a_check_that_fails_leaves_no_environment_running(tmp_path, configure, monkeypatch):
    def fail(pool, store):
        pools.append(pool)
        raise KeyboardInterrupt

    class Closing(Pool):
        closed = False

        def __init__(self, *_, **__):
            super().__init__()

        def close(self):
            self.closed = True

    pools = []
    monkeypatch.setattr(setup, "EnvPool", Closing)
    monkeypatch.setattr(setup, "check_drawing", fail)
    with pytest.raises(KeyboardInterrupt):
        train(configure("pixels", tmp_path / "run", "--eval.episodes", "1"))
    assert pools[0].closed


def test_a_runs_dataset_is_found_while_it_is_there_and_the_same(tmp_path, configure, stores):
    run = tmp_path / "run"
    train(configure("state", run))
    found = find_dataset(run)
    assert found is not None
    assert found.path == stores["state"].resolve()
    record = run / "environment.json"
    record.write_text(record.read_text().replace(found.attributes["digests"]["train/actions"], "0"))
    assert find_dataset(run) is None
