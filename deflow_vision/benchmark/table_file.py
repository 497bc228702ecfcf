"""Reads and checks the files in `configs/benchmarks/` that describe tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deflow_vision.benchmark.protocols import PROTOCOLS, Protocol
from deflow_vision.benchmark.published import Published, read_published
from deflow_vision.benchmark.tables import Method, Settings, Table
from deflow_vision.config import ConfigError, apply_layer, compose
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

TASK_LISTS = {"offline": offline_tasks, "offline-to-online": offline_to_online_tasks}
"""Lists of published tasks that a table may name in place of tasks."""

KEYS = (
    *("title", "protocol", "tasks", "methods", "seeds", "preset", "settings", "task_settings"),
    *("categories", "published"),
)
MAX_SEEDS = 1000
METHOD_KEYS = ("algo", "observations", "settings", "task_settings")


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
    table = _read(path, read_yaml(path))
    _check_settings(path, table)
    return table


def _read(path: Path, values: Mapping[str, Any]) -> Table:
    """The table in a file, whose settings are not checked yet."""
    _check_keys(str(path), values, KEYS)
    if missing := [k for k in ("tasks", "methods", "seeds") if values.get(k) in (None, [], {})]:
        raise ConfigError(f"{path}: {missing[0]} is missing")
    protocol = values.get("protocol", "offline")
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        known = nearest(str(protocol), PROTOCOLS)
        raise ConfigError(f"{path}: unknown protocol {protocol!r}. {known}")
    tasks = _tasks(path, values["tasks"])
    return Table(
        name=path.stem,
        title=str(values.get("title", path.stem)),
        protocol=PROTOCOLS[protocol],
        tasks=tasks,
        methods=tuple(_methods(path, values["methods"])),
        seeds=_seeds(path, values["seeds"]),
        preset=values.get("preset"),
        settings=_mapping(str(path), values, "settings"),
        task_settings=_task_settings(path, str(path), values),
        categories=_categories(path, values, tasks),
        published=tuple(_published(path, values, PROTOCOLS[protocol])),
    )


def _check_keys(source: str, values: Any, known: Iterable[str]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source} is {values!r}, must be a mapping")
    for key in values:
        if key not in known:
            raise ConfigError(f"{source}: unknown key '{key}'. {nearest(str(key), known)}")


def _tasks(path: Path, names: Any) -> tuple[Task, ...]:
    """Tasks by their names, their families, or the name of a published list."""
    found: dict[Task, None] = {}
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: {names!r} must be the name of a task, or a list of names")
    for name in names:
        if name in TASK_LISTS:
            found |= dict.fromkeys(TASK_LISTS[name]())
        elif family := [task for task in offline_tasks() if task.family == name]:
            found |= dict.fromkeys(family)
        else:
            try:
                found[resolve_task(name)] = None
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
            settings=_mapping(source, row, "settings"),
            task_settings=_task_settings(path, source, row),
        )


def _mapping(source: str, values: Mapping[str, Any], key: str) -> Settings:
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{source}: {key} is {found!r}, must be a mapping")
    return found


def _task_settings(path: Path, source: str, values: Mapping[str, Any]) -> dict[str, Settings]:
    """`task_settings` by family and by canonical name."""
    families = {task.family for task in all_tasks()}
    rows = _mapping(source, values, "task_settings")
    return {
        name if name in families else _tasks(path, name)[0].name: _mapping(source, rows, name)
        for name in rows
    }


def _categories(
    path: Path, values: Mapping[str, Any], tasks: tuple[Task, ...]
) -> dict[str, tuple[Task, ...]]:
    categories = {}
    for name, members in _mapping(str(path), values, "categories").items():
        categories[name] = _tasks(path, members)
        if missing := [task.name for task in categories[name] if task not in tasks]:
            raise ConfigError(f"{path}: category {name} has {missing[0]}, the table has not")
    return categories


def _seeds(path: Path, seeds: Any) -> dict[str, int]:
    by_kind = seeds if isinstance(seeds, Mapping) else {"state": seeds, "pixels": seeds}
    _check_keys(f"{path}: seeds", by_kind, ("state", "pixels"))
    for kind in ("state", "pixels"):
        if type(by_kind.get(kind)) is not int or not 1 <= by_kind[kind] <= MAX_SEEDS:
            raise ConfigError(
                f"{path}: seeds is {seeds!r}, must be a count from 1 to {MAX_SEEDS:,}, or one for "
                "each of state and pixels"
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
    if table.preset is not None:
        try:
            compose(table.tasks[0].name, table.methods[0].algo, preset=table.preset)
        except UserError as error:
            raise ConfigError(f"{path}: {error}") from error
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
