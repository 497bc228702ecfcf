"""Environments that people might bring, for the workers of tests to import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
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


class Walk(gymnasium.Env):
    """A point on a line, whose frames and states tell its episode's seed and its place.

    Args:
        pixels: whether it is seen, as (8, 10, 1), or felt, as (3,).
    """

    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, pixels: bool) -> None:
        shape = (8, 10, 1) if pixels else (3,)
        self.observation_space = (
            Box(0, 255, shape, np.uint8) if pixels else Box(-9, 9, shape, np.float32)
        )
        self.pixels = pixels

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.background = self.np_random.integers(0, 256, (8, 10, 1), dtype=np.uint8)
        self.place, self.steps = self.np_random.uniform(-0.5, 0.5), 0
        return self.see(), {}

    def step(self, action: np.ndarray) -> Any:
        self.place += 0.3 * float(action[0])
        self.steps += 1
        over = abs(self.place) > 1.0
        return self.see(), -abs(self.place), over, False, {"success": self.place > 1.0}

    def see(self) -> np.ndarray:
        if not self.pixels:
            return np.array([self.place, self.steps / 5, self.background.mean() / 255], np.float32)
        shade = np.uint8(np.clip(128 + 100 * self.place, 0, 255))
        return np.where(np.arange(10)[None, :, None] < self.steps, shade, self.background)


def make_walk() -> gymnasium.Env:
    return TimeLimit(Walk(pixels=False), max_episode_steps=5)


def make_seen_walk() -> gymnasium.Env:
    return TimeLimit(Walk(pixels=True), max_episode_steps=5)


def make_hanging() -> gymnasium.Env:
    time.sleep(1000)
    return make_walk()


class Faulty(Walk):
    """Fails in the way, at the step, and as often as `FAULTS` says: files count the times."""

    def step(self, action: np.ndarray) -> Any:
        how, at, times = os.environ["FAULTS"].split()
        folder = Path(os.environ["FAULTS_FOLDER"])
        observation, reward, *rest = super().step(action)
        if self.steps == int(at) and len(list(folder.iterdir())) < int(times):
            (folder / str(len(list(folder.iterdir())))).touch()
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "hang":
                time.sleep(1000)
            if how == "raise":
                raise RuntimeError("the robot fell over")
            reward = float("nan")
        return observation, reward, *rest


def make_faulty() -> gymnasium.Env:
    return TimeLimit(Faulty(pixels=False), max_episode_steps=5)


class Sleepy(Walk):
    """Falls asleep where it is asked for much."""

    def step(self, action: np.ndarray) -> Any:
        time.sleep(100 * float(action[0] > 0.5))
        return super().step(action)


def make_sleepy() -> gymnasium.Env:
    return TimeLimit(Sleepy(pixels=False), max_episode_steps=5)
