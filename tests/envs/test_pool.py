"""The pool, on a real environment that starts fast, and OGBench's arms in a worker."""

import os
import signal
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from deflow_vision.envs.make import make_env, registered_id
from deflow_vision.envs.pool import EnvError, EnvPool
from deflow_vision.envs.rendering import NO_DRAWING, NoRendererError, worker_variables
from deflow_vision.envs.server import EnvStep
from deflow_vision.envs.worker import run_in_worker
from deflow_vision.types import UserError

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
ARM = "cube-single-play-singletask-task2-v0"
PIXELS = "visual-cube-single-play-singletask-task1-v0"


@pytest.fixture(scope="module")
def pool() -> Iterator[EnvPool]:
    with EnvPool(MAZE, num_envs=2, frame_stack=2, max_episode_steps=4) as pool:
        yield pool


def episode(pool: EnvPool, index: int, seed: int) -> np.ndarray:
    """Observations of an episode with the same actions whatever the copy."""
    generator = np.random.default_rng(3)
    observations = [pool.reset(index, seed)]
    for _ in range(4):
        observations.append(pool.step([index], generator.normal(0, 2, (1, 2)))[0].observation)
    return np.stack(observations)


def test_the_pool_knows_the_shapes(pool: EnvPool) -> None:
    assert pool.observation_shape == (2 * 2,)
    assert pool.observation_dtype == "float32"
    assert pool.action_dim == 2
    observation = pool.reset(0, seed=0)
    assert observation.shape == pool.observation_shape
    assert observation.dtype == np.float32


def test_an_episode_depends_on_its_seed_and_not_on_the_copy(pool: EnvPool) -> None:
    first = episode(pool, 0, seed=11)
    assert not np.array_equal(first, episode(pool, 1, seed=12))
    assert np.array_equal(first, episode(pool, 1, seed=11))


def test_resetting_several_copies_keeps_their_order(pool: EnvPool) -> None:
    together = pool.reset_many([1, 0], [21, 22])
    assert np.array_equal(together[0], pool.reset(0, 21))
    assert np.array_equal(together[1], pool.reset(1, 22))


def test_the_time_limit_truncates_and_nothing_resets_by_itself(pool: EnvPool) -> None:
    last = pool.reset(0, seed=5)
    for step in range(4):
        result = pool.step([0], np.full((1, 2), 0.3))[0]
        assert result.truncated == (step == 3)
        assert not result.terminated
        assert result.info == {"success": 0.0}
        assert result.reward == -1.0
        assert np.array_equal(result.observation[:2], last[2:])
        last = result.observation


def test_actions_beyond_the_range_act_like_the_clipped_ones(pool: EnvPool) -> None:
    pool.reset_many([0, 1], [7, 7])
    wide, clipped = pool.step([0, 1], np.array([[9.0, -9.0], [1.0, -1.0]]))
    assert np.array_equal(wide.observation, clipped.observation)


def test_a_state_task_draws_a_picture_for_videos(pool: EnvPool) -> None:
    pool.reset(0, seed=5)
    frame = pool.render(0)
    assert frame.shape == (200, 200, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 5


def test_a_pool_that_cannot_draw_says_so_and_refuses_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "off")
    with EnvPool(MAZE, num_envs=1) as pool:
        assert not pool.can_render
        assert pool.reset(0, seed=1).shape == (2,)
        with pytest.raises(NoRendererError, match="apt-get install"):
            pool.render(0)


def test_a_dead_environment_is_an_error_that_names_it_and_the_episode() -> None:
    with EnvPool(MAZE, num_envs=1) as pool:
        pool.reset(0, seed=1234)
        os.kill(pool._workers[0].pid, signal.SIGKILL)
        with pytest.raises(EnvError, match=r"(?s)pointmaze.*seed 1234.*SIGKILL"):
            pool.step([0], np.zeros((1, 2)))


def test_closing_leaves_no_process() -> None:
    with EnvPool(MAZE, num_envs=2) as pool:
        pids = [worker.pid for worker in pool._workers]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_unknown_environment_names_the_nearest() -> None:
    nearest = r"(?s)unknown environment.*Nearest: cube-single-singletask"
    with pytest.raises(EnvError, match=nearest):
        EnvPool("cube-sngle-singletask-task2-v0", num_envs=1)


@pytest.mark.parametrize(
    ("task", "registered"),
    [
        (ARM, "cube-single-singletask-task2-v0"),
        ("visual-scene-noisy-singletask-v0", "visual-scene-singletask-v0"),
        ("puzzle-4x4-singletask-task1-v0", "puzzle-4x4-singletask-task1-v0"),
        ("cube-double-v0", "cube-double-v0"),
    ],
)
def test_the_datasets_type_is_left_out_of_the_registered_id(task: str, registered: str) -> None:
    assert registered_id(task) == registered


def seeded_episodes() -> list[np.ndarray]:
    """Episodes of an arm with the seeds 5, 6 and 5, from one environment."""
    env = make_env(ARM)
    episodes = []
    for seed in (5, 6, 5):
        observations = [env.reset(seed=seed)[0]]
        observations += [env.step(np.full(5, 0.2))[0] for _ in range(3)]
        episodes.append(np.stack(observations))
    return episodes


def test_an_episode_of_an_arm_is_repeatable_to_the_bit() -> None:
    first, other, again = run_in_worker(seeded_episodes, variables=NO_DRAWING)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def drawn_episode() -> tuple[np.ndarray, np.ndarray, bool]:
    """First two observations of a pixel episode, and whether torch is anywhere in the process."""
    env = make_env(PIXELS, frame_stack=2)
    first, _ = env.reset(seed=3)
    second = env.step(np.full(5, 0.5))[0]
    env.close()
    return first, second, "torch" in sys.modules


def test_a_worker_that_draws_never_imports_torch() -> None:
    variables = worker_variables(pixels=True)
    first, second, torch_there = run_in_worker(drawn_episode, variables=variables)
    assert not torch_there
    assert first.shape == (64, 64, 6)
    assert first.dtype == np.uint8
    assert np.array_equal(first[..., :3], first[..., 3:])
    assert np.array_equal(second[..., :3], first[..., 3:])
    assert first.std() > 5


@pytest.mark.parametrize(("env_id", "profile"), [(MAZE, "official"), (PIXELS, "draft")])
def test_copies_that_share_a_process_are_those_that_have_one_each(
    env_id: str, profile: str
) -> None:
    def play(processes: int) -> list[np.ndarray]:
        with EnvPool(env_id, num_envs=3, processes=processes, render_profile=profile) as pool:
            assert len(pool._workers) == processes
            generator = np.random.default_rng(8)
            seen = pool.reset_many([2, 0, 1], [31, 32, 33])
            for copies in ([0, 1, 2], [2, 0], [1]):
                actions = generator.uniform(-1, 1, (len(copies), pool.action_dim))
                seen += [result.observation for result in pool.step(copies, actions)]
            return [*seen, *pool.reset_many([1, 2], [31, 32])]

    shared, own = play(2), play(3)
    assert len(shared) == 11
    for one, other in zip(shared, own, strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(shared[0], shared[1])


def test_an_error_of_one_copy_leaves_the_answers_of_its_neighbours_their_own() -> None:
    actions = np.array([[0.0, 0.0], [None, None], [1.0, 1.0]], object)
    with EnvPool("tests.envs.own_envs:make_walk", num_envs=3, processes=1) as pool:
        pool.reset_many([0, 1, 2], [4, 5, 6])
        first, failed, third = pool.try_step([0, 1, 2], actions)
        assert "copy 1 of 3, failed in the episode with seed 5" in str(failed)
        again = pool.reset_many([0, 1, 2], [4, 5, 6])
        alike = pool.step([0, 2], actions[[0, 2]])
        for result, other in zip((first, third), alike, strict=True):
            assert isinstance(result, EnvStep)
            assert np.array_equal(result.observation, other.observation)
        assert len({tuple(observation) for observation in again}) == 3


def test_a_restart_renews_the_copies_of_a_process_and_no_others() -> None:
    with EnvPool("tests.envs.own_envs:make_walk", num_envs=4, processes=2) as pool:
        pool.reset_many([0, 1, 2, 3], [4, 5, 6, 7])
        pids = [worker.pid for worker in pool._workers]
        os.kill(pids[1], signal.SIGKILL)
        results = pool.try_step([0, 1, 2, 3], np.zeros((4, 2)))
        assert [isinstance(result, EnvError) for result in results] == [False, True, False, True]
        pool.restart(3)
        before = pool.reset_many([1, 3], [5, 7])
        pool.step([0, 1, 2, 3], np.zeros((4, 2)))
        assert pool._workers[0].pid == pids[0]
        assert np.array_equal(before[0], pool.reset(3, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 0}, "processes is 0; it must be 1 or more"),
        (
            {"processes": 1, "timeout": 2.0},
            "timeout is 2 and 2 environments share 1 processes: with a timeout each needs one",
        ),
    ],
)
def test_processes_without_a_meaning_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EnvPool(MAZE, num_envs=2, **arguments)


def test_by_default_a_core_has_a_process_and_somebodys_own_copy_one_of_its_own() -> None:
    cores = len(os.sched_getaffinity(0))
    for env_id, processes in ((MAZE, cores), ("tests.envs.own_envs:make_walk", cores + 1)):
        with EnvPool(env_id, num_envs=cores + 1) as pool:
            assert len(pool._workers) == processes
    with EnvPool(MAZE, num_envs=cores + 1, timeout=100.0) as pool:
        assert len(pool._workers) == cores + 1


def test_a_step_that_takes_too_long_is_an_error_and_a_restarted_copy_goes_on() -> None:
    with EnvPool("tests.envs.own_envs:make_sleepy", num_envs=1, timeout=3.0) as pool:
        before = pool.reset(0, seed=4)
        with pytest.raises(EnvError, match=r"seed 4: .* gave no answer in 3 s"):
            pool.step([0], np.ones((1, 2)))
        pool.restart(0)
        assert np.array_equal(pool.reset(0, seed=4), before)
        pool.step([0], np.zeros((1, 2)))


def test_an_environment_whose_making_hangs_is_an_error() -> None:
    with pytest.raises(EnvError, match=r"before the first episode: .* gave no answer in 2 s"):
        EnvPool("tests.envs.own_envs:make_hanging", num_envs=1, timeout=2.0)


def test_a_copy_that_fails_leaves_the_steps_of_the_others() -> None:
    with EnvPool("tests.envs.own_envs:make_walk", num_envs=3) as pool:
        pool.reset_many([0, 1, 2], [4, 5, 4])
        os.kill(pool._workers[1].pid, signal.SIGKILL)
        first, failed, third = pool.try_step([0, 1, 2], np.zeros((3, 2)))
        assert isinstance(first, EnvStep)
        assert np.array_equal(first.observation, third.observation)
        assert "copy 1 of 3, failed in the episode with seed 5" in str(failed)
        with pytest.raises(EnvError, match="copy 1 of 3"):
            pool.step([0, 1, 2], np.zeros((3, 2)))
        pool.restart(1)
        pool.reset(1, 4)
        pool.step([1], np.zeros((1, 2)))
        pool.step([1], np.zeros((1, 2)))
        results = pool.step([0, 1, 2], np.zeros((3, 2)))  # no answer of an earlier step is left
        assert len({tuple(result.observation) for result in results}) == 1
