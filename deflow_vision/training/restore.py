"""A trained policy out of a run folder, and its evaluation once more."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deflow_vision.agents import AGENTS
from deflow_vision.agents.base import Agent
from deflow_vision.config import TrainConfig, apply_layer, from_yaml
from deflow_vision.envs.pool import EnvPool
from deflow_vision.files import write_atomically
from deflow_vision.seeding import derive_seed
from deflow_vision.tasks import check_own, env_of
from deflow_vision.training import checkpoint
from deflow_vision.training.drawing import check_drawing
from deflow_vision.training.evaluation import Evaluator
from deflow_vision.training.logger import RunLogger
from deflow_vision.training.own import check_env
from deflow_vision.training.run_folder import (
    describe_environment,
    find_dataset,
    read_render_profile,
    read_spec,
)
from deflow_vision.training.weights import check_fit
from deflow_vision.types import Spec, UserError

log = logging.getLogger(__name__)


def load_policy(
    run_dir: Path,
    step: int | None = None,
    device: torch.device | str = "cpu",
    acting: Mapping[str, Any] | None = None,
) -> tuple[Agent, TrainConfig, int]:
    """Build the agent of a run with the weights of one of its checkpoints.

    Args:
        run_dir: the run folder; the dataset is not needed.
        step: which checkpoint; by default the newest.
        device: where the agent goes, such as "cuda:1".
        acting: hyper-parameters of the agent to change, of how it acts; one that changes a network
            does not fit the weights, which is an error.

    Returns:
        The agent, its run's configuration, and the updates it had.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"no run in {run_dir}: a run folder holds a config.yaml.")
    config, spec = from_yaml(run_dir / "config.yaml"), read_spec(run_dir)
    if acting:
        config = replace(config, agent=apply_layer(config.agent, acting, "--acting"))
    found = {c.step: c for c in checkpoint.checkpoints(run_dir)}
    if not found or (step is not None and step not in found):
        steps = ", ".join(map(str, found)) or "none"
        raise UserError(f"{run_dir} has no checkpoint at step {step}; it has: {steps}.")
    chosen = found[max(found) if step is None else step]
    agent = build_agent(config, spec, chosen.step, device, chosen.path / checkpoint.FILES[0])
    checkpoint.load(chosen, agent, optimizer=None)
    return agent, config, chosen.step


def build_agent(
    config: TrainConfig, spec: Spec, updates: int, device: torch.device | str, weights: Path
) -> Agent:
    """An agent in the form that it has after so many updates, to load weights into and to act.

    Args:
        config: its run.
        spec: what it was built for.
        updates: those it had; an agent may change its form when it goes online.
        device: where it goes.
        weights: what will be loaded: it decides, before memory is taken for the agent.

    Raises:
        UserError: there is no such device here, or the weights are of another agent.
    """

    def build() -> Agent:
        agent = AGENTS[config.algo](spec, config.agent, replace(config.encoder, weights=None))
        if updates > config.offline_steps:
            agent.begin_online()
        return agent

    with torch.device("meta"):
        check_fit(weights, build())
    agent = build()
    try:
        return agent.to(device).eval()
    except RuntimeError as error:
        raise UserError(f"device {str(device)!r} cannot be used here: {error}") from None


def evaluate_run(
    run_dir: Path,
    out_dir: Path,
    *,
    episodes: int,
    videos: int,
    num_envs: int,
    step: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    env: str | None = None,
    render_profile: str | None = None,
    acting: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint in the real environment, at its own episode length.

    Args:
        run_dir: the run folder.
        out_dir: takes `episodes.csv`, `videos/` and, of all this, `evaluation.json`; a new folder.
        episodes: N.
        videos: how many of them are filmed.
        num_envs: environments that run side by side.
        step: which checkpoint; by default the newest.
        seed: of the episodes; none of them is one that training evaluated.
        device: where the agent acts.
        env: another environment than the run's, as `module:factory`.
        render_profile: how frames are drawn; by default as those that the run was trained on were.
            Another one than that is warned of where the policy sees them.
        acting: hyper-parameters of how the agent acts, in place of the run's.

    Returns:
        Means over the episodes, as `eval/...`.
    """
    if episodes < 1 or num_envs < 1:
        raise UserError(f"{episodes} episodes in {num_envs} environments: both must be at least 1.")
    agent, config, updates = load_policy(run_dir, step, device, acting)
    env = env or config.env
    if env is not None:
        check_own(env)
        spec = read_spec(run_dir)
        *image, channels = spec.observation_shape
        shape = (*image, channels // (config.data.frame_stack or 1))
        check_env(env, shape, spec.observation_dtype, spec.action_dim, run_dir)
    profile = _render_profile(run_dir, render_profile, env)
    with (
        EnvPool(
            env_of(config.task, env),
            num_envs=min(num_envs, episodes),
            frame_stack=config.data.frame_stack or 1,
            render_profile=profile,
            resolution=read_spec(run_dir).resolution,
        ) as pool,
        RunLogger(out_dir) as logger,
    ):
        if profile == read_render_profile(run_dir):
            check_drawing(pool, find_dataset(run_dir))
        evaluator = Evaluator(
            pool,
            out_dir,
            logger,
            seed=derive_seed(seed, "re-evaluation"),
            episodes=episodes,
            videos=videos,
            cap=None,
            device=torch.device(device),
        )
        metrics = evaluator(agent, updates)
    arguments = {
        "run": str(run_dir.resolve()),
        "step": updates,
        "env": pool.env_id,
        "render_profile": profile,
        "seed": seed,
        "episodes": episodes,
        "videos": videos,
        "num_envs": num_envs,
        "device": str(device),
        "acting": dict(acting or {}),
    }
    record = {"arguments": arguments, "metrics": metrics, **describe_environment()}
    write_atomically(out_dir / "evaluation.json", json.dumps(record, indent=2) + "\n")
    return metrics


def _render_profile(run_dir: Path, asked: str | None, env: str | None) -> str:
    trained = read_render_profile(run_dir)
    if asked is None or asked == trained:
        return trained
    if env is not None:
        raise UserError(f"{env} draws its frames itself: it has no render profile {asked!r}.")
    if read_spec(run_dir).pixels:
        log.warning(
            "the policy sees frames drawn with the render profile %r, but was trained on frames "
            "drawn with %r: its success may differ for that reason alone.",
            asked,
            trained,
        )
    return asked
