"""Environments that people might bring, for the workers of tests to import."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import TimeLimit

NOT_A_FUNCTION = 3


class Counter(gymnasium.Env):
    """Observes (steps, last action) in one buffer that it uses again; ends after three steps."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(np.array([0.0, -2.0]), np.array([4.0, 2.0]), dtype=np.float64)
    info: dict[str, Any] = {}  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.buffer = np.array([0.0, np.random.random(), 0.0])
        return self.buffer, {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        self.buffer[0] += 1
        self.buffer[1:] = action
        return self.buffer, 1, self.buffer[0] == 3, False, self.info


class Pixels(Counter):
    """A black picture with one grey channel."""

    observation_space = Box(0, 255, (8, 10, 1), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros((8, 10, 1), np.uint8), {}

    def step(self, action: np.ndarray) -> Any:
        return np.zeros((8, 10, 1), np.uint8), 1.0, False, False, {"success": True}


class QuietPixels(Pixels):
    """Without a word on success."""

    def step(self, action: np.ndarray) -> Any:
        return *super().step(action)[:4], {}


def limited(env: gymnasium.Env, **changes: Any) -> gymnasium.Env:
    for name, value in changes.items():
        setattr(env, name, value)
    return TimeLimit(env, max_episode_steps=7)


def make() -> gymnasium.Env:
    return limited(Counter())


def make_pixels() -> gymnasium.Env:
    return limited(Pixels())


def make_quiet_pixels() -> gymnasium.Env:
    return TimeLimit(QuietPixels(), max_episode_steps=7)


def endless() -> gymnasium.Env:
    return Counter()


def dictionary() -> gymnasium.Env:
    return limited(Counter(), observation_space=Dict(place=Box(-1, 1, (2,))))


def discrete() -> gymnasium.Env:
    return limited(Counter(), action_space=Discrete(4))


def boundless() -> gymnasium.Env:
    return limited(Counter(), action_space=Box(-np.inf, np.inf, (2,)))


def liar() -> gymnasium.Env:
    return limited(Counter(), observation_space=Box(-1, 1, (4,)))


def broken() -> gymnasium.Env:
    raise RuntimeError("the licence has run out")


def nothing() -> None:
    return None
