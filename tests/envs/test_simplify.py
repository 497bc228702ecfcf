"""Render profiles: what they change of a model, and how like the official frames theirs are."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from deflow_vision.envs.make import make_collection_env, make_oracles
from deflow_vision.envs.pool import EnvPool
from deflow_vision.envs.rendering import RENDER_PROFILES, Savings, worker_variables
from deflow_vision.envs.simplify import ARM_MESHES, apply, cluster, draw_with
from deflow_vision.envs.states import draw_state, state_shapes
from deflow_vision.envs.worker import Worker
from deflow_vision.types import UserError

PROFILES = [name for name in RENDER_PROFILES if name != "official"]


def box(squares: int) -> tuple[np.ndarray, np.ndarray]:
    """A cube from 0 to 1, each side of squares x squares x 2 triangles, welded."""
    grid = np.indices((squares + 1, squares + 1)).reshape(2, -1).T / squares
    row, column = np.indices((squares, squares)).reshape(2, -1)
    a, b = row * (squares + 1) + column, (row + 1) * (squares + 1) + column
    side = np.concatenate([np.stack([a, b, b + 1], 1), np.stack([a, b + 1, a + 1], 1)])
    points, faces = [], []
    for axis in range(3):
        for level in (0, 1):
            faces.append((side if level else side[:, ::-1]) + len(grid) * len(points))
            points.append(np.roll(np.insert(grid, 2, level, axis=1), axis + 1, axis=1))
    vertices, welded = np.unique(np.concatenate(points), axis=0, return_inverse=True)
    return vertices, welded[np.concatenate(faces)]


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Of a closed mesh; negative where its faces look inwards."""
    a, b, c = vertices[faces.T]
    return float(np.sum(a * np.cross(b, c)) / 6)


def test_a_clustered_cube_keeps_its_corners_and_its_volume() -> None:
    vertices, faces = box(12)
    assert volume(vertices, faces) == pytest.approx(1.0)
    fewer, _ = cluster(vertices, faces, 0.3)
    assert len(fewer) < len(faces) / 5
    assert volume(vertices, fewer) == pytest.approx(1.0)
    corners = np.flatnonzero(np.isin(vertices, (0, 1)).all(axis=1))
    assert set(corners) <= set(fewer.ravel())


def test_no_clustered_face_is_collapsed_or_double() -> None:
    vertices, faces = box(12)
    fewer, _ = cluster(vertices, faces, 0.4)
    assert all(len(set(face)) == 3 for face in fewer.tolist())
    assert len({frozenset(face) for face in fewer.tolist()}) == len(fewer)


def test_each_new_corner_takes_the_normal_of_an_old_one_in_its_cell() -> None:
    vertices, faces = box(12)
    fewer, sources = cluster(vertices, faces, 0.3)
    distances = np.abs(vertices[faces.ravel()[sources]] - vertices[fewer])
    assert distances.max() <= 0.3
    assert (sources // 3 == sources[:, :1] // 3).all()  # all three of one old triangle


def test_a_mesh_smaller_than_a_cell_keeps_one_face() -> None:
    vertices, faces = box(2)
    fewer, sources = cluster(vertices / 100 + 0.2, faces, 1.0)
    assert fewer.shape == sources.shape == (1, 3)


class Caller:
    """In a worker: calls functions, so that several tests share the start of one process."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(Caller, variables=worker_variables(pixels=True)) as worker:
        yield worker


def changes() -> dict[str, tuple[dict[str, set[int]], int, int]]:
    """What each profile changes of scene: array -> rows it must not; triangles before and after."""
    arm = make_collection_env("scene").unwrapped
    arm.reset(seed=0)
    official = arm.model
    meshes = [i for i in range(official.nmesh) if official.mesh(i).name.startswith(ARM_MESHES)]
    faces = [
        official.mesh_faceadr[i] + face for i in meshes for face in range(official.mesh_facenum[i])
    ]
    allowed = {
        "mesh_facenum": meshes,
        "mesh_face": faces,
        "mesh_facenormal": faces,
        "geom_size": [official.geom("floor").id],
    }
    result = {}
    for profile in PROFILES:
        model = copy.copy(official)
        apply(model, RENDER_PROFILES[profile])
        found = {}
        for name in dir(official):
            if isinstance(old := getattr(official, name), np.ndarray):
                differs = (old != getattr(model, name)) & (old == old)  # not where both are nan
                if differs.any():
                    rows = np.flatnonzero(differs.reshape(len(old), -1).any(axis=1))
                    found[name] = set(rows) - set(allowed.get(name, ()))
        assert (model.geom("floor").size[:2] == official.geom("floor").size[:2]).all()
        result[profile] = found, official.mesh_facenum.sum(), model.mesh_facenum.sum()
    return result


def test_a_profile_changes_the_arms_faces_and_the_floors_squares_alone(worker: Worker) -> None:
    for profile, (foreign, before, after) in worker.call("call", changes).items():
        assert set(foreign) == {"mesh_facenum", "mesh_face", "mesh_facenormal", "geom_size"}
        assert not any(foreign.values()), foreign
        assert after < {"fast": 0.1, "draft": 0.05}[profile] * before


def trajectories() -> list[np.ndarray]:
    """Positions and velocities while gripping and pushing: nothing drawn, and drawn with fast."""
    results = []
    for profile in ("official", "fast"):
        env = make_collection_env("cube-single", render_profile=profile)
        env.reset(seed=3)
        if profile == "fast":
            env.unwrapped.render()
        data, noise = env.unwrapped.data, np.random.default_rng(0)
        states = []
        for step in range(60):
            down_and_close = np.array([0.0, 0.0, -0.5 if step < 40 else 0.2, 0.0, 1.0])
            env.step(np.clip(down_and_close + noise.normal(0, 0.3, 5), -1, 1))
            states.append(np.concatenate([data.qpos, data.qvel]))
        results.append(np.array(states))
    return results


def test_physics_is_the_same_to_the_last_bit(worker: Worker) -> None:
    official, fast = worker.call("call", trajectories)
    assert np.array_equal(official, fast)


def oracle_frames(name: str) -> dict[str, np.ndarray]:
    """What each profile draws of the state that an oracle comes to in 40 steps."""
    env = make_collection_env(name)
    observation, info = env.reset(seed=0)
    oracle = make_oracles(env, name, "play")[info["privileged/target_task"]]
    oracle.reset(observation, info)
    for _ in range(40):
        action = np.clip(oracle.select_action(observation, info), -1, 1)
        observation, _, _, _, info = env.step(action)
    state, frames = {key: info[key] for key in state_shapes(env)}, {}
    for profile in RENDER_PROFILES:
        drawing = make_collection_env(f"visual-{name}", render_profile=profile)
        frames[profile] = draw_state(drawing, state).astype(float)
        drawing.close()
    return frames


@pytest.mark.parametrize("name", ["cube-double", "scene", "puzzle-3x3"])
def test_frames_are_like_the_official_ones(worker: Worker, name: str) -> None:
    frames = worker.call("call", oracle_frames, name)
    for profile, floor in {"fast": 38.0, "draft": 31.0}.items():
        error = np.square(frames[profile] - frames["official"]).mean()
        assert 10 * np.log10(255**2 / error) > floor


def pool_frame(profile: str) -> bytes:
    """A picture of a state task, from a pool's worker process."""
    with EnvPool("cube-single-singletask-task1-v0", num_envs=1, render_profile=profile) as pool:
        pool.reset(0, 0)
        return pool.render(0).tobytes()


def test_a_pools_workers_draw_with_its_profile() -> None:
    with ThreadPoolExecutor() as threads:
        fast, draft = threads.map(pool_frame, PROFILES)
    assert fast != draft


def test_an_environment_without_an_arm_refuses_a_faster_profile() -> None:
    with pytest.raises(UserError, match="object can be drawn with the render profile 'official'"):
        draw_with(object(), Savings(0.01, 8, 512, 0.05))
