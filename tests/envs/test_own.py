"""People's own environments: what is made of them, and what is refused before training starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deflow_vision.envs.make import make_env
from deflow_vision.envs.own import EnvFacts, examine, make_own_env
from deflow_vision.envs.pool import EnvPool
from deflow_vision.types import UserError

HERE = "tests.envs.own_envs"


def test_a_worker_tells_what_an_environment_is() -> None:
    assert examine(f"{HERE}:make") == EnvFacts((3,), "float32", 2, 7, reports_success=False)


def test_a_module_of_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(f"from {HERE} import make_pixels")
    monkeypatch.chdir(tmp_path)
    assert examine("mine:make_pixels") == EnvFacts((8, 10, 1), "uint8", 2, 7, reports_success=True)


def test_actions_are_scaled_to_the_bounds_and_clipped() -> None:
    env = make_own_env(f"{HERE}:make")
    env.reset(seed=0)
    assert env.action_space.low.tolist() == [-1, -1]
    assert env.step(np.array([-1, 0.5], np.float32))[0].tolist() == [1, 0, 1]
    assert env.step(np.array([7, -7], np.float32))[0].tolist() == [2, 4, -2]


def test_a_stack_keeps_what_the_environment_overwrites() -> None:
    env = make_env(f"{HERE}:make", frame_stack=2)
    env.reset(seed=0)
    assert env.step(np.zeros(2))[0].tolist()[::3] == [0, 1]


def test_a_seeded_reset_seeds_numpy_too() -> None:
    env = make_own_env(f"{HERE}:make")
    first, again, other = (env.reset(seed=seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_black_picture_is_allowed() -> None:
    assert not make_own_env(f"{HERE}:make_pixels", frame_stack=3).reset(seed=0)[0].any()


def test_a_cap_shortens_its_own_time_limit() -> None:
    env = make_own_env(f"{HERE}:make_pixels", max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(2)] == [False, True]


def test_a_pool_runs_it_and_says_what_can_be_drawn_and_whether_success_is_known() -> None:
    with EnvPool(f"{HERE}:make", num_envs=1) as pool:
        pool.reset(0, seed=3)
        step = pool.step([0], np.zeros((1, 2)))[0]
        assert (step.info, step.reward, pool.can_render) == ({}, 1.0, False)
        with pytest.raises(UserError, match="without render_mode"):
            pool.render(0)
    with EnvPool(f"{HERE}:make_pixels", num_envs=1, frame_stack=3) as pool:
        assert (pool.channels, pool.observation_shape, pool.can_render) == (1, (8, 10, 3), True)
        pool.reset(0, seed=3)
        assert pool.step([0], np.zeros((1, 2)))[0].info == {"success": 1.0}


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("no.such_module:make", "there is no module 'no'"),
        (f"{HERE}:mak", "has no such name. It has: .*make, make_pixels"),
        (f"{HERE}:NOT_A_FUNCTION", "has a int there"),
        (f"{HERE}:nothing", "returned a NoneType, not a gymnasium.Env"),
        (f"{HERE}:endless", "states no time limit"),
        (f"{HERE}:dictionary", r"observation_space is Dict\(.*FlattenObservation"),
        (f"{HERE}:discrete", r"action_space is Discrete\(4\); it must be a Box"),
        (f"{HERE}:boundless", "must have finite bounds"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(env: str, words: str) -> None:
    with pytest.raises(UserError, match=f"(?s)--env {env}.*{words}"):
        make_own_env(env)


def test_an_observation_outside_its_space_is_refused() -> None:
    with pytest.raises(UserError, match=r"of shape \(3,\) and dtype float64.*Box.*\(4,\)"):
        make_own_env(f"{HERE}:liar").reset()


def test_a_refusal_comes_out_of_the_worker_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^--env tests\.envs\.own_envs:endless: it states no"):
        examine(f"{HERE}:endless")


def test_the_factorys_own_error_comes_with_its_traceback() -> None:
    with pytest.raises(UserError, match=r"(?s)own_envs:broken failed.*the licence has run out"):
        examine(f"{HERE}:broken")
