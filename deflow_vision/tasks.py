"""The tasks: what a name means, as the tables in `configs/tasks/` say. Imports no torch."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from deflow_vision.types import UserError


@dataclass(frozen=True)
class Task:
    """One task: a dataset, an environment, a goal.

    Attributes:
        name: canonical short name, with the goal where there is one ("cube-double-play-task2").
        family: the row of `configs/agents/*.yaml` that holds its settings ("cube-double").
        suite: "ogbench" or "d4rl"; "own" for somebody's own data and environment.
        dataset: "cube-double-play-v0"; its store is `<data root>/<dataset>.zarr`.
        env_id: full id ("cube-double-play-singletask-task2-v0"); equals `dataset` for D4RL;
            `module:factory` for somebody's own.
        goal: "task1" to "task5" of OGBench, None for D4RL.
        pixels: whether observations are 64x64x3 images.
        max_episode_steps: the environment's time limit, in steps.
        state_dim: D of the state observation (of the hidden state for pixel tasks).
        action_dim: A.
        discount: gamma that FQL and DeFlow publish for it.
        q_agg: how their TD target aggregates the critics, likewise.
        offline: whether it is one of the 73 offline tasks.
        offline_to_online: whether it is one of the 15 offline-to-online tasks.
        table: the file in `configs/tasks/` that holds its row.
        reward_shift: what is added to the dataset's and the environment's rewards for training.
        reference_scores: returns of a random and of an expert policy, which are 0 and 100 of the
            normalized score; None where results are success rates.
        deviation: what our environment has of the one that the task is named after, and what it
            has not; empty where it is that one.
        domain: what DeFlow's rule for `target_divergence` takes it for; None where nobody said.
    """

    name: str
    family: str
    suite: Literal["ogbench", "d4rl", "own"]
    dataset: str
    env_id: str
    goal: str | None
    pixels: bool
    max_episode_steps: int
    state_dim: int
    action_dim: int
    discount: float
    q_agg: Literal["mean", "min"]
    offline: bool
    offline_to_online: bool
    table: str
    reward_shift: float = 0.0
    reference_scores: tuple[float, float] | None = None
    deviation: str = ""
    domain: Literal["manipulation", "navigation"] | None = None

    @property
    def goal_key(self) -> str:
        """The key of this goal's rewards and masks in a store."""
        return self.goal or "default"


def configs_root() -> Path:
    """The folder of configurations: `configs/` of a checkout, or the copy inside a wheel."""
    package = Path(__file__).parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def data_root() -> Path:
    """The folder of stores: the environment variable `DEFLOW_DATA`, or `data/`."""
    return Path(os.environ.get("DEFLOW_DATA", "data"))


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message about an unknown name: its nearest valid choices.

    Args:
        name: what was given.
        choices: what is valid.

    Returns:
        "Valid: ..." with every choice where they are few, else "Nearest: ..." with three of them.
    """
    known = sorted(choices)
    if len(known) <= 8:
        return f"Valid: {', '.join(known)}."
    return f"Nearest: {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))}."


def resolve_task(name: str) -> Task:
    """The task that a name means.

    Args:
        name: a short name ("visual-cube-double-play", "cube-double-play-task3"; without a goal it
            is the environment's default one, and task1 for pixel tasks), or a full OGBench or D4RL
            id ("cube-double-play-singletask-v0", "antmaze-umaze-v2").

    Returns:
        The task.

    Raises:
        UserError: no task has that name; the message gives the nearest ones.
    """
    names = _names()
    if name not in names:
        full_id = "singletask" in name
        choices = [alias for alias in names if ("singletask" in alias) == full_id]
        raise UserError(f"unknown task '{name}'. {nearest(name, choices)}")
    return names[name]


def env_of(name: str, own: str | None) -> str:
    """The environment of a run: somebody's own where it names one, else that of the named task."""
    return own or resolve_task(name).env_id


def check_own(env: str, name: str | None = None) -> None:
    """Refuse what cannot name somebody's own environment, or the task in it.

    Args:
        env: `module:factory`.
        name: the task's name, under which its runs and its results stand.

    Raises:
        UserError: another form, or the name of a published task.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", env):
        raise UserError(f"env is '{env}': write module:factory, such as my_package.my_env:make")
    if name is None:
        return
    if name in _names():
        raise UserError(
            f"'{name}' is a published task: with --env {env}, give it another name by --task"
        )
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"the task's name '{name}' must have letters, digits, '.', '_', '-' alone")


def resolve_dataset(name: str) -> Task:
    """The task on the default goal of a dataset.

    Args:
        name: a dataset with or without its version ("cube-single-play", "visual-scene-noisy-v0").

    Returns:
        Its default task, which knows the dataset's full name, environment and observation kind.

    Raises:
        UserError: no dataset has that name; the message gives the nearest ones.
    """
    datasets = {alias: task.dataset for task in all_tasks() for alias in _spellings(task.dataset)}
    if name not in datasets:
        raise UserError(f"unknown dataset '{name}'. {nearest(name, datasets)}")
    return _names()[datasets[name]]


def d4rl_task(name: str) -> Task | None:
    """The D4RL task of that name, with or without its version; None where it is not one."""
    task = _names().get(name)
    return task if task is not None and task.suite == "d4rl" else None


@lru_cache(maxsize=1)
def all_tasks() -> tuple[Task, ...]:
    """Every task of every table, each goal once."""
    return tuple(dict.fromkeys(_names().values()))


def offline_tasks() -> list[Task]:
    """The 73 offline tasks of FQL's and DeFlow's tables."""
    return [task for task in all_tasks() if task.offline]


def offline_to_online_tasks() -> list[Task]:
    """The 15 offline-to-online tasks of FQL's and DeFlow's tables."""
    return [task for task in all_tasks() if task.offline_to_online]


def read_table(name: str) -> dict[str, Any]:
    """One file of `configs/tasks/`, as a mapping."""
    table: dict[str, Any] = yaml.safe_load((configs_root() / "tasks" / name).read_text())
    return table


@lru_cache(maxsize=1)
def _names() -> dict[str, Task]:
    """Every valid spelling of every task."""
    names: dict[str, Task] = {}
    for path in sorted((configs_root() / "tasks").glob("*.yaml")):
        table = read_table(path.name)
        for key, row in table["rows"].items():
            for kind in row["datasets"]:
                dataset = table["dataset"].format(row=key, dataset=kind)
                if "default_goal" in row:
                    names |= _goal_names(path.name, table, key, row, dataset)
                else:
                    task = _make(path.name, table, key, row, dataset, None)
                    names |= dict.fromkeys(_spellings(dataset), task)
    return names


def _goal_names(
    file: str, table: dict[str, Any], key: str, row: dict[str, Any], dataset: str
) -> dict[str, Task]:
    """The spellings of an OGBench dataset's five tasks."""
    tasks = {goal: _make(file, table, key, row, dataset, goal) for goal in range(1, 6)}
    names = {name: task for task in tasks.values() for name in (task.name, task.env_id)}
    short = tasks[table.get("short_name_goal", row["default_goal"])]
    names |= dict.fromkeys(_spellings(dataset), short)
    # OGBench's own unnumbered id keeps OGBench's meaning, whatever the short name means here.
    stem = dataset.removesuffix("-v0")
    return names | {f"{stem}-singletask-v0": tasks[row["default_goal"]]}


def _make(
    file: str, table: dict[str, Any], key: str, row: dict[str, Any], dataset: str, goal: int | None
) -> Task:
    stem = dataset.removesuffix("-v0")
    # The published OGBench tasks are those of a row's first dataset type.
    first = table["dataset"].format(row=key, dataset=row["datasets"][0])
    listed = dataset if goal is None else goal if dataset == first else None
    return Task(
        name=dataset if goal is None else f"{stem}-task{goal}",
        family=row.get("family", key),
        suite=table["suite"],
        dataset=dataset,
        env_id=dataset if goal is None else f"{stem}-singletask-task{goal}-v0",
        goal=None if goal is None else f"task{goal}",
        pixels=table.get("pixels", False),
        max_episode_steps=row["max_episode_steps"],
        state_dim=row["state_dim"],
        action_dim=row["action_dim"],
        discount=row["discount"],
        q_agg=row["q_agg"],
        offline=listed in row.get("offline", ()),
        offline_to_online=listed in row.get("offline_to_online", ()),
        table=file,
        reward_shift=row.get("reward_shift", 0.0),
        reference_scores=tuple(row["reference_scores"]) if "reference_scores" in row else None,
        deviation=row.get("deviation", ""),
        domain=row.get("domain", table["domain"]),
    )


def _spellings(dataset: str) -> tuple[str, str]:
    """A dataset's name with and without its version."""
    return dataset, dataset.rpartition("-v")[0]
