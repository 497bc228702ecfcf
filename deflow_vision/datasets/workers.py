"""Worker processes that make the episodes of a store, which are then written in order."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from deflow_vision import __version__
from deflow_vision.datasets.episodes import Episode
from deflow_vision.envs.rendering import probe
from deflow_vision.envs.worker import Worker, close_all
from deflow_vision.types import UserError


@contextlib.contextmanager
def start_workers(
    factory: Callable[..., Any],
    *args: Any,
    variables: Mapping[str, str],
    num_processes: int | None,
    num_episodes: int,
) -> Iterator[list[Worker]]:
    """Worker processes, ended with the block.

    Args:
        factory: makes an object with a method `episode(split, index)`, in each worker.
        args: its arguments.
        variables: environment variables of the processes.
        num_processes: how many; by default one a core.
        num_episodes: no more than these.

    Raises:
        UserError: fewer than one process.
    """
    if num_processes is not None and num_processes < 1:
        raise UserError(f"{num_processes} worker processes: it must be 1 or more.")
    number = min(num_processes or len(os.sched_getaffinity(0)), num_episodes)
    workers = [Worker(factory, *args, variables=variables) for _ in range(number)]
    try:
        yield workers
    finally:
        close_all(workers)


def in_order(
    workers: Sequence[Worker], jobs: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, Episode]]:
    """The episodes of `jobs` in order, each worker making every len(workers)-th of them.

    Args:
        workers: from `start_workers`.
        jobs: split and index of each episode.
    """
    for worker, job in zip(workers, jobs, strict=False):
        worker.send("episode", *job)
    for number, (split, _) in enumerate(jobs):
        worker = workers[number % len(workers)]
        episode = worker.receive()
        if number + len(workers) < len(jobs):
            worker.send("episode", *jobs[number + len(workers)])
        yield split, episode


def versions(*, pixels: bool) -> dict[str, str]:
    """Versions of what makes the data here, and the OpenGL that draws it."""
    found = {name: importlib.metadata.version(name) for name in ("ogbench", "mujoco")}
    found["deflow-vision"] = __version__
    if pixels:
        backend = probe()
        found["renderer"] = f"{backend.name}, {backend.vendor}, {backend.renderer}"
    return found
