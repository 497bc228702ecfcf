"""From `sys.argv` to a `TrainConfig`: which layers there are, and in what order they apply."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from deflow_vision.config.layers import (
    ConfigError,
    apply_layer,
    defaults,
    flatten,
    from_yaml,
    read_yaml,
    to_dict,
    to_yaml,
)
from deflow_vision.config.schema import TrainConfig, check_algo
from deflow_vision.tasks import all_tasks, check_own, configs_root, data_root, nearest, resolve_task
from deflow_vision.types import UserError

DESCRIPTION = """Train an agent on a dataset, evaluate it in its environment.

Settings apply in this order, later ones win: defaults, configs/agents/<algo>.yaml (defaults),
configs/tasks/*.yaml, the agent's row for the task, --preset (first what it has for all, then for
this agent and task), --config from left to right, flags."""

RESUMABLE = (
    "offline_steps",
    "online_steps",
    "num_threads",
    "data.path",
    "data.cache",
    "data.retry_minutes",
    "online.",
    "agent.fix_bc_flow_online",
    "eval.",
    "checkpoint.",
    "log.",
)
"""What a resumed run may change: nothing that a past update, or its place in the run, used. What
the online phase alone uses may change until that phase has begun, see `training.identity`."""


@dataclass(frozen=True)
class Choice:
    """What picks the layers."""

    task: str | None = None
    """Short name (visual-cube-double-play, cube-double-play-task3) or full OGBench or D4RL id.
    Without a goal it is the environment's default one, and task1 for pixels. With --env: a name
    of your own, by default the factory's."""
    env: str | None = None
    """Your own Gymnasium environment, as module:factory (my_package.my_env:make), for your own
    data: --data.path, by default {task}.zarr. It has no published settings: choose your own."""
    algo: str | None = None
    """The algorithm: a file of configs/agents/. By default deflow."""
    preset: str | None = None
    """A file of configs/presets/, such as demo, demo-state, debug or offline-to-online."""
    config: tuple[Path, ...] = ()
    """YAML files of settings, the last one strongest; a run's config.yaml is one."""
    resume: Path | None = None
    """Continue the run in this folder, with the settings that it started with."""
    dry_run: bool = False
    """Print the resolved configuration as YAML and stop."""


@dataclass(frozen=True)
class CommandLine:
    """Every flag."""

    choice: Annotated[Choice, tyro.conf.arg(name="")]
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")]


def load(argv: Sequence[str]) -> TrainConfig:
    """The configuration that a command line asks for.

    `--help` and `--dry-run` print and exit with code 0. What cannot be used is explained on stderr
    and exits with code 2.

    Args:
        argv: the arguments after the program's name.
    """
    choice, flags = tyro.cli(
        Choice, args=argv, return_unknown_args=True, add_help=False, default=Choice()
    )
    try:
        if {"-h", "--help"} & set(flags) and not choice.task:
            _parse(argv, choice, defaults(all_tasks()[0].name, choice.algo or "deflow"))
        if choice.resume:
            config = _resume(argv, choice)
        else:
            base = compose(choice.task, choice.algo, choice.preset, choice.config, choice.env)
            config = _resolve(_parse(argv, choice, base))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    if choice.dry_run:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def compose(
    task: str | None = None,
    algo: str | None = None,
    preset: str | None = None,
    files: Sequence[Path] = (),
    env: str | None = None,
) -> TrainConfig:
    """The configuration of a run before any flag.

    Args:
        task: its name; by default the one that a file names.
        algo: its name; by default the one that a file names, else "deflow".
        preset: the name of a file in `configs/presets/`.
        files: YAML files, the last one strongest.
        env: somebody's own environment; by default the one that a file names.

    Raises:
        UserError: something is unknown, missing or out of range; the message names the file, the
            key and the nearest valid ones.
    """
    layers = [(str(path), read_yaml(path)) for path in files]
    tables: Mapping[str, Any] = {}
    if preset is not None:
        layers.insert(0, _preset(preset))
        tables = layers[0][1].pop("agents", {})
    for source, layer in reversed(layers):
        named_env = _pop(layer, source, "env", check_own)
        named_algo = _pop(layer, source, "algo", check_algo)
        env, algo = env or named_env, algo or named_algo
    for source, layer in reversed(layers):
        named_task = _pop(layer, source, "task", str if env else resolve_task)
        task = task or named_task
    if env is not None:
        check_own(env)
        task = task or env.replace(":", ".")
    elif task is None:
        raise ConfigError("--task is missing, such as --task visual-cube-double-play")
    else:
        task = resolve_task(task).name
    config = defaults(task, algo or "deflow", env)
    if preset is not None:
        layers[1:1] = _rows(config, layers[0][0], tables.get(config.algo, {}))
    for source, layer in (*_published(config), *layers):
        config = apply_layer(config, layer, source)
    return _resolve(config)


def _pop(
    layer: dict[str, Any], source: str, key: str, check: Callable[[str], object]
) -> str | None:
    """Take a name out of a layer, checked."""
    value = layer.pop(key, None)
    if value is None:
        return None
    name = str(value)
    try:
        check(name)
    except UserError as error:
        raise ConfigError(f"{source}: {error}") from error
    return name


def _published(config: TrainConfig) -> list[tuple[str, Mapping[str, Any]]]:
    """The layers of `configs/agents/<algo>.yaml` and `configs/tasks/`, weakest first."""
    root = configs_root()
    agent_file = root / "agents" / f"{config.algo}.yaml"
    base, *rows = _rows(config, str(agent_file), read_yaml(agent_file))
    if config.env is not None:
        return [base]
    task = resolve_task(config.task)
    task_file = root / "tasks" / task.table
    # A task's switches are for the agents that have them: BC has no discount.
    switches = {"discount": task.discount, "q_agg": task.q_agg}
    has = {field.name for field in fields(config.agent)}
    return [
        base,
        (str(task_file), read_yaml(task_file).get("settings", {})),
        (str(task_file), {"agent": {key: switches[key] for key in switches if key in has}}),
        *rows,
    ]


def _rows(
    config: TrainConfig, source: str, table: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """The layers of an algorithm's table: its defaults, the row of the family, that of the task.

    Raises:
        ConfigError: a row of no family or task.
    """
    rows = table.get("rows", {})
    known = {name for each in all_tasks() for name in (each.family, each.name)}
    if unknown := rows.keys() - known:
        name = min(unknown)
        raise ConfigError(f"{source}: unknown family or task '{name}'. {nearest(name, known)}")
    layers = [(source, table.get("defaults", {}))]
    if config.env is None:
        task = resolve_task(config.task)
        layers += [(source, rows.get(task.family, {})), (source, rows.get(task.name, {}))]
    return layers


def _preset(name: str) -> tuple[str, dict[str, Any]]:
    folder = configs_root() / "presets"
    known = [path.stem for path in folder.glob("*.yaml")]
    if name not in known:
        raise ConfigError(f"unknown preset '{name}'. {nearest(name, known)}")
    path = folder / f"{name}.yaml"
    return str(path), read_yaml(path)


def _parse(argv: Sequence[str], choice: Choice, settings: TrainConfig) -> TrainConfig:
    """Put the flags on top; tyro explains those that it cannot use and exits with code 2.

    Raises:
        ConfigError: values that contradict each other.
    """
    default = CommandLine(choice, settings)
    try:
        return tyro.cli(CommandLine, args=argv, default=default, description=DESCRIPTION).settings
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _resolve(config: TrainConfig) -> TrainConfig:
    """Fill in what depends on the task: the store's path and the frame stack."""
    dataset, frame_stack = config.task, config.data.frame_stack
    if config.env is None:  # else the store tells, when it is opened, whether it holds pixels
        task = resolve_task(config.task)
        dataset, frame_stack = task.dataset, frame_stack or (3 if task.pixels else 1)
    path = config.data.path or str(data_root() / "{dataset}.zarr")
    path = path.replace("{dataset}", dataset)
    return replace(config, data=replace(config.data, path=path, frame_stack=frame_stack))


def _resume(argv: Sequence[str], choice: Choice) -> TrainConfig:
    """The configuration of an earlier run, with what may be changed changed.

    Raises:
        ConfigError: there is no such run, or the flags ask for another one.
    """
    run = choice.resume
    assert run is not None
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"no run in {run}: --resume takes a folder that holds a config.yaml")
    saved = from_yaml(run / "config.yaml")
    if choice.preset or choice.config:
        raise ConfigError("--resume keeps the run's own settings: drop --preset and --config")
    asked = {"task": choice.task, "algo": choice.algo, "env": choice.env}
    if choice.task and saved.env is None:
        asked["task"] = resolve_task(choice.task).name
    wanted = _parse(argv, choice, saved)
    new = flatten(to_dict(wanted)) | {key: value for key, value in asked.items() if value}
    for key, old in flatten(to_dict(saved)).items():
        # The online phase starts where the offline phase was said to end.
        late = key == "offline_steps" and saved.online_steps > 0
        if new[key] != old and (late or not key.startswith(RESUMABLE)):
            raise ConfigError(
                f"{run} was started with {key} {old!r}, the command line asks for {new[key]!r}: "
                "its updates and its checkpoint depend on it. Drop the flag, or start a new run "
                f"without --resume. A resumed run may change {', '.join(RESUMABLE)}"
            )
    return replace(wanted, resume=run, run_dir=run)
