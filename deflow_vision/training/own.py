"""People's own data and environment: the task that the two make, checked against each other."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from deflow_vision.config import TrainConfig
from deflow_vision.datasets.address import locate
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import Store
from deflow_vision.envs.own import EnvFacts, examine
from deflow_vision.tasks import Task
from deflow_vision.training.dataset import open_configured
from deflow_vision.types import UserError

log = logging.getLogger(__name__)

GOAL = "default"
"""The goal whose rewards and masks somebody's own store holds."""


def open_own_task(config: TrainConfig) -> tuple[Task, Store]:
    """Open the store of a run with `--env`, and make the task of it and the environment.

    Args:
        config: a configuration whose `env` is set.

    Returns:
        The task, under the run's own name and with the environment's time limit; the store.

    Raises:
        UserError: one of them is missing or cannot be used, or they do not fit each other.
    """
    path, env = locate(config.data.path or ""), config.env
    assert env is not None
    if isinstance(path, Path) and not path.exists():
        raise UserError(
            f'there is no dataset at {path}: write your episodes into one with StoreWriter ("Your '
            'own data" in data/README.md), or pass its place as --data.path.'
        )
    store = open_configured(config.data)
    if GOAL not in store.train.goals():
        raise UserError(
            f"{path} has no rewards for {GOAL}, only for {', '.join(store.train.goals()) or 'no'} "
            f'goal: --env needs those of StoreWriter(..., goals=["{GOAL}"]).'
        )
    actions = store.train.actions
    furthest = float(np.abs(read_all(actions)).max())
    if furthest > 1 + 1e-5:
        raise UserError(
            f"{path} has actions up to {furthest:g} in size: a store holds them scaled to [-1, 1], "
            "2 * (action - low) / (high - low) - 1 with the bounds of the action space."
        )
    shape, dtype = store.train.observations.shape[1:], str(store.train.observations.dtype)
    facts = check_env(env, shape, dtype, actions.shape[1], path)
    if not facts.reports_success:
        log.info('%s puts no "success" into info: evaluations tell returns and lengths alone', env)
    task = Task(
        name=config.task,
        family="own",
        suite="own",
        dataset=str(store.attributes["env_id"]),
        env_id=env,
        goal=None,
        pixels=store.train.pixels,
        max_episode_steps=facts.max_episode_steps,
        state_dim=shape[-1],
        action_dim=facts.action_dim,
        discount=getattr(config.agent, "discount", 0.99),
        q_agg=getattr(config.agent, "q_agg", "mean"),
        offline=False,
        offline_to_online=False,
        table="",
    )
    return task, store


def check_env(
    env: str, shape: tuple[int, ...], dtype: str, action_dim: int, other: Path | str
) -> EnvFacts:
    """Look at somebody's own environment, and hold its spaces against other ones.

    Args:
        env: `module:factory`.
        shape: (D,) or (H, W, C), of a single frame, as it should be.
        dtype: "float32" or "uint8", as it should be.
        action_dim: A, as it should be.
        other: the store or the run that says so.

    Returns:
        What the environment is.

    Raises:
        UserError: it cannot be made or used, or its spaces are other ones.
    """
    facts = examine(env)
    there = f"observations {tuple(shape)} {dtype}, {action_dim} actions"
    here = (
        f"observations {facts.observation_shape} {facts.observation_dtype}, "
        f"{facts.action_dim} actions"
    )
    if here != there:
        raise UserError(f"--env {env} has {here}; {other} has {there}.")
    return facts
