"""Tables of runs: methods x tasks x seeds, and the command line of each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from deflow_vision.benchmark.protocols import Protocol
from deflow_vision.benchmark.published import Published
from deflow_vision.config import TrainConfig, apply_layer, compose
from deflow_vision.tasks import Task

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A column of a table.

    Attributes:
        name: its heading, and its folder's name.
        algo: the algorithm.
        observations: the only tasks that it is run on, "state" or "pixels"; None for all.
        settings: what it changes, in the shape of a run's configuration.
        task_settings: the same for one task or one family of tasks.
    """

    name: str
    algo: str
    observations: str | None = None
    settings: Settings = field(default_factory=dict)
    task_settings: Mapping[str, Settings] = field(default_factory=dict)

    def runs_on(self, task: Task) -> bool:
        """Whether the table has this method on that task."""
        return self.observations in (None, "pixels" if task.pixels else "state")


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        method: the column.
        task: the row.
        seed: of the run.
        settings: all that the table changes, in the shape of a run's configuration.
        run_dir: the run's folder.
        preset: of `configs/presets/`, what the settings change; None for the published ones.
    """

    method: Method
    task: Task
    seed: int
    settings: Settings
    run_dir: Path
    preset: str | None = None

    @property
    def name(self) -> str:
        """A name for messages."""
        return f"{self.task.name} {self.method.name} seed {self.seed}"

    def arguments(self) -> list[str]:
        """What `scripts/train.py` is given."""
        return [
            *("--task", self.task.name, "--algo", self.method.algo, "--seed", str(self.seed)),
            *("--run-dir", str(self.run_dir)),
            *(() if self.preset is None else ("--preset", self.preset)),
            *flags(self.settings),
        ]

    def config(self) -> TrainConfig:
        """The configuration that these arguments mean."""
        base = _base_config(self.task.name, self.method.algo, self.preset)
        config = apply_layer(base, self.settings, self.name)
        return replace(config, seed=self.seed, run_dir=self.run_dir)


@dataclass(frozen=True)
class Table:
    """What a file of `configs/benchmarks/` describes.

    Attributes:
        name: the file's, without its ending.
        title: a line about it.
        protocol: what is measured of a run.
        tasks: the rows.
        methods: the columns; the first is the one that the others are compared with.
        seeds: how many runs a cell has, by "state" and "pixels".
        preset: of `configs/presets/`, for every run; None for the published settings alone.
        settings: what the table changes for every run.
        task_settings: the same for one task or one family of tasks.
        categories: tasks whose mean is a row of its own, by name.
        published: figures to stand beside these.
    """

    name: str
    title: str
    protocol: Protocol
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    seeds: Mapping[str, int]
    preset: str | None
    settings: Settings
    task_settings: Mapping[str, Settings]
    categories: Mapping[str, tuple[Task, ...]]
    published: tuple[Published, ...]

    def num_seeds(self, task: Task) -> int:
        """Runs of a method on a task."""
        return self.seeds["pixels" if task.pixels else "state"]

    def cells(self, root: Path) -> Iterator[Cell]:
        """Every run, those of a task together.

        Args:
            root: the folder of all tables' runs.
        """
        for task in self.tasks:
            for method in self.methods:
                if method.runs_on(task):
                    for seed in range(self.num_seeds(task)):
                        folder = root / self.name / task.name / method.name / f"seed{seed}"
                        settings = self.settings_of(method, task)
                        yield Cell(method, task, seed, settings, folder, self.preset)

    def settings_of(self, method: Method, task: Task) -> Settings:
        """What the table changes for a method on a task; later ones win: table, method."""
        merged: Settings = {}
        for each in (self, method):
            layers = (each.settings, *(each.task_settings.get(k, {}) for k in _keys(task)))
            for layer in layers:
                merged = merge(merged, layer)
        return merged


def _keys(task: Task) -> tuple[str, str]:
    return task.family, task.name


def merge(weak: Settings, strong: Settings) -> dict[str, Any]:
    """Two nested mappings as one, the second's values winning."""
    merged = dict(weak)
    for key, value in strong.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = merge(below, value) if both and below is not None else value
    return merged


def flags(settings: Settings, prefix: str = "") -> Iterator[str]:
    """Settings as flags of `scripts/train.py`: `{agent: {tau: 0.01}}` as `--agent.tau 0.01`."""
    for key, value in settings.items():
        name = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, Mapping):
            yield from flags(value, f"{name}.")
        elif isinstance(value, bool):
            head, dot, last = name.rpartition(".")
            yield f"--{head}{dot}{'' if value else 'no-'}{last}"
        else:
            yield f"--{name}"
            yield from map(str, value if isinstance(value, list) else [value])


@cache
def _base_config(task: str, algo: str, preset: str | None) -> TrainConfig:
    return compose(task, algo, preset=preset)
