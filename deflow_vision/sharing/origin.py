"""Where a policy comes from: what its run folder tells, without the machine that it ran on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from deflow_vision.config import TrainConfig
from deflow_vision.datasets.card import facts, goal_facts, split_facts
from deflow_vision.sharing.record import Record
from deflow_vision.sharing.results import evaluations
from deflow_vision.tasks import env_of, resolve_task
from deflow_vision.training.own import GOAL
from deflow_vision.training.run_folder import find_dataset, read_record, read_spec

FACTS = ("source", "seeds", "observations", "actions", "versions", "checksum")
"""What is told of a dataset's card: nothing of where and how it is stored."""
GOAL_FACTS = {
    "rewards": "rewards",
    "mean": "mean reward",
    "states": "states with mask 0",
    "episodes": "episodes with such a state",
}
"""What is told of how good the data are for the task, and how it is called there."""


def describe(run_dir: Path, config: TrainConfig, updates: int, noise_dim: int) -> Record:
    """What to say of a checkpoint of a run.

    Args:
        run_dir: the run folder.
        config: its configuration.
        updates: those that the checkpoint had.
        noise_dim: of its agent.
    """
    record, spec = read_record(run_dir), read_spec(run_dir)
    env_id = env_of(config.task, config.env)
    return Record(
        task=config.task,
        algo=config.algo,
        env_id=env_id,
        observation_shape=spec.observation_shape,
        observation_dtype=spec.observation_dtype,
        frame_stack=config.data.frame_stack or 1,
        render_profile=record["dataset"]["render_profile"] or "official",
        action_dim=spec.action_dim,
        noise_dim=noise_dim,
        reward_range=spec.reward_range,
        updates=updates,
        run=_run_id(config, record),
        data=_data(run_dir, config, record["dataset"]),
        versions=record["versions"],
        evaluations=evaluations(run_dir, updates, config.seed, env_id),
    )


def _run_id(config: TrainConfig, record: Mapping[str, Any]) -> str:
    digests = record["dataset"]["digests"]
    names = [config.task, config.algo, config.seed, record["started"], record["machine"], digests]
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:16]


def _data(run_dir: Path, config: TrainConfig, dataset: Mapping[str, Any]) -> dict[str, str]:
    """The dataset's name and, where it still is where the run had it, its card."""
    name = {"dataset": PurePosixPath(dataset["path"]).name.removesuffix(".zarr")}
    store = find_dataset(run_dir)
    if store is None:
        return name
    about = {key: fact for key, fact in facts(store).items() if key in FACTS}
    goal = goal_facts(store.train, GOAL if config.env else resolve_task(config.task).goal_key)
    goal = {GOAL_FACTS[key]: fact for key, fact in goal.items() if key in GOAL_FACTS}
    return name | about | split_facts(store.train) | goal


def without_places(config: TrainConfig) -> TrainConfig:
    """The configuration without what names a place: paths, and the dataset's folder or address."""
    data = dataclasses.replace(config.data, path=None)
    return _without_paths(dataclasses.replace(config, data=data))  # type: ignore[no-any-return]


def _without_paths(config: Any) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Path):
            changes[field.name] = None
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _without_paths(value)
    return dataclasses.replace(config, **changes)
