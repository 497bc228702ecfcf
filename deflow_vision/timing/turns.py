"""Timing fairly: what is compared takes turns, so that a machine that slows down slows both."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from deflow_vision.timing.figures import Sample

Name = TypeVar("Name", bound=Hashable)


def in_turns(
    calls: Mapping[Name, Callable[[], object]], *, rounds: int, count: int, warm_up: int = 3
) -> dict[Name, Sample]:
    """Milliseconds of each call.

    Args:
        calls: what is timed, by name.
        rounds: the calls take turns so often.
        count: how often one is called in its turn.
        warm_up: calls before the first turn that are not timed; one before each later turn.

    Returns:
        The median of each turn, by name.
    """
    medians: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            for _ in range(warm_up if turn == 0 else 1):
                call()
            medians[name].append(1000 * statistics.median(seconds_of(call) for _ in range(count)))
    return {name: Sample(tuple(values), "ms") for name, values in medians.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call, and of what it left to do on a GPU."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory() -> float:
    """The most resident memory that this process has had, in GB, with all of its libraries.

    Not `ru_maxrss`, which begins at what the process that started this one held.
    """
    return _status("VmHWM")


def resident_memory() -> float:
    """The resident memory of this process now, in GB."""
    return _status("VmRSS")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":\t") for line in lines)[key].split()[0]) * 1024 / 1e9
