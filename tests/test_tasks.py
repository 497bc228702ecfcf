import subprocess
import sys
from pathlib import Path

import pytest

from deflow_vision import tasks
from deflow_vision.tasks import (
    all_tasks,
    data_root,
    offline_tasks,
    offline_to_online_tasks,
    resolve_dataset,
    resolve_task,
)

STATE = [
    "antmaze-large-navigate",
    "antmaze-giant-navigate",
    "humanoidmaze-medium-navigate",
    "humanoidmaze-large-navigate",
    "antsoccer-arena-navigate",
    "cube-single-play",
    "cube-double-play",
    "scene-play",
    "puzzle-3x3-play",
    "puzzle-4x4-play",
]
PIXELS = ["cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4"]
ANTMAZE = ["umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"]
ADROIT = ["pen", "door", "hammer", "relocate"]


def test_offline_tasks_are_the_73_of_the_papers():
    expected = {f"{name}-task{goal}" for name in STATE for goal in range(1, 6)}
    expected |= {f"visual-{name}-play-task1" for name in PIXELS}
    expected |= {f"antmaze-{name}-v2" for name in ANTMAZE}
    expected |= {f"{hand}-{kind}-v1" for hand in ADROIT for kind in ("human", "cloned", "expert")}
    assert len(expected) == 73
    assert sorted(task.name for task in offline_tasks()) == sorted(expected)


def test_offline_to_online_tasks_are_the_15_of_the_papers():
    expected = {
        "humanoidmaze-medium-navigate-task1",
        "antsoccer-arena-navigate-task4",
        "cube-double-play-task2",
        "scene-play-task2",
        "puzzle-4x4-play-task4",
    }
    expected |= {f"antmaze-{name}-v2" for name in ANTMAZE}
    expected |= {f"{hand}-cloned-v1" for hand in ADROIT}
    assert sorted(task.name for task in offline_to_online_tasks()) == sorted(expected)


def test_every_canonical_name_and_full_id_means_one_task():
    for task in all_tasks():
        assert resolve_task(task.name) is task
        assert resolve_task(task.env_id) is task
    assert len({task.name for task in all_tasks()}) == len(all_tasks())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cube-double-play", "cube-double-play-task2"),
        ("cube-double-play-v0", "cube-double-play-task2"),
        ("cube-double-play-singletask-v0", "cube-double-play-task2"),
        ("cube-double-noisy-singletask-task3-v0", "cube-double-noisy-task3"),
        ("antsoccer-arena-navigate", "antsoccer-arena-navigate-task4"),
        ("puzzle-4x6-play", "puzzle-4x6-play-task2"),
        ("visual-cube-double-play", "visual-cube-double-play-task1"),
        ("visual-cube-double-play-singletask-v0", "visual-cube-double-play-task2"),
        ("antmaze-umaze", "antmaze-umaze-v2"),
        ("pen-human-v1", "pen-human-v1"),
    ],
)
def test_a_name_resolves_to_its_canonical_task(name, expected):
    assert resolve_task(name).name == expected


def test_a_task_knows_its_dataset_environment_and_goal():
    task = resolve_task("visual-scene-play")
    assert (task.dataset, task.env_id, task.goal_key) == (
        "visual-scene-play-v0",
        "visual-scene-play-singletask-task1-v0",
        "task1",
    )
    assert (task.pixels, task.family, task.max_episode_steps) == (True, "visual-scene", 750)


def test_a_d4rl_task_keeps_its_rewards_under_the_default_key():
    task = resolve_task("antmaze-umaze-diverse")
    assert (task.goal, task.goal_key, task.family) == (None, "default", "d4rl-antmaze")
    assert task.dataset == task.env_id == "antmaze-umaze-diverse-v2"
    assert task.max_episode_steps == 700


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cube-duble-play", "cube-double-play"),
        ("cube-double-play-task7", "cube-double-play-task"),
        ("visual-scene-singletask-task1-v0", "visual-scene-play-singletask-task1-v0"),
        ("zzz", "Nearest"),
    ],
)
def test_an_unknown_task_names_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown task '{name}'.*{near}"):
        resolve_task(name)


@pytest.mark.parametrize("name", ["visual-scene-noisy", "visual-scene-noisy-v0"])
def test_a_dataset_resolves_with_and_without_its_version(name):
    task = resolve_dataset(name)
    assert (task.dataset, task.goal, task.pixels) == ("visual-scene-noisy-v0", "task1", True)


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown dataset 'cube-single'.*cube-single-play"):
        resolve_dataset("cube-single")


def test_data_root_follows_the_environment_variable(monkeypatch):
    monkeypatch.delenv("DEFLOW_DATA", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("DEFLOW_DATA", "/elsewhere")
    assert data_root() == Path("/elsewhere")


def test_importing_tasks_imports_neither_torch_nor_ogbench():
    code = (
        "import sys, deflow_vision.tasks; print({'torch', 'ogbench', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


# Registered by the installed ogbench: in a process of its own, since importing it makes warnings.
REGISTRY = """
import gymnasium, ogbench.locomaze, ogbench.manipspace
for env_id, spec in gymnasium.registry.items():
    print(env_id, spec.max_episode_steps)
"""


def test_ogbench_registers_every_task_with_our_time_limit():
    command = [sys.executable, "-W", "ignore", "-c", REGISTRY]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    limits = dict(line.split(" ") for line in out.stdout.splitlines())
    for task in tasks.all_tasks():
        if task.suite == "ogbench":
            assert limits[f"{task.family}-singletask-{task.goal}-v0"] == str(task.max_episode_steps)


def test_mazes_and_football_are_navigation_and_hands_and_arms_are_manipulation():
    walkers = ("ant", "humanoid", "d4rl-antmaze")
    for task in all_tasks():
        navigates = task.family.startswith(walkers)
        assert task.domain == ("navigation" if navigates else "manipulation"), task.name
