"""Evaluate the newest checkpoint of a run: `python scripts/evaluate.py --run runs/... [--help]`."""

import sys
from pathlib import Path

import numpy as np
import torch
import tyro

from deflow_vision.agents import AGENTS
from deflow_vision.config import ConfigError, from_yaml
from deflow_vision.envs.pool import EnvPool
from deflow_vision.tasks import resolve_task
from deflow_vision.training import checkpoint
from deflow_vision.training.evaluation import VIDEO_FPS, evaluate
from deflow_vision.training.setup import make_spec, open_task_store
from deflow_vision.training.video import write_video
from deflow_vision.types import UserError


def main(
    run: Path,
    episodes: int = 50,
    videos: int = 0,
    num_envs: int = 4,
    max_episode_steps: int | None = None,
) -> None:
    """Run seeded episodes in the environment and print their success rate, return and length.

    Args:
        run: the run's folder.
        episodes: how many; the same number gives the same episodes as in training.
        videos: of how many of them to write an mp4 into the run's videos/.
        num_envs: environments side by side, a process each; the results do not depend on it.
        max_episode_steps: cap on an episode's length; by default the task's own limit.
    """
    config = from_yaml(run / "config.yaml")
    task = resolve_task(config.task)
    store, stack = open_task_store(config, task), config.data.frame_stack or 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    agent = AGENTS[config.algo](make_spec(store, task, stack), config.agent, config.encoder)
    newest = checkpoint.latest(run)
    if newest is None:
        raise UserError(f"{run} holds no complete checkpoint yet.")
    checkpoint.load(newest, agent, None)
    with EnvPool(
        task.env_id,
        num_envs=min(num_envs, episodes),
        frame_stack=stack,
        max_episode_steps=max_episode_steps,
        render_profile=store.attributes["render_profile"] or "official",
    ) as pool:
        done = evaluate(
            agent.to(device),
            pool,
            seed=config.seed,
            step=newest.step,
            episodes=episodes,
            videos=videos,
            device=device,
        )
    for episode in done[:videos]:
        path = run / "videos" / f"evaluate_step_{newest.step}_episode_{episode.index}.mp4"
        write_video(path, np.stack(episode.frames), fps=VIDEO_FPS)
        print(path)
    successes = sum(episode.success for episode in done)
    print(
        f"{task.name}, {newest.step} updates: {successes} of {episodes} episodes succeed "
        f"({successes / episodes:.0%}), mean return "
        f"{np.mean([episode.episode_return for episode in done]):.1f}, mean length "
        f"{np.mean([episode.length for episode in done]):.1f}"
        + (f", capped at {max_episode_steps} steps" if max_episode_steps else "")
    )


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (UserError, ConfigError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
