"""Evaluation in the real environment: exactly N seeded episodes, many at a time.

Every episode has a seed of its own for its reset and its policy noise, so evaluation touches no
generator of training, and an episode does not depend on which others ran beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from deflow_vision.agents.base import Agent
from deflow_vision.envs.pool import EnvPool
from deflow_vision.envs.rendering import GL_PACKAGES
from deflow_vision.seeding import derive_seed
from deflow_vision.tasks import d4rl_task
from deflow_vision.training.logger import RunLogger
from deflow_vision.training.video import write_video

log = logging.getLogger(__name__)

VIDEO_FPS = 20
STATE_VIDEO_EVERY = 4
"""A state task draws every fourth step: a picture costs far more than a step."""

ACT_ROWS = 8
"""Rows of every call of a policy, the last one repeated where there are fewer. A matrix product
rounds a row differently when the number of rows is another one, and in 200 steps two episodes part
over that: so the number is always the same, whatever the number of environments."""


@dataclass
class Episode:
    """One evaluation episode, as it runs and as it ended.

    Attributes:
        index: its number within the evaluation.
        seed: seeds its reset and its policy noise.
        success: the environment's `success` at the last step; None where it reports none.
        episode_return: the sum of rewards.
        length: steps taken.
        terminated: whether the environment ended it (else it ran out of steps).
        frames: pictures for a video, where one was asked for.
    """

    index: int
    seed: int
    success: bool | None = None
    episode_return: float = 0.0
    length: int = 0
    terminated: bool = False
    frames: list[np.ndarray] = field(default_factory=list)


def evaluate(
    agent: Agent,
    pool: EnvPool,
    *,
    seed: int,
    step: int,
    episodes: int,
    videos: int = 0,
    device: torch.device,
) -> list[Episode]:
    """Run `episodes` episodes of the agent's policy.

    Args:
        agent: acts without exploration.
        pool: environments.
        seed: the run's seed.
        step: updates done; together they seed the episodes.
        episodes: N.
        videos: of how many episodes, from the first, to keep frames.
        device: where the agent is.

    Returns:
        N finished episodes, by index.
    """
    waiting = _episodes(seed, step, episodes)
    finished: list[Episode] = []
    running: dict[int, tuple[Episode, torch.Generator]] = {}
    observations: dict[int, np.ndarray] = {}

    def start(slots: Sequence[int]) -> None:
        started = dict(zip(slots, waiting, strict=False))
        seeds = [episode.seed for episode in started.values()]
        for slot, observation in zip(started, pool.reset_many(list(started), seeds), strict=True):
            episode = started[slot]
            noise = torch.Generator().manual_seed(derive_seed(episode.seed, "policy"))
            running[slot] = (episode, noise)
            see(slot, observation)

    def see(slot: int, observation: np.ndarray) -> None:
        observations[slot] = observation
        episode = running[slot][0]
        if episode.index < videos:
            if observation.dtype == np.uint8:
                episode.frames.append(observation[..., -pool.channels :])
            elif episode.length % STATE_VIDEO_EVERY == 0:
                episode.frames.append(pool.render(slot))

    start(range(min(episodes, pool.num_envs)))
    while running:
        slots = sorted(running)
        batch = np.stack([observations[slot] for slot in slots])
        with _one_thread():
            actions = _act(agent, batch, [running[slot][1] for slot in slots], device)
        done = []
        for slot, result in zip(slots, pool.step(slots, actions), strict=True):
            episode = running[slot][0]
            episode.length += 1
            episode.episode_return += float(result.reward)
            see(slot, result.observation)
            if result.terminated or result.truncated:
                if "success" in result.info:
                    episode.success = bool(result.info["success"])
                episode.terminated = bool(result.terminated)
                finished.append(episode)
                del running[slot]
                done.append(slot)
        start(done)
    return sorted(finished, key=lambda episode: episode.index)


def _episodes(seed: int, step: int, episodes: int) -> Iterator[Episode]:
    for index in range(episodes):
        yield Episode(index, derive_seed(seed, "evaluation", step, index))


def _act(
    agent: Agent, observations: np.ndarray, noises: Sequence[torch.Generator], device: torch.device
) -> np.ndarray:
    """Actions (n, A) for observations (n, ...), in calls of `ACT_ROWS` rows."""
    actions = []
    for start in range(0, len(observations), ACT_ROWS):
        rows, generators = observations[start : start + ACT_ROWS], noises[start : start + ACT_ROWS]
        missing = ACT_ROWS - len(rows)
        batch = np.concatenate([rows, rows[-1:].repeat(missing, axis=0)])
        # Those that fill up draw from generators of nobody's.
        generators = [*generators, *(torch.Generator() for _ in range(missing))]
        acted = agent.act(torch.from_numpy(batch).to(device), generator=generators)
        actions.append(acted[: len(rows)].cpu().numpy())
    return np.concatenate(actions)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: OpenMP's others spin for milliseconds after each product, on cores
    that the environments need.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _successes(episodes: Sequence[Episode]) -> list[bool]:
    """Success of each episode; empty where the environment reports none.

    One that mentions success only where there is some means failure by its silence.
    """
    if all(episode.success is None for episode in episodes):
        return []
    return [bool(episode.success) for episode in episodes]


def normalized_score(env_id: str, mean_return: float) -> dict[str, float]:
    """D4RL's normalized score, 0 for its random policy and 100 for its expert, for its tasks.

    Args:
        env_id: a full id; of other suites there is no score.
        mean_return: over episodes.

    Returns:
        `eval/normalized_score`, or nothing.
    """
    task = d4rl_task(env_id)
    if task is None or task.reference_scores is None:
        return {}
    random, expert = task.reference_scores
    return {"eval/normalized_score": 100 * (mean_return - random) / (expert - random)}


class Evaluator:
    """Evaluations of a run: episodes into `episodes.csv`, videos into `videos/`, their means back.

    Args:
        pool: environments.
        run_dir: the run folder.
        logger: takes the rows.
        seed: the run's seed.
        episodes: episodes of an evaluation.
        videos: how many of them are filmed.
        cap: the length at which episodes are cut, or None for the task's own limit.
        device: where the agent is.
    """

    def __init__(
        self,
        pool: EnvPool,
        run_dir: Path,
        logger: RunLogger,
        *,
        seed: int,
        episodes: int,
        videos: int,
        cap: int | None,
        device: torch.device,
    ) -> None:
        self._pool = pool
        self._run_dir = run_dir
        self._logger = logger
        self._seed = seed
        self._episodes = episodes
        self._videos = videos if pool.can_render else 0
        if videos and not pool.can_render:
            log.warning(
                "%s cannot be drawn here: no videos (MuJoCo needs %s; an environment of your own "
                'also render_mode="rgb_array")',
                pool.env_id,
                GL_PACKAGES,
            )
        self._cap = cap
        self._device = device

    def __call__(self, agent: Agent, step: int) -> dict[str, float]:
        """Evaluate `agent` after `step` updates.

        Returns:
            `eval/success` (where the environment reports it), `eval/return`, `eval/length`,
            `eval/episodes`, `eval/capped` (1 where episodes are cut short of the task's limit), and
            `eval/normalized_score` for D4RL's tasks.
        """
        episodes = evaluate(
            agent,
            self._pool,
            seed=self._seed,
            step=step,
            episodes=self._episodes,
            videos=self._videos,
            device=self._device,
        )
        wins = _successes(episodes)
        capped = self._cap is not None
        self._logger.log_episodes(
            [
                {
                    "step": step,
                    "episode": e.index,
                    "seed": e.seed,
                    **({"success": wins[e.index]} if wins else {}),
                    "return": e.episode_return,
                    "length": e.length,
                    "terminated": e.terminated,
                    "capped": capped,
                }
                for e in episodes
            ]
        )
        for e in episodes[: self._videos]:
            path = self._run_dir / "videos" / f"step_{step}_episode_{e.index}.mp4"
            try:
                write_video(path, np.stack(e.frames), fps=VIDEO_FPS)
            except OSError as error:
                log.warning("no video %s: %s", path, error)
                continue
            self._logger.log_video(step, path)
        mean_return = float(np.mean([e.episode_return for e in episodes]))
        return {
            **({"eval/success": float(np.mean(wins))} if wins else {}),
            "eval/return": mean_return,
            **normalized_score(self._pool.env_id, mean_return),
            "eval/length": float(np.mean([e.length for e in episodes])),
            "eval/episodes": float(len(episodes)),
            "eval/capped": float(capped),
        }
