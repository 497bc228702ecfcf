"""People's own environments, named `module:factory`: made, brought into our form, and checked.

The factory runs in a worker process, without arguments, and returns a Gymnasium environment: the
environment's class itself will do. The module is found as `python -m` would find it from the
current folder.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from deflow_vision.envs.rendering import worker_variables
from deflow_vision.envs.worker import WorkerError, run_in_worker
from deflow_vision.envs.wrappers import FrameStack, SeededReset
from deflow_vision.types import UserError


class EnvFacts(NamedTuple):
    """What an environment says of itself.

    Attributes:
        observation_shape: (D,) or (H, W, C), of a single frame.
        observation_dtype: "float32" or "uint8".
        action_dim: A.
        max_episode_steps: its time limit.
        reports_success: whether its `info` says at each step whether the task is solved.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_dim: int
    max_episode_steps: int
    reports_success: bool


def is_own(env_id: str) -> bool:
    """Whether an environment's name means somebody's own: `module:factory`."""
    return ":" in env_id


def make_own_env(
    env_id: str, *, frame_stack: int = 1, max_episode_steps: int | None = None
) -> gymnasium.Env:
    """Call the factory and wrap what it returns.

    Args:
        env_id: `module:factory`.
        frame_stack: observations stacked along the last axis.
        max_episode_steps: a shorter time limit than its own.

    Returns:
        An environment whose observations are (H, W, C * frame_stack) uint8 or (D * frame_stack,)
        float32, whose actions in [-1, 1] are scaled to its own bounds, and whose
        `reset(seed=...)` seeds NumPy and its action space too.

    Raises:
        UserError: there is no such factory, or what it returns cannot be used.
    """
    env = _call(env_id)
    _check_spaces(env_id, env)
    _time_limit(env_id, env)
    if max_episode_steps is not None:
        env = TimeLimit(env, max_episode_steps)
    # A frame of one colour is suspect only where we know that MuJoCo drew it.
    return FrameStack(_Ours(_Seeded(env), env_id), frame_stack, check_frames=False)


def examine(env_id: str) -> EnvFacts:
    """Make an environment in a worker, take one step in it, and tell what it is.

    Args:
        env_id: `module:factory`.

    Raises:
        UserError: it cannot be used; the message says why, with the traceback of its own errors.
    """
    try:
        found = run_in_worker(_examine, env_id, variables=worker_variables(pixels=False))
    except WorkerError as error:
        raise UserError(f"the environment {env_id} failed: {error}") from error
    if isinstance(found, str):
        raise UserError(found)
    facts: EnvFacts = found
    return facts


def _examine(env_id: str) -> EnvFacts | str:
    """In the worker: the facts, or what the person has to mend."""
    try:
        env = make_own_env(env_id)
        env.reset(seed=0)
        info = env.step(np.zeros(env.action_space.shape, np.float32))[4]
    except UserError as error:
        return str(error)
    space = env.observation_space
    facts = EnvFacts(
        observation_shape=space.shape,
        observation_dtype=space.dtype.name,
        action_dim=env.action_space.shape[0],
        max_episode_steps=_time_limit(env_id, env),
        reports_success="success" in info,
    )
    env.close()
    return facts


def _call(env_id: str) -> gymnasium.Env:
    name, _, attribute = env_id.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is there, but lacks one of its own imports, deserves the traceback.
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"--env {env_id}: there is no module {error.name!r} in this folder or among the "
            "installed packages. Run from the folder that holds it, or set PYTHONPATH."
        ) from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        what = "has no such name" if factory is None else f"has a {type(factory).__name__} there"
        known = [key for key, value in vars(module).items() if _made_there(value, module.__name__)]
        raise UserError(
            f"--env {env_id}: {attribute!r} must be a function or class of {name} that makes an "
            f"environment; {name} {what}. It has: {', '.join(known) or 'none'}."
        )
    env = factory()
    if not isinstance(env, gymnasium.Env):
        raise UserError(
            f"--env {env_id}: the factory returned a {type(env).__name__}, not a gymnasium.Env."
        )
    return env


def _made_there(value: Any, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module


def _check_spaces(env_id: str, env: gymnasium.Env) -> None:
    space = env.observation_space
    vector = isinstance(space, Box) and space.dtype.kind == "f" and len(space.shape) == 1
    picture = isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3
    if not (vector or picture):
        raise UserError(
            f"--env {env_id}: its observation_space is {space}; it must be a Box of floats (D,) or "
            "of uint8 (H, W, C). gymnasium.wrappers.FlattenObservation makes one of a dictionary."
        )
    actions = env.action_space
    if not isinstance(actions, Box) or actions.dtype.kind != "f" or len(actions.shape) != 1:
        raise UserError(
            f"--env {env_id}: its action_space is {actions}; it must be a Box of floats (A,)."
        )
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise UserError(
            f"--env {env_id}: its action_space is {actions}; it must have finite bounds, to which "
            "the policy's [-1, 1] is scaled."
        )


def _time_limit(env_id: str, env: gymnasium.Env) -> int:
    """The least time limit among the wrappers and the registered one."""
    limits = [env.spec.max_episode_steps] if env.spec is not None else []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    known = [limit for limit in limits if limit is not None]
    if not known:
        raise UserError(
            f"--env {env_id}: it states no time limit, so an episode might never end: return "
            "gymnasium.wrappers.TimeLimit(env, max_episode_steps=...) from the factory."
        )
    return int(min(known))


class _Ours(gymnasium.Wrapper):  # type: ignore[misc]
    """Scales actions from [-1, 1] to the bounds, and holds observations to their space."""

    def __init__(self, env: gymnasium.Env, env_id: str) -> None:
        super().__init__(env)
        self._env_id = env_id
        self.action_space = Box(-1.0, 1.0, env.action_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._checked(observation), info

    def step(self, action: np.ndarray) -> Any:
        bounds = self.env.action_space
        share = (np.clip(action, -1.0, 1.0) + 1.0) / 2.0
        scaled = bounds.low + share * (bounds.high - bounds.low)
        # Rounding must not carry an action beyond a bound that the environment may insist on.
        scaled = np.clip(scaled, bounds.low, bounds.high).astype(bounds.dtype)
        observation, *rest = self.env.step(scaled)
        return self._checked(observation), *rest

    def _checked(self, observation: Any) -> np.ndarray:
        space, value = self.observation_space, np.array(observation)  # a copy: it may be a buffer
        if value.shape != space.shape or (value.dtype == np.uint8) != (space.dtype == np.uint8):
            raise UserError(
                f"--env {self._env_id}: it returned an observation of shape {value.shape} and "
                f"dtype {value.dtype}, its observation_space is {space}."
            )
        return value


class _Seeded(SeededReset):
    """Without SeededReset's care for the renderer of OGBench's arms."""

    close = gymnasium.Wrapper.close
