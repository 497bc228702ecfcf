"""Tables of runs, methods x tasks x seeds, as the files in `configs/benchmarks/` describe them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from deflow_vision.benchmark.protocols import PROTOCOLS, Protocol
from deflow_vision.benchmark.published import Published, read_published
from deflow_vision.config import ConfigError, TrainConfig, apply_layer, compose
from deflow_vision.config.layers import defaults, read_yaml
from deflow_vision.tasks import (
    Task,
    all_tasks,
    configs_root,
    nearest,
    offline_tasks,
    offline_to_online_tasks,
    resolve_task,
)
from deflow_vision.types import UserError

Settings = Mapping[str, Any]

TASK_LISTS = {"offline": offline_tasks, "offline-to-online": offline_to_online_tasks}
"""Lists of published tasks that a table may name in place of tasks."""

KEYS = (
    *("title", "protocol", "tasks", "methods", "seeds", "settings", "task_settings"),
    *("categories", "published"),
)
METHOD_KEYS = ("algo", "observations", "settings", "task_settings")


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
    """

    method: Method
    task: Task
    seed: int
    settings: Settings
    run_dir: Path

    @property
    def name(self) -> str:
        """A name for messages."""
        return f"{self.task.name} {self.method.name} seed {self.seed}"

    def arguments(self) -> list[str]:
        """What `scripts/train.py` is given."""
        return [
            *("--task", self.task.name, "--algo", self.method.algo, "--seed", str(self.seed)),
            *("--run-dir", str(self.run_dir), *flags(self.settings)),
        ]

    def config(self) -> TrainConfig:
        """The configuration that these arguments mean."""
        published = _published_config(self.task.name, self.method.algo)
        config = apply_layer(published, self.settings, self.name)
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
                        yield Cell(method, task, seed, self.settings_of(method, task), folder)

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


def table_names() -> list[str]:
    """The tables that there are."""
    return sorted(path.stem for path in (configs_root() / "benchmarks").glob("*.yaml"))


def load_table(name: str) -> Table:
    """Read and check a table.

    Args:
        name: of a file in `configs/benchmarks/`, or the path of a YAML file elsewhere.

    Raises:
        UserError: there is no such table, or it names an unknown task, method or setting.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        if name not in table_names():
            raise UserError(f"unknown table '{name}'. {nearest(name, table_names())}")
        path = configs_root() / "benchmarks" / f"{name}.yaml"
    values = read_yaml(path)
    _check_keys(str(path), values, KEYS)
    if missing := [k for k in ("tasks", "methods", "seeds") if values.get(k) in (None, [], {})]:
        raise ConfigError(f"{path}: {missing[0]} is missing")
    protocol = values.get("protocol", "offline")
    if protocol not in PROTOCOLS:
        raise ConfigError(f"{path}: unknown protocol '{protocol}'. {nearest(protocol, PROTOCOLS)}")
    table = Table(
        name=path.stem,
        title=values.get("title", path.stem),
        protocol=PROTOCOLS[protocol],
        tasks=_tasks(path, values["tasks"]),
        methods=tuple(_methods(path, values["methods"])),
        seeds=_seeds(path, values["seeds"]),
        settings=values.get("settings") or {},
        task_settings=_task_settings(path, values),
        categories={
            key: _tasks(path, tasks) for key, tasks in (values.get("categories") or {}).items()
        },
        published=tuple(_published(path, values, PROTOCOLS[protocol])),
    )
    _check_settings(path, table)
    return table


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
def _published_config(task: str, algo: str) -> TrainConfig:
    return compose(task, algo)


def _check_keys(source: str, values: Any, known: Iterable[str]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source} is {values!r}, must be a mapping")
    for key in values:
        if key not in known:
            raise ConfigError(f"{source}: unknown key '{key}'. {nearest(str(key), known)}")


def _tasks(path: Path, names: Any) -> tuple[Task, ...]:
    """Tasks by their names, their families, or the name of a published list."""
    found: dict[Task, None] = {}
    for name in [names] if isinstance(names, str) else names:
        if name in TASK_LISTS:
            found |= dict.fromkeys(TASK_LISTS[name]())
        elif family := [task for task in offline_tasks() if task.family == name]:
            found |= dict.fromkeys(family)
        else:
            try:
                found[resolve_task(str(name))] = None
            except UserError as error:
                raise ConfigError(f"{path}: {error}") from error
    return tuple(found)


def _methods(path: Path, methods: Any) -> Iterator[Method]:
    if not isinstance(methods, Mapping):
        raise ConfigError(f"{path}: methods is {methods!r}, must be a mapping of names to settings")
    for name, row in methods.items():
        source = f"{path}: methods.{name}"
        if not re.fullmatch(r"\w[\w.+-]*", str(name)):
            raise ConfigError(f"{source}: a name has letters, digits, '_', '.', '+', '-' alone")
        _check_keys(source, row or {}, METHOD_KEYS)
        row = row or {}
        if row.get("observations", "state") not in ("state", "pixels"):
            raise ConfigError(f"{source}.observations is {row['observations']!r}: state or pixels")
        yield Method(
            name=str(name),
            algo=row.get("algo", str(name)),
            observations=row.get("observations"),
            settings=row.get("settings") or {},
            task_settings=_task_settings(path, row),
        )


def _task_settings(path: Path, values: Mapping[str, Any]) -> dict[str, Settings]:
    """`task_settings` by family and by canonical name."""
    families = {task.family for task in all_tasks()}
    settings = {}
    for name, row in (values.get("task_settings") or {}).items():
        key = name if name in families else _tasks(path, name)[0].name
        settings[key] = row
    return settings


def _seeds(path: Path, seeds: Any) -> dict[str, int]:
    by_kind = seeds if isinstance(seeds, Mapping) else {"state": seeds, "pixels": seeds}
    _check_keys(f"{path}: seeds", by_kind, ("state", "pixels"))
    for kind in ("state", "pixels"):
        if type(by_kind.get(kind)) is not int or by_kind[kind] < 1:
            raise ConfigError(
                f"{path}: seeds is {seeds!r}, must be a count of at least 1, or one for each of "
                "state and pixels"
            )
    return dict(by_kind)


def _published(path: Path, values: Mapping[str, Any], protocol: Protocol) -> Iterator[Published]:
    for name in values.get("published") or ():
        published = read_published(name)
        (phases,) = {len(figures) for figures in published.figures.values()}
        if phases != len(protocol.phases):
            raise ConfigError(
                f"{path}: {name} has figures of {phases} phases, a run of this protocol "
                f"{len(protocol.phases)}"
            )
        yield published


def _check_settings(path: Path, table: Table) -> None:
    """Refuse an unknown algorithm or setting, before anything runs."""
    checked = set()
    for task in table.tasks:
        for method in table.methods:
            settings = table.settings_of(method, task)
            key = (method.algo, repr(settings))
            if method.runs_on(task) and key not in checked:
                checked.add(key)
                source = f"{path}: {method.name} on {task.name}"
                try:
                    blank = defaults(task.name, method.algo)
                except UserError as error:
                    raise ConfigError(f"{source}: {error}") from error
                apply_layer(blank, settings, source)
