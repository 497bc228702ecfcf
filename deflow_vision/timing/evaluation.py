"""An evaluation in processes, against one environment stepped in a loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from deflow_vision.agents.base import Agent
from deflow_vision.envs.make import make_env
from deflow_vision.envs.pool import EnvPool
from deflow_vision.seeding import derive_seed
from deflow_vision.tasks import resolve_task
from deflow_vision.timing.agents import make_agent
from deflow_vision.timing.figures import Figure, Goal, Sample, faster
from deflow_vision.timing.machine import device
from deflow_vision.timing.settings import Settings
from deflow_vision.timing.turns import alone
from deflow_vision.training.evaluation import evaluate

TASK = "cube-single-play"
POOLS = ((1, 1), (2, 2), (8, 2))
"""Environments and processes that are timed; the last, with the default number of environments, is
held against the loop."""


def time_evaluation(settings: Settings) -> Iterator[Figure]:
    """Rows of an evaluation of `settings.episodes` episodes from state, by size of its pool."""
    loop, pools = alone(_time, settings)
    for (envs, processes), sample in pools.items():
        what = f"evaluation, {settings.episodes} state episodes, {envs} at a time, {processes} "
        what += "processes" if processes > 1 else "process"
        goal = Goal(1.8) if (envs, processes) == POOLS[-1] else None
        basis = "one environment in a loop"
        yield Figure("evaluation", what, sample, loop, basis, faster(sample, loop), goal)


def _time(settings: Settings) -> tuple[Sample, dict[tuple[int, int], Sample]]:
    agent = make_agent(TASK, network=settings.network).to(device()).eval()
    env_id = resolve_task(TASK).env_id
    loops: list[float] = []
    seconds: dict[tuple[int, int], list[float]] = {size: [] for size in POOLS}
    returns = set()
    env = make_env(env_id)
    pools = {size: EnvPool(env_id, num_envs=size[0], processes=size[1]) for size in POOLS}
    try:
        for pool in pools.values():  # their processes begin with the first episodes
            evaluate(agent, pool, seed=0, step=0, episodes=pool.num_envs, device=device())
        for turn in range(max(1, settings.rounds // 2)):
            start = time.perf_counter()
            _loop(agent, env, settings.episodes, turn)
            loops.append(time.perf_counter() - start)
            for size, pool in pools.items():
                start = time.perf_counter()
                played = evaluate(
                    agent, pool, seed=0, step=turn, episodes=settings.episodes, device=device()
                )
                seconds[size].append(time.perf_counter() - start)
                returns.add((turn, tuple(episode.episode_return for episode in played)))
    finally:
        env.close()
        for pool in pools.values():
            pool.close()
    if len(returns) > len(loops):
        raise RuntimeError("episodes depend on the pool that plays them")
    return Sample(tuple(loops), "s"), {
        size: Sample(tuple(values), "s") for size, values in seconds.items()
    }


def _loop(agent: Agent, env: Any, episodes: int, turn: int) -> None:
    for index in range(episodes):
        seed = derive_seed(0, "evaluation", turn, index)
        noise = torch.Generator().manual_seed(derive_seed(seed, "policy"))
        observation, _ = env.reset(seed=seed)
        done = False
        while not done:
            rows = torch.from_numpy(np.asarray(observation)[None]).to(device())
            action = agent.act(rows, generator=[noise])[0].cpu().numpy()
            observation, _, terminated, truncated, _ = env.step(action)
            done = bool(terminated or truncated)
