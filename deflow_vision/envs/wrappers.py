"""Wrappers between an environment and an agent: seeding, actions, float32, frame stacks."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np

from deflow_vision.envs.rendering import check_frame
from deflow_vision.types import UserError


class SeededReset(gymnasium.Wrapper):  # type: ignore[misc]
    """`reset(seed=s)` seeds everything that an episode draws from, not the environment alone.

    OGBench also draws from NumPy's global generator and from the action space.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset; see `gymnasium.Env.reset`.

        Args:
            seed: any integer from 0 on; None leaves the generators where they are.
            options: passed on.
        """
        if seed is not None:
            np.random.seed(seed % 2**32)
            self.action_space.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def close(self) -> None:
        """Free the OpenGL context: OGBench's arms leave it to the interpreter's exit."""
        renderer = getattr(self.unwrapped, "_renderer", None)
        if renderer is not None:
            renderer.close()
            self.unwrapped._renderer = None
        super().close()


class ClipAction(gymnasium.ActionWrapper):  # type: ignore[misc]
    """Clips actions to [-1, 1]."""

    def action(self, action: np.ndarray) -> np.ndarray:
        """The action (A,), clipped."""
        clipped: np.ndarray = np.clip(action, -1.0, 1.0)
        return clipped


class FrameStack(gymnasium.Wrapper):  # type: ignore[misc]
    """Stacks the last k observations along the last axis, oldest first.

    The first frame of an episode is repeated. Pixels stay uint8, (H, W, C * k); states become
    float32, (D * k,).

    Args:
        env: the environment.
        num_frames: k.
        check_frames: whether a first frame of one colour is an error.
    """

    def __init__(self, env: gymnasium.Env, num_frames: int, *, check_frames: bool = True) -> None:
        super().__init__(env)
        if num_frames < 1:
            raise UserError(f"frame_stack is {num_frames}; it must be 1 or more.")
        self._num_frames = num_frames
        self._check_frames = check_frames
        self._frames: deque[np.ndarray] = deque(maxlen=num_frames)

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The space of the stack. OGBench builds its model, and draws, to know its own."""
        space = self.env.observation_space
        dtype = np.uint8 if space.dtype == np.uint8 else np.float32
        repeats = (1,) * (len(space.shape) - 1) + (self._num_frames,)
        low, high = (np.tile(bound, repeats).astype(dtype) for bound in (space.low, space.high))
        return gymnasium.spaces.Box(low, high, dtype=dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset; the stack is the first frame k times."""
        observation, info = self.env.reset(seed=seed, options=options)
        if self._check_frames and observation.dtype == np.uint8:
            check_frame(observation, str(self.spec.id if self.spec else self.unwrapped))
        self._frames.extend([observation] * self._num_frames)
        return self._stack(), info

    def step(self, action: np.ndarray) -> Any:
        """Step; see `gymnasium.Env.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(observation)
        return self._stack(), float(reward), bool(terminated), bool(truncated), info

    def _stack(self) -> np.ndarray:
        stack = np.concatenate(self._frames, axis=-1)
        return stack if stack.dtype == np.uint8 else stack.astype(np.float32)
