"""The online phase: steps of the training environments between the updates.

Training environments are processes of their own, which no evaluation touches. A step of each of N
is a round: it brings N transitions, and `N utd_ratio` updates follow it, so that N changes nothing
in how many updates a transition gets. One call of the policy acts in all of them.

Episode i is seeded by (seed, i) and the exploration of a transition by (seed, k), k the first of
the updates that it stands for; an observation is stacked from the buffers' own frames. So the
online phase is a function of the seed and the agent alone, and a checkpoint between episodes is all
that it needs to go on. Where several run, none begins while a checkpoint waits for the others' end.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from deflow_vision.agents.base import Agent
from deflow_vision.datasets.joint_replay import JointReplay
from deflow_vision.datasets.replay import Replay
from deflow_vision.envs.pool import EnvError, EnvPool
from deflow_vision.envs.server import EnvStep
from deflow_vision.seeding import derive_seed
from deflow_vision.training import checkpoint
from deflow_vision.training.batches import returns_settings
from deflow_vision.training.setup import Setup
from deflow_vision.types import UserError

log = logging.getLogger(__name__)


def open_buffers(setup: Setup, agent: Agent) -> list[Replay]:
    """The online buffers of a run, one an environment: empty, or as its checkpoint left them.

    Raises:
        ReplayError: they are not what the checkpoint says.
    """
    spec, frame_stack = setup.spec, setup.config.data.frame_stack or 1
    *image, channels = spec.observation_shape
    count, folder = setup.config.online.num_envs, setup.run_dir / "replay"
    saved = None
    if setup.resume_from is not None:
        saved = checkpoint.read_state(setup.resume_from).get("replay")
    if saved is None:
        shutil.rmtree(folder, ignore_errors=True)
    buffers = []
    for index in range(count):
        alone = count == 1
        replay = Replay(
            folder if alone else folder / str(index),
            observation_shape=(*image, channels // frame_stack),
            dtype=spec.observation_dtype,
            action_dim=spec.action_dim,
            frame_stack=frame_stack,
            capacity=setup.config.online.capacity // count,
            fields=agent.batch_fields,
            **returns_settings(agent),
            failure=spec.reward_range[0],
            saved=saved if alone or saved is None else saved[str(index)],
        )
        setup.closing.callback(replay.close)
        if replay.running:  # a run that goes on beyond its end, which was inside an episode
            replay.end()
        buffers.append(replay)
    return buffers


def open_training_pool(setup: Setup) -> EnvPool | None:
    """The environments of the online phase; None where there is no such phase."""
    config = setup.config
    if not config.online_steps or setup.first_step == setup.last_step:
        return None
    # One that fails is begun anew with its process: each has its own.
    count, timeout = config.online.num_envs, config.online.timeout_seconds
    return setup.open_pool(num_envs=count, processes=count, timeout=timeout)


@dataclass
class _Episode:
    """What an environment is at: the number of its episode, and what that brought so far."""

    number: int = 0
    reward: float = 0.0
    length: int = 0


class Collector:
    """Plays the agent in the training environments, into the online buffers.

    Args:
        pool: the environments, whose observations are not stacked.
        buffers: one of each environment.
        setup: the run.

    Attributes:
        replay: all of the buffers, to draw from.
        seconds: spent here so far.
    """

    def __init__(self, pool: EnvPool, buffers: Sequence[Replay], setup: Setup) -> None:
        self.replay = buffers[0] if len(buffers) == 1 else JointReplay(buffers)
        self.seconds = 0.0
        self._buffers = tuple(buffers)
        self._pool, self._run_dir = pool, setup.run_dir
        self._device = setup.accelerator.device
        self._begins, self._online = setup.config.offline_steps, setup.config.online
        self._seed = derive_seed(setup.config.seed, "online")
        self._reward_shift = setup.task.reward_shift
        self._episodes = [_Episode() for _ in buffers]
        self._failures = [0] * len(buffers)
        self._broken: set[int] = set()

    @property
    def at_rest(self) -> bool:
        """Whether no episode is running."""
        return not any(buffer.running for buffer in self._buffers)

    def __call__(self, agent: Agent, step: int, *, hold: bool = False) -> list[dict[str, float]]:
        """Take a step of each environment before update `step`, where one is due.

        Args:
            agent: acts.
            step: updates done before.
            hold: whether no episode is to begin until all have ended.

        Returns:
            For each episode that it ended: `online/return`, `online/length`, `online/success`
            (where the environment reports it), `online/episodes`, `online/env_steps`,
            `online/buffer_size`.

        Raises:
            EnvError: an environment fails again and again.
            UserError: the agent's action is not finite.
        """
        start = perf_counter()
        ended: list[dict[str, float]] = []
        # More than once where no transition came of it.
        while step - self._begins >= self._online.utd_ratio * self.replay.num_transitions:
            ended += self._round(agent, step, hold)
        self.seconds += perf_counter() - start
        return ended

    def _round(self, agent: Agent, step: int, hold: bool) -> list[dict[str, float]]:
        if not hold or self.at_rest:
            self._begin_episodes()
        playing = [index for index, buffer in enumerate(self._buffers) if buffer.running]
        if not playing:
            return []
        actions = self._act(agent, playing, step)
        results = self._pool.try_step(playing, actions)
        added = zip(playing, actions, results, strict=True)
        return [row for one in added if (row := self._add(*one))]

    def _begin_episodes(self) -> None:
        """Start an episode in each environment that is in none."""
        for index, buffer in enumerate(self._buffers):
            if buffer.running:
                continue
            number = self.replay.num_episodes
            self._episodes[index] = _Episode(number)
            try:
                if index in self._broken:
                    self._pool.restart(index)
                    self._broken.remove(index)
                first = self._pool.reset(index, derive_seed(self._seed, "episode", number))
                self._check(index, first, 0.0)
            except EnvError as error:
                self._recover(index, error)
            else:
                buffer.begin(first)

    def _act(self, agent: Agent, playing: list[int], step: int) -> np.ndarray:
        """Actions (n, A) of the environments that are in an episode."""
        stacked = np.stack([self._buffers[index].observation() for index in playing])
        updates = [step + place * self._online.utd_ratio for place in range(len(playing))]
        seeds = [derive_seed(self._seed, "exploration", update) for update in updates]
        noises = [torch.Generator().manual_seed(seed) for seed in seeds]
        observations = torch.from_numpy(stacked).to(self._device)
        actions = agent.act(observations, explore=True, generator=noises)
        found: np.ndarray = actions.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise UserError(
                f"the policy's action is {found} after {step} updates: training has diverged. "
                f"{self._way_out()}"
            )
        return found

    def _add(self, index: int, action: np.ndarray, result: EnvStep | EnvError) -> dict[str, float]:
        """Take in what a step brought; what is to be logged if it ended the episode."""
        try:
            if isinstance(result, EnvError):
                raise result
            self._check(index, result.observation, result.reward)
        except EnvError as error:
            self._recover(index, error)
            return {}
        reward, mask = result.reward + self._reward_shift, 1.0 - result.terminated
        self._buffers[index].add(action, reward, mask, result.observation)
        episode = self._episodes[index]
        episode.reward += result.reward
        episode.length += 1
        return self._finish(index, result) if result.terminated or result.truncated else {}

    def _finish(self, index: int, result: EnvStep) -> dict[str, float]:
        self._buffers[index].end()
        self._failures[index] = 0
        success = result.info.get("success")
        running = sum(buffer.running for buffer in self._buffers)
        return {
            **({} if success is None else {"online/success": success}),
            "online/return": self._episodes[index].reward,
            "online/length": float(self._episodes[index].length),
            "online/episodes": float(self.replay.num_episodes - running),
            "online/env_steps": float(self.replay.num_transitions),
            "online/buffer_size": float(len(self.replay)),
        }

    def _check(self, index: int, observation: np.ndarray, reward: float) -> None:
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise EnvError(
                f"environment {self._pool.env_id} returned a number that is not finite in episode "
                f"{self._episodes[index].number}: reward {reward}, observation {observation}"
            )

    def _recover(self, index: int, error: EnvError) -> None:
        """Give the running episode up; what was seen of it stays, as if time had run out."""
        if self._buffers[index].running:
            self._buffers[index].end()
        self._failures[index] += 1
        self._broken.add(index)
        if self._failures[index] > self._online.max_restarts:
            raise EnvError(
                f"{error}\nThe training environment failed {self._failures[index]} times without "
                f"an episode that ended as it should. {self._way_out()}"
            ) from error
        log.warning("%s\nThe environment is made anew, and the next episode begins.", error)

    def _way_out(self) -> str:
        last = checkpoint.latest(self._run_dir)
        where = "it has no checkpoint yet and begins anew" if last is None else f"step {last.step}"
        return f"The run can go on with --resume {self._run_dir} from its last checkpoint: {where}."
