"""The online phase: one step of the training environment for every so many updates.

The training environment is a process of its own, which no evaluation touches. Episode i is seeded
by (seed, i) and the exploration before update k by (seed, k); an observation is stacked from the
buffer's own frames. So the online phase is a function of the seed and the agent alone, and a
checkpoint between two episodes is all that it needs to go on.
"""

from __future__ import annotations

import logging
from time import perf_counter

import numpy as np
import torch

from deflow_vision.agents.base import Agent
from deflow_vision.datasets.replay import Replay
from deflow_vision.envs.pool import EnvError, EnvPool, EnvStep
from deflow_vision.seeding import derive_seed
from deflow_vision.training import checkpoint
from deflow_vision.training.batches import returns_settings
from deflow_vision.training.setup import Setup
from deflow_vision.types import UserError

log = logging.getLogger(__name__)


def open_replay(setup: Setup, agent: Agent) -> Replay:
    """The online buffer in a run's folder: empty, or as its checkpoint left it.

    Raises:
        ReplayError: it is not what the checkpoint says.
    """
    spec, frame_stack = setup.spec, setup.config.data.frame_stack or 1
    *image, channels = spec.observation_shape
    saved = None
    if setup.resume_from is not None:
        saved = checkpoint.read_state(setup.resume_from).get("replay")
    replay = Replay(
        setup.run_dir / "replay",
        observation_shape=(*image, channels // frame_stack),
        dtype=spec.observation_dtype,
        action_dim=spec.action_dim,
        frame_stack=frame_stack,
        capacity=setup.config.online.capacity,
        fields=agent.batch_fields,
        **returns_settings(agent),
        failure=spec.reward_range[0],
        saved=saved,
    )
    setup.closing.callback(replay.close)
    if replay.running:  # a run that goes on beyond its end, which was inside an episode
        replay.end()
    return replay


def open_training_pool(setup: Setup) -> EnvPool | None:
    """The one environment of the online phase; None where there is no such phase."""
    config = setup.config
    if not config.online_steps or setup.first_step == setup.last_step:
        return None
    return setup.open_pool(num_envs=1, timeout=config.online.timeout_seconds)


class Collector:
    """Plays the agent in the training environment, into the online buffer.

    Args:
        pool: one environment, whose observations are not stacked.
        replay: the online buffer.
        setup: the run.

    Attributes:
        seconds: spent here so far.
    """

    def __init__(self, pool: EnvPool, replay: Replay, setup: Setup) -> None:
        self.replay, self.seconds = replay, 0.0
        self._pool, self._run_dir = pool, setup.run_dir
        self._device = setup.accelerator.device
        self._begins, self._online = setup.config.offline_steps, setup.config.online
        self._seed = derive_seed(setup.config.seed, "online")
        self._reward_shift = setup.task.reward_shift
        self._failures, self._broken = 0, False
        self._return, self._length = 0.0, 0

    @property
    def at_rest(self) -> bool:
        """Whether no episode is running."""
        return not self.replay.running

    def __call__(self, agent: Agent, step: int) -> dict[str, float]:
        """Take a step of the environment before update `step`, where one is due.

        Returns:
            If it ended an episode: `online/return`, `online/length`, `online/success` (where the
            environment reports it), `online/episodes`, `online/env_steps`, `online/buffer_size`.

        Raises:
            EnvError: the environment fails again and again.
            UserError: the agent's action is not finite.
        """
        if (step - self._begins) % self._online.utd_ratio:
            return {}
        start = perf_counter()
        try:
            while True:
                try:
                    return self._advance(agent, step)
                except EnvError as error:
                    self._recover(error)
        finally:
            self.seconds += perf_counter() - start

    def _advance(self, agent: Agent, step: int) -> dict[str, float]:
        if self._broken:
            self._pool.restart(0)
            self._broken = False
        if self.at_rest:
            number = self.replay.num_episodes
            first = self._pool.reset(0, derive_seed(self._seed, "episode", number))
            self._check(first, 0.0)
            self.replay.begin(first)
            self._return, self._length = 0.0, 0
        action = self._act(agent, step)
        (result,) = self._pool.step([0], action[None])
        self._check(result.observation, result.reward)
        reward = result.reward + self._reward_shift
        self.replay.add(action, reward, 1.0 - result.terminated, result.observation)
        self._return += result.reward
        self._length += 1
        return self._finish(result) if result.terminated or result.truncated else {}

    def _act(self, agent: Agent, step: int) -> np.ndarray:
        observations = torch.from_numpy(self.replay.observation()[None]).to(self._device)
        noise = torch.Generator().manual_seed(derive_seed(self._seed, "exploration", step))
        actions = agent.act(observations, explore=True, generator=[noise])
        action: np.ndarray = actions[0].float().cpu().numpy()
        if not np.isfinite(action).all():
            raise UserError(
                f"the policy's action is {action} after {step} updates: training has diverged. "
                f"{self._way_out()}"
            )
        return action

    def _finish(self, result: EnvStep) -> dict[str, float]:
        self.replay.end()
        self._failures = 0
        success = result.info.get("success")
        return {
            **({} if success is None else {"online/success": success}),
            "online/return": self._return,
            "online/length": float(self._length),
            "online/episodes": float(self.replay.num_episodes),
            "online/env_steps": float(self.replay.num_transitions),
            "online/buffer_size": float(len(self.replay)),
        }

    def _check(self, observation: np.ndarray, reward: float) -> None:
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise EnvError(
                f"environment {self._pool.env_id} returned a number that is not finite in episode "
                f"{self.replay.num_episodes - self.replay.running}: reward {reward}, observation "
                f"{observation}"
            )

    def _recover(self, error: EnvError) -> None:
        """Give the running episode up; what was seen of it stays, as if time had run out."""
        if self.replay.running:
            self.replay.end()
        self._failures, self._broken = self._failures + 1, True
        if self._failures > self._online.max_restarts:
            raise EnvError(
                f"{error}\nThe training environment failed {self._failures} times without an "
                f"episode that ended as it should. {self._way_out()}"
            ) from error
        log.warning("%s\nThe environment is made anew, and the next episode begins.", error)

    def _way_out(self) -> str:
        last = checkpoint.latest(self._run_dir)
        where = "it has no checkpoint yet and begins anew" if last is None else f"step {last.step}"
        return f"The run can go on with --resume {self._run_dir} from its last checkpoint: {where}."
