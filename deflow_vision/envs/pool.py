"""Several copies of an environment in worker processes, stepped together.

Why not gymnasium's AsyncVectorEnv: it steps all copies or none, while an evaluation of exactly N
episodes needs each copy to stop and start by itself (a pixel environment takes about 100 ms a step
with software OpenGL); its workers run the parent's main script again; and a worker that dies is an
EOFError without the environment's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from deflow_vision.envs.own import is_own
from deflow_vision.envs.rendering import check_profile, draws, probe, worker_variables
from deflow_vision.envs.server import EnvServer, EnvStep
from deflow_vision.envs.worker import Worker, WorkerError, close_all
from deflow_vision.types import UserError


class EnvError(UserError):
    """An environment of a pool failed; the message names it and the episode."""


class EnvPool:
    """`num_envs` copies of one environment; use it as a context manager.

    An episode depends on the seed of its reset and on its actions alone, not on the copy that runs
    it. Nothing is reset by itself: a copy whose episode has ended waits for `reset`.

    Args:
        env_id: see `make_env`, as the other arguments.
        num_envs: number of copies.
        processes: worker processes that the copies share; by default one a core, and one a copy
            where a timeout is given or the environment is somebody's own, which may use what a
            process has only once. A policy's call costs little more for several copies than for
            one, so that several a core are stepped faster; what ends a process ends all of them.
        timeout: seconds that a step, a reset or the making of a copy may take, for ever by default;
            one that takes longer is an `EnvError`, and its copy must be restarted. Only copies in
            processes of their own have one.

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
        processes: int | None = None,
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
        if processes is None:
            alone = timeout is not None or is_own(env_id)
            processes = num_envs if alone else len(os.sched_getaffinity(0))
        if processes < 1:
            raise UserError(f"processes is {processes}; it must be 1 or more.")
        if timeout is not None and processes < num_envs:
            raise UserError(
                f"timeout is {timeout:g} and {num_envs} environments share {processes} processes: "
                "with a timeout each needs one of its own."
            )
        self.env_id = env_id
        self.num_envs = num_envs
        self._timeout = timeout
        self._episodes = ["before the first episode"] * num_envs
        self._variables = worker_variables(pixels=env_id.startswith("visual-"))
        self.can_render = draws(self._variables)
        self._arguments = (env_id, frame_stack, max_episode_steps, render_profile, resolution)
        self._num_processes = min(processes, num_envs)
        self._workers = [self._make(process) for process in range(self._num_processes)]
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
                results[index] = self._receive(index)
            except EnvError as error:
                results[index] = error
        return [results[index] for index in indices]

    def restart(self, index: int) -> None:
        """Make one copy anew, in another process, whatever has become of it.

        The copies that share its process are made anew with it.
        """
        process = index % self._num_processes
        self._workers[process].close()
        self._workers[process] = self._make(process)
        for copy in range(process, self.num_envs, self._num_processes):
            self._episodes[copy] = "before the first episode after a restart"

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

    def _make(self, process: int) -> Worker:
        copies = len(range(process, self.num_envs, self._num_processes))
        return Worker(EnvServer, copies, *self._arguments, variables=self._variables)

    def _send(self, index: int, method: str, *args: Any) -> None:
        try:
            copy, process = divmod(index, self._num_processes)
            self._workers[process].start(self._timeout)
            self._workers[process].send(method, copy, *args)
        except WorkerError as error:
            raise self._failure(index, error) from error

    def _receive(self, index: int) -> Any:
        try:
            return self._workers[index % self._num_processes].receive(self._timeout)
        except WorkerError as error:
            raise self._failure(index, error) from error

    def _failure(self, index: int, error: WorkerError) -> EnvError:
        return EnvError(
            f"environment {self.env_id}, copy {index} of {self.num_envs}, failed "
            f"{self._episodes[index]}: {error}"
        )
