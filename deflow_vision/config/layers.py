"""Dataclasses from YAML and back: strict about keys and types, and able to say what was meant."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from deflow_vision.agents import AGENTS
from deflow_vision.config.schema import TrainConfig, check_algo
from deflow_vision.tasks import nearest
from deflow_vision.types import UserError

T = TypeVar("T")

_MAX_BYTES, _MAX_NODES = 1 << 20, 100_000  # far more than any configuration has

NOT_STORED = {"resume"}
"""Fields that say how a run was started, not what it is."""

SETTLED_BY_RUN = ("auto", "fast", None)
"""Values in place of which a run records what they came to."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the file, the key and the way out."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: `no` and `off` are words, 3e-4 is a number.

    Not libyaml's, which is faster: a file that is nested too deeply ends the process there.
    """


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """Plain YAML with each list on one line."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True)
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, is no mapping, or too large for a
            configuration, aliases written out.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: more than {_MAX_BYTES:,} bytes, is no configuration")
    values = copy.deepcopy(_parse_once(content, str(path)))
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, must be a mapping")
    return values or {}


def _parse(text: str | bytes, source: str) -> Any:
    """The value in a YAML text.

    Raises:
        ConfigError: it is not YAML, or its aliases make too much of it.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > _MAX_NODES:
                raise ConfigError(f"{source}: more than {_MAX_NODES:,} values, aliases written out")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        # Values that only look like a number or a date raise what Python makes of them.
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


_parse_once = lru_cache(maxsize=64)(_parse)
"""For tables that are read for each cell of a benchmark; what it gives is not to be changed."""


def _size(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """Values in a node where every alias is written out; without end for one within itself."""
    if node not in known:
        known[node] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        nested = (part for each in parts for part in (each if isinstance(each, tuple) else (each,)))
        known[node] = 1 + sum(_size(part, known) for part in nested)
    return known[node]


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """A layer out of `key=value` words, each value as YAML reads it.

    Raises:
        ConfigError: a word has no `=`, or its value is not YAML.
    """
    layer = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} must be key=value, such as num_proposals=10")
        layer[key] = _parse(value, repr(text))
    return layer


def apply_layer(config: T, layer: Mapping[str, Any], source: str, prefix: str = "") -> T:
    """Replace fields of a dataclass by the values of a nested mapping of the same shape.

    Args:
        config: a dataclass instance, left as it is.
        layer: the fields to replace, as YAML has them (lists for tuples, strings for paths).
        source: where the layer comes from, for messages.
        prefix: dotted name of `config` within the whole, with its dot.

    Returns:
        A new instance.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or range.
    """
    hints = get_type_hints(type(config))
    hints = {key: hint for key, hint in hints.items() if key not in NOT_STORED}
    changes = {}
    for key, value in layer.items():
        if key not in hints:
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'. {nearest(str(key), hints)}")
        current = getattr(config, key)
        where = f"{source}: {prefix}{key}"
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where} is {value!r}, must be a mapping")
            changes[key] = apply_layer(current, value, source, f"{prefix}{key}.")
        else:
            changes[key] = _convert(value, hints[key], where)
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A YAML value as the type of its field.

    Raises:
        ConfigError: it has another type, or is none of the field's choices.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        kinds = [arg for arg in args if arg is not types.NoneType]
        if len(kinds) == 1:
            return _convert(value, kinds[0], where)
        for kind in kinds:
            with suppress(ConfigError):
                return _convert(value, kind, where)
        raise ConfigError(f"{where} is {value!r}, must be {' or '.join(map(_name, kinds))}")
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}. {nearest(str(value), map(str, args))}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, args[0], where) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):  # of what no float holds, which is no value for one
            return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ConfigError(f"{where} is {value!r} ({type(value).__name__}), must be a {_name(kind)}")


def _name(kind: Any) -> str:
    """What a person would write for a field of this type."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return "list" if get_origin(kind) is tuple else getattr(kind, "__name__", str(kind))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values: lists for tuples, strings for paths; without `resume`."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in NOT_STORED
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys: `{"agent.tau": 0.005}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration as YAML, which `from_yaml` reads back to an equal one."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, width=100)


def from_yaml(path: Path) -> TrainConfig:
    """The configuration that `to_yaml` wrote.

    Raises:
        ConfigError: the file is missing or is no configuration of a run.
    """
    values = read_yaml(path)
    if missing := {"task", "algo"} - values.keys():
        raise ConfigError(f"{path}: {' and '.join(sorted(missing))} missing, is no run's config")
    env = None if values.get("env") is None else str(values["env"])
    try:
        blank = defaults(str(values["task"]), str(values["algo"]), env)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return apply_layer(blank, values, str(path))


def defaults(task: str, algo: str, env: str | None = None) -> TrainConfig:
    """The configuration before any layer: the dataclasses' own defaults.

    Raises:
        ValueError: there is no such task or algorithm.
    """
    check_algo(algo)
    return TrainConfig(task=task, env=env, algo=algo, agent=AGENTS[algo].Config())
