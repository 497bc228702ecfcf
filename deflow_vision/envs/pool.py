"""Several copies of an environment, each in a worker process, stepped together.

Why not gymnasium's AsyncVectorEnv: it steps all copies or none, while an evaluation of exactly N
episodes needs each copy to stop and start by itself (a pixel environment takes about 100 ms a step
with software OpenGL); its workers run the parent's main script again; and a worker that dies is an
EOFError without the environment's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from deflow_vision.envs.make import make_env
from deflow_vision.envs.own import is_own
from deflow_vision.envs.rendering import check_profile, draws, probe, worker_variables
from deflow_vision.envs.states import draw_state, state_shapes
from deflow_vision.envs.worker import Worker, WorkerError, close_all
from deflow_vision.types import UserError

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


class EnvError(UserError):
    """An environment of a pool failed; the message names it and the episode."""


class EnvPool:
    """`num_envs` copies of one environment; use it as a context manager.

    An episode depends on the seed of its reset and on its actions alone, not on the copy that runs
    it. Nothing is reset by itself: a copy whose episode has ended waits for `reset`.

    Args:
        env_id: see `make_env`, as the other arguments.
        num_envs: number of worker processes.
        timeout: seconds that a step, a reset or the making of a copy may take, for ever by default;
            one that takes longer is an `EnvError`, and its copy must be restarted.

    Attributes:
        num_envs: number of copies.
        observation_shape: shape of an observation, stacked.
        observation_dtype: "uint8" or "float32".
        action_dim: A.
        channels: C of a single frame of pixels.
        can_render: whether pictures can be had: only a state task runs where nothing can draw, and
            somebody's own draws only with the render mode "rgb_array".

    Raises:
        EnvError: an environment could not be made.
        NoRendererError: it draws its observations, and this machine cannot.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int,
        frame_stack: int = 1,
        max_episode_steps: int | None = None,
        render_profile: str = "official",
        resolution: int | None = None,
        timeout: float | None = None,
    ) -> None:
        if not is_own(env_id):
            check_profile(render_profile)
        if num_envs < 1:
            raise UserError(f"num_envs is {num_envs}; it must be 1 or more.")
        self.env_id = env_id
        self.num_envs = num_envs
        self._timeout = timeout
        self._episodes = ["before the first episode"] * num_envs
        self._variables = worker_variables(pixels=env_id.startswith("visual-"))
        self.can_render = draws(self._variables)
        self._arguments = (env_id, frame_stack, max_episode_steps, render_profile, resolution)
        self._workers = [self._make() for _ in range(num_envs)]
        try:
            self._send(0, "describe")
            shape, self.observation_dtype, self.action_dim, draws_itself = self._receive(0)
        except BaseException:
            self.close()
            raise
        self.observation_shape: tuple[int, ...] = shape
        self.channels = shape[-1] // frame_stack
        if is_own(env_id):
            # Frames that are observed are pictures already.
            self.can_render &= draws_itself
            self.can_render |= self.observation_dtype == "uint8"

    def reset(self, index: int, seed: int) -> np.ndarray:
        """Start an episode in one copy.

        Args:
            index: which copy.
            seed: what the episode draws from.

        Returns:
            Its first observation.
        """
        return self.reset_many([index], [seed])[0]

    def reset_many(self, indices: Sequence[int], seeds: Sequence[int]) -> list[np.ndarray]:
        """Start an episode in several copies at once; observations in the order of `indices`."""
        for index, seed in zip(indices, seeds, strict=True):
            self._episodes[index] = f"in the episode with seed {seed}"
            self._send(index, "reset", int(seed))
        return [self._receive(index) for index in indices]

    def step(self, indices: Sequence[int], actions: np.ndarray) -> list[EnvStep]:
        """One step in several copies at once.

        Args:
            indices: which copies, each once.
            actions: (len(indices), A).

        Returns:
            What each returned, in the order of `indices`.
        """
        results = []
        for result in self.try_step(indices, actions):
            if isinstance(result, EnvError):
                raise result
            results.append(result)
        return results

    def try_step(self, indices: Sequence[int], actions: np.ndarray) -> list[EnvStep | EnvError]:
        """As `step`, but the error of a copy that fails stands in its place: the others go on."""
        results: dict[int, EnvStep | EnvError] = {}
        for index, action in zip(indices, actions, strict=True):
            try:
                self._send(index, "step", np.asarray(action))
            except EnvError as error:
                results[index] = error
        for index in [index for index in indices if index not in results]:
            try:
                results[index] = EnvStep(*self._receive(index))
            except EnvError as error:
                results[index] = error
        return [results[index] for index in indices]

    def restart(self, index: int) -> None:
        """Make one copy anew, in another process, whatever has become of it."""
        self._workers[index].close()
        self._workers[index] = self._make()
        self._episodes[index] = "before the first episode after a restart"

    def render(self, index: int) -> np.ndarray:
        """A picture of one copy for a video, (H, W, 3) uint8, about 200 x 200.

        Raises:
            NoRendererError: this machine cannot draw.
            UserError: somebody's own environment was not made for drawing.
        """
        if not self.can_render:
            probe()  # says why
            raise UserError(f'{self.env_id} was made without render_mode="rgb_array".')
        self._send(index, "render")
        frame: np.ndarray = self._receive(index)
        return frame

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a simulator state of an OGBench arm consists of, see `states.state_shapes`."""
        self._send(0, "state_shapes")
        shapes: dict[str, tuple[int, ...]] = self._receive(0)
        return shapes

    def draw(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """The frame that the first copy draws of a stored state, see `states.draw_state`.

        Call it before the first episode: it leaves that copy in that state.
        """
        self._send(0, "draw", state)
        frame: np.ndarray = self._receive(0)
        return frame

    def close(self) -> None:
        """End all workers. May be called again."""
        close_all(self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _make(self) -> Worker:
        return Worker(_EnvServer, *self._arguments, variables=self._variables)

    def _send(self, index: int, method: str, *args: Any) -> None:
        try:
            self._workers[index].start(self._timeout)
            self._workers[index].send(method, *args)
        except WorkerError as error:
            raise self._failure(index, error) from error

    def _receive(self, index: int) -> Any:
        try:
            return self._workers[index].receive(self._timeout)
        except WorkerError as error:
            raise self._failure(index, error) from error

    def _failure(self, index: int, error: WorkerError) -> EnvError:
        return EnvError(
            f"environment {self.env_id}, copy {index} of {self.num_envs}, failed "
            f"{self._episodes[index]}: {error}"
        )


class _EnvServer:
    """The worker's side."""

    def __init__(
        self,
        env_id: str,
        frame_stack: int,
        max_episode_steps: int | None,
        render_profile: str,
        resolution: int | None,
    ) -> None:
        self._env = make_env(
            env_id,
            frame_stack=frame_stack,
            max_episode_steps=max_episode_steps,
            render_profile=render_profile,
            resolution=resolution,
        )
        self._own, self._pixels = is_own(env_id), env_id.startswith("visual-")

    def describe(self) -> tuple[tuple[int, ...], str, int, bool]:
        space, actions = self._env.observation_space, self._env.action_space
        return space.shape, space.dtype.name, actions.shape[0], self._env.render_mode == "rgb_array"

    def reset(self, seed: int) -> np.ndarray:
        observation: np.ndarray = self._env.reset(seed=seed)[0]
        return observation

    def step(self, action: np.ndarray) -> EnvStep:
        observation, reward, terminated, truncated, info = self._env.step(action)
        # The rest of info is the whole simulator state: not worth the pipe.
        success = {"success": float(info["success"])} if "success" in info else {}
        return EnvStep(observation, reward, terminated, truncated, success)

    def render(self) -> np.ndarray:
        frame: np.ndarray = (self._env if self._own else self._env.unwrapped).render()
        scale = _VIDEO_SCALE if self._pixels else 1
        return frame.repeat(scale, axis=0).repeat(scale, axis=1)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return state_shapes(self._env)

    def draw(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        return draw_state(self._env, state)

    def close(self) -> None:
        self._env.close()
