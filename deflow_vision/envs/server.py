"""The side of a pool's worker process: copies of an environment, called by their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from deflow_vision.envs.make import make_env
from deflow_vision.envs.own import is_own
from deflow_vision.envs.states import draw_state, state_shapes

_VIDEO_SCALE = 3  # a 64 x 64 observation is drawn as 192 x 192 in videos


class EnvStep(NamedTuple):
    """What a step of one environment returns.

    Attributes:
        observation: (H, W, C * frame_stack) uint8 or (D * frame_stack,) float32.
        reward: r of this step.
        terminated: the task ended the episode.
        truncated: the time limit ended it.
        info: `success`, 1.0 or 0.0, where the environment reports it.
    """

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, float]


class EnvServer:
    """Copies of one environment; methods as the pool's, for the copy of a number."""

    def __init__(
        self,
        copies: int,
        env_id: str,
        frame_stack: int,
        max_episode_steps: int | None,
        render_profile: str,
        resolution: int | None,
    ) -> None:
        self._envs = [
            make_env(
                env_id,
                frame_stack=frame_stack,
                max_episode_steps=max_episode_steps,
                render_profile=render_profile,
                resolution=resolution,
            )
            for _ in range(copies)
        ]
        self._own, self._pixels = is_own(env_id), env_id.startswith("visual-")

    def describe(self, copy: int) -> tuple[tuple[int, ...], str, int, bool]:
        """The shape and the type of observations, A, and whether it draws itself."""
        env = self._envs[copy]
        space, actions = env.observation_space, env.action_space
        return space.shape, space.dtype.name, actions.shape[0], env.render_mode == "rgb_array"

    def reset(self, copy: int, seed: int) -> np.ndarray:
        """Start an episode; its first observation."""
        observation: np.ndarray = self._envs[copy].reset(seed=seed)[0]
        return observation

    def step(self, copy: int, action: np.ndarray) -> EnvStep:
        """One step."""
        observation, reward, terminated, truncated, info = self._envs[copy].step(action)
        # The rest of info is the whole simulator state: not worth the pipe.
        success = {"success": float(info["success"])} if "success" in info else {}
        return EnvStep(observation, reward, terminated, truncated, success)

    def render(self, copy: int) -> np.ndarray:
        """A picture for a video."""
        env = self._envs[copy]
        frame: np.ndarray = (env if self._own else env.unwrapped).render()
        scale = _VIDEO_SCALE if self._pixels else 1
        return frame.repeat(scale, axis=0).repeat(scale, axis=1)

    def state_shapes(self, copy: int) -> dict[str, tuple[int, ...]]:
        """What a simulator state consists of."""
        return state_shapes(self._envs[copy])

    def draw(self, copy: int, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """The frame of a stored state."""
        return draw_state(self._envs[copy], state)

    def close(self) -> None:
        """End all copies."""
        for env in self._envs:
            env.close()
