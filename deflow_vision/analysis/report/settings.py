"""A run's configuration for reading: every setting by section, those marked that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from deflow_vision.config import SETTLED_BY_RUN, compose, flatten, to_dict
from deflow_vision.types import UserError


@dataclass(frozen=True)
class Setting:
    """One line.

    Attributes:
        name: with dots, such as agent.tau.
        value: as in YAML.
        published: the published setting where this one is another, else empty.
    """

    name: str
    value: str
    published: str


@dataclass(frozen=True)
class Section:
    """Settings of one part of the configuration.

    Attributes:
        name: the part; "run" for what is in none.
        settings: its lines.
    """

    name: str
    settings: Sequence[Setting]

    @property
    def changed(self) -> int:
        """How many differ from the published ones."""
        return sum(bool(each.published) for each in self.settings)


UNPUBLISHED = (
    *("seed", "run_dir", "data.path", "data.cache", "checkpoint.", "log."),
    *("eval.num_envs", "eval.videos"),
)
"""Settings that no published protocol has."""


def sections_of(config: Mapping[str, Any]) -> list[Section]:
    """The settings of a run's `config.yaml`, beside the published ones where there are any."""
    published = flatten(_published(config))
    groups: dict[str, list[Setting]] = {}
    for name, value in flatten(config).items():
        section, dot, _ = name.partition(".")
        other = ""
        if published.get(name, value) not in (value, *SETTLED_BY_RUN):
            other = "" if name.startswith(UNPUBLISHED) else _text(published[name])
        setting = Setting(name, _text(value), other)
        groups.setdefault(section if dot else "run", []).append(setting)
    return [Section(name, settings) for name, settings in groups.items()]


def _published(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the task and the algorithm bring; nothing for one's own environment."""
    if config.get("env") or not config.get("task") or not config.get("algo"):
        return {}
    try:
        return to_dict(compose(str(config["task"]), str(config["algo"])))
    except UserError:  # a task or algorithm of another version
        return {}


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).split("\n...")[0].strip()
