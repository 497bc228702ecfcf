"""Where things are, against what the environments observe."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.envs.make import make_env
from deflow_vision.envs.positions import arm_positions
from deflow_vision.envs.rendering import NO_DRAWING
from deflow_vision.envs.worker import run_in_worker

CENTRE = np.array([0.425, 0, 0])


def observed(name):
    """Observations of a few random steps, and the positions that are read from their states."""
    env = make_env(f"{name}-singletask-v0")
    rng = np.random.default_rng(0)
    observations, qpos = [], []
    env.reset(seed=0)
    for _ in range(6):
        observation, _, _, _, info = env.step(rng.uniform(-1, 1, 5))
        observations.append(observation)
        qpos.append(info["qpos"])
    env.close()
    return np.stack(observations), np.stack(qpos), arm_positions(name, np.stack(qpos))


@pytest.fixture(scope="module")
def cubes():
    return run_in_worker(observed, "cube-double", variables=NO_DRAWING)


def test_effector_gripper_and_cubes_are_where_the_environment_observes_them(cubes):
    observations, _, places = cubes
    assert list(places) == ["effector", "gripper", "cube 0", "cube 1"]
    np.testing.assert_allclose(places["effector"], observations[:, 12:15] / 10 + CENTRE, atol=2e-3)
    np.testing.assert_allclose(places["gripper"], observations[:, 17:18] / 3, atol=2e-2)
    for cube, start in (("cube 0", 19), ("cube 1", 28)):
        seen = observations[:, start : start + 3] / 10 + CENTRE
        np.testing.assert_allclose(places[cube], seen, atol=2e-3)
    assert places["effector"].std(0).min() > 1e-3  # it moved


def test_drawer_and_window_are_read_too():
    _, qpos, places = run_in_worker(observed, "scene", variables=NO_DRAWING)
    assert set(places) == {"effector", "gripper", "cube 0", "drawer", "window"}
    np.testing.assert_allclose(places["drawer"][:, 0], qpos[:, 23], rtol=1e-6)
    np.testing.assert_allclose(places["window"][:, 0], qpos[:, 24], rtol=1e-6)
