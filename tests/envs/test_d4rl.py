"""D4RL's environments against what D4RL's code says, written down here a second time."""

import tempfile

import mujoco
import numpy as np
import pytest

from deflow_vision.envs.d4rl import Adroit, AntMaze
from deflow_vision.envs.make import make_env
from deflow_vision.tasks import all_tasks, resolve_task

D4RL = [task for task in all_tasks() if task.suite == "d4rl"]
MAZES = {
    "umaze": "##### #R..# ###.# #G..# #####",
    "medium": "######## #R.##..# #..#...# ##...### #..#...# #.#..#.# #...#.G# ########",
    "large": (
        "############ #R...#.....# #.##.#.#.#.# #......#...# #.####.###.# #..#.#.....# "
        "##.#.#.#.### #..#...#.G.# ############"
    ),
}
"""D4RL's mazes, a row a word: walls, the start R and the goal's cell G."""


@pytest.fixture(scope="module")
def ant():
    return AntMaze("umaze")


@pytest.fixture
def door():
    return Adroit("door")


@pytest.mark.parametrize("task", D4RL, ids=lambda task: task.name)
def test_a_task_has_an_environment_of_its_sizes(task):
    env = make_env(task.env_id, max_episode_steps=2)
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (task.state_dim,)
    assert observation.dtype == np.float32
    assert env.action_space.shape == (task.action_dim,)
    assert not env.step(env.action_space.sample())[3]
    assert env.step(env.action_space.sample())[3]  # the limit that was asked for


def test_all_eighteen_tasks_say_how_their_environment_deviates_and_how_scores_are_normalized():
    assert len(D4RL) == 18
    assert all("MuJoCo 2" in task.deviation for task in D4RL)
    assert resolve_task("antmaze-large-play-v2").reference_scores == (0.0, 1.0)
    assert resolve_task("hammer-cloned-v1").reference_scores == (-274.856578, 12794.134825156867)


def test_an_episode_ends_at_d4rls_time_limit():
    env = make_env("door-human-v1")
    env.reset(seed=0)
    ends = [env.step(np.zeros(28))[3] for _ in range(200)]
    assert ends == [False] * 199 + [True]


def test_an_episode_depends_on_its_seed_alone():
    def first(seed):
        observation, _ = env.reset(seed=seed)
        return np.concatenate([observation, env.step(np.ones(8))[0], env.unwrapped.goal])

    env = make_env("antmaze-umaze-v2")
    before = first(3)
    assert not np.allclose(first(4), before)
    np.testing.assert_array_equal(first(3), before)


@pytest.mark.parametrize("name", MAZES)
def test_the_maze_lies_where_d4rl_has_it(name):
    env, rows = AntMaze(name), MAZES[name].split()
    cells = {(i, j): kind for i, row in enumerate(rows) for j, kind in enumerate(row)}
    ((start_row, start_column),) = (cell for cell, kind in cells.items() if kind == "R")
    walls = {
        (4.0 * (j - start_column), 4.0 * (i - start_row)) for (i, j), k in cells.items() if k == "#"
    }
    model = env.unwrapped.model
    boxes = (model.geom_bodyid == 0) & (model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    assert {tuple(xy) for xy in model.geom_pos[boxes, :2] - env._origin} == walls
    assert (model.geom_size[boxes] == [2.0, 2.0, 1.0]).all()
    ((goal_row, goal_column),) = (cell for cell, kind in cells.items() if kind == "G")
    goals = np.array([(env.reset(seed=seed), env._goal)[1] for seed in range(30)])
    corner = 4.0 * np.array([goal_column - start_column, goal_row - start_row])
    assert (goals >= corner).all()
    assert (goals <= corner + 1.5).all()  # two uniform draws, up to 1 and up to 0.5
    assert (np.ptp(goals, axis=0) > 0.75).all()


def test_an_ant_starts_at_the_origin_with_noise_in_every_joint(ant):
    starts = np.array([ant.reset(seed=seed)[0] for seed in range(30)])
    rest = np.zeros(29)
    rest[2:4] = 0.75, 1.0  # height, and the quaternion's first number
    noise = starts - rest
    assert (np.abs(noise[:, :15]) <= 0.1 + 1e-12).all()
    assert (np.ptp(noise[:, :15], axis=0) > 0.1).all()
    assert np.std(noise[:, 15:]) == pytest.approx(0.1, rel=0.15)


def test_the_ant_has_d4rls_motors_and_time_step(ant):
    model = ant.unwrapped.model
    assert (model.opt.timestep, ant.unwrapped.ant_env.frame_skip) == (0.02, 5)
    torques = model.actuator_gear[:, :1] * model.actuator_ctrlrange
    np.testing.assert_array_equal(torques, [[-30.0, 30.0]] * 8)
    assert (model.geom_solimp[:, :3] == [0.8, 0.8, 0.01]).all()


@pytest.mark.parametrize(("gap", "touches"), [(0.008, True), (0.012, False)])
def test_contacts_begin_a_hundredth_from_the_surface_as_in_mujoco_2(ant, gap, touches):
    model, data = ant.unwrapped.model, mujoco.MjData(ant.unwrapped.model)
    data.qpos[:3] = *ant._origin, 0.25 + gap  # the torso is a sphere of radius 0.25
    mujoco.mj_forward(model, data)
    assert bool(data.ncon) is touches


@pytest.mark.parametrize(("distance", "reached"), [(0.3, True), (0.7, False)])
def test_an_ant_near_its_goal_ends_the_episode_with_reward_one(ant, distance, reached):
    ant.reset(seed=0)
    inner = ant.unwrapped.ant_env
    qpos = inner.data.qpos.copy()
    qpos[:2] = ant._origin + ant._goal + [-distance, 0.0]
    inner.set_state(qpos, np.zeros(14))
    _, reward, terminated, truncated, info = ant.step(np.zeros(8))
    assert (reward, terminated, truncated) == (float(reached), reached, False)
    assert info == {"success": reached}


def test_the_maze_leaves_no_file_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    AntMaze("umaze").close()
    assert not list(tmp_path.iterdir())


def d4rls_reward(name, data) -> float:
    """D4RL's reward in the simulator's state."""
    palm, norm = data.site("S_grasp").xpos, np.linalg.norm
    if name == "door":
        hinge = data.joint("door_hinge").qpos[0]
        distance = 0.1 * norm(palm - data.site("S_handle").xpos) + 0.1 * (hinge - 1.57) ** 2
        bonus = 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
        return bonus - distance - 1e-5 * np.sum(data.qvel**2)
    thing = data.body("Object").xpos
    if name == "hammer":
        tool, nail, goal = (data.site(key).xpos for key in ("tool", "S_target", "nail_goal"))
        distance = 0.1 * norm(palm - thing) + norm(tool - nail) + 10 * norm(nail - goal)
        bonus = 2 * (thing[2] > 0.04 and tool[2] > 0.04)
        bonus += 25 * (norm(nail - goal) < 0.02) + 75 * (norm(nail - goal) < 0.01)
        return bonus - distance - 0.01 * norm(data.qvel)
    if name == "relocate":
        target = data.site("target").xpos
        bonus = 10 * (norm(thing - target) < 0.1) + 20 * (norm(thing - target) < 0.05)
        if thing[2] > 0.04:
            bonus += 1 - 0.5 * norm(palm - target) - 0.5 * norm(thing - target)
        return bonus - 0.1 * norm(palm - thing)
    axes = [
        data.site(f"{it}_top").xpos - data.site(f"{it}_bottom").xpos for it in ("object", "target")
    ]
    alike = axes[0] @ axes[1] / norm(axes[0]) / norm(axes[1])
    distance = norm(thing - data.site("eps_ball").xpos)
    bonus = (distance < 0.075) * (10 * (alike > 0.9) + 50 * (alike > 0.95))
    return alike - distance + bonus - 5 * (thing[2] < 0.075)


@pytest.mark.parametrize("name", ["pen", "door", "hammer", "relocate"])
def test_the_reward_is_d4rls(name):
    env = Adroit(name)
    for seed in range(3):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(25):
            reward = env.step(env.action_space.sample())[1]
            assert reward == pytest.approx(d4rls_reward(name, env.unwrapped.data), abs=1e-6)


def test_an_open_door_pays_every_bonus(door):
    door.reset(seed=0)
    door.unwrapped.data.joint("door_hinge").qpos = 1.45
    reward = door.step(np.zeros(28))[1]
    assert reward == pytest.approx(d4rls_reward("door", door.unwrapped.data), abs=1e-6)
    assert reward > 19


def test_a_random_policy_has_the_return_that_d4rl_calls_zero():
    env = make_env("door-expert-v1")
    returns = []
    for seed in range(3):
        env.reset(seed=seed)
        returns.append(sum(env.step(env.action_space.sample())[1] for _ in range(200)))
    assert np.mean(returns) == pytest.approx(
        resolve_task("door-expert-v1").reference_scores[0], abs=1
    )


def test_a_dropped_pen_ends_the_episode():
    env = make_env("pen-human-v1")
    env.reset(seed=0)
    heights, ended = [], False
    while not ended:
        observation, _, ended, truncated, _ = env.step(env.action_space.sample())
        heights.append(observation[26])
        assert not truncated
    assert heights[-1] < 0.075 <= min(heights[:-1])


def test_success_takes_more_than_25_steps_at_the_goal(door):
    def open_for(steps):
        door.reset(seed=0)
        for _ in range(steps):
            door.unwrapped.data.joint("door_hinge").qpos = 1.5
            info = door.step(np.zeros(28))[4]
        return info["success"]

    assert not open_for(25)
    assert open_for(26)
    assert not open_for(1)  # each episode counts anew
