"""Whether an update costs more when the dataset grows: its time, and its memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from deflow_vision.datasets.sampler import Sampler, make_sampler
from deflow_vision.datasets.store import open_store
from deflow_vision.timing.agents import make_agent, make_updates
from deflow_vision.timing.figures import Figure, Goal, Sample, more
from deflow_vision.timing.machine import device
from deflow_vision.timing.settings import Settings
from deflow_vision.timing.stores import Residency, state_store
from deflow_vision.timing.turns import alone, peak_memory, resident_memory
from deflow_vision.training.feed import Feed

TASK, BATCH = "cube-single-play", 256
WINDOW_BLOCKS = 2
"""Of 16,384 states, in a window of a stream here: the smaller dataset fills them, too. By default
windows are larger, and a dataset of less than a million such states lies in them whole."""

UNCHANGED = Goal(1.1, at_least=False)
"""A tenth is what two runs of the same differ by on a machine that does other work too."""


def time_growth(settings: Settings, folder: Path) -> Iterator[Figure]:
    """Rows of sampling, of an update with it, and of memory, for each residency."""
    stores = {}
    for size in settings.growth:
        episodes = max(10, size // 1000)
        stores[size] = state_store(folder / f"states-{size}.zarr", size, episodes)
    small, large = settings.growth
    for residency in get_args(Residency):
        found: dict[int, list[dict[str, float]]] = {size: [] for size in stores}
        for _ in range(max(1, settings.rounds // 2)):
            for size, path in stores.items():
                found[size].append(alone(_time, path, residency, settings))
        for name, (words, unit, goal) in _ROWS.items():
            after, before = (
                Sample(tuple(row[name] for row in found[size]), unit) for size in (large, small)
            )
            held = residency == "ram" and name == "memory"
            yield Figure(
                "growth",
                f"{words}, {residency}, {large:,} transitions",
                after,
                before,
                f"{small:,} transitions",
                more(after, before),
                None if held else goal,
                "the dataset lies in memory" if held else "",
            )


_ROWS: dict[str, tuple[str, str, Goal | None]] = {
    "sampling": ("sampling a batch of 256 states", "ms", None),
    "step": ("an update with its batch", "ms", UNCHANGED),
    "memory": ("memory of the process", "GB", UNCHANGED),
}


def _time(path: Path, residency: Residency, settings: Settings) -> dict[str, float]:
    agent = make_agent(TASK, network=settings.network)
    update = make_updates(agent, "no")

    def sampler() -> Sampler:
        return make_sampler(
            open_store(path).train,
            "task1",
            frame_stack=1,
            batch_size=BATCH,
            seed=0,
            residency=residency,
            window_blocks=WINDOW_BLOCKS,
        )

    alone_sampler, step = sampler(), 0
    alone_sampler.batch(0)
    start = time.perf_counter()
    while time.perf_counter() - start < settings.seconds / 5:
        step += 1
        alone_sampler.batch(step)
    sampling = (time.perf_counter() - start) / step
    alone_sampler.close()

    feed = Feed(sampler(), None, agent, device(), seed=0, streams=(0,), stream_size=BATCH)
    for step in range(3):
        update(*feed(step), step)
    start, step = time.perf_counter(), 3
    while time.perf_counter() - start < settings.seconds / 2:
        update(*feed(step), step)
        step += 1
    seconds = (time.perf_counter() - start) / (step - 3)
    feed.close()
    memory = peak_memory() if residency == "stream" else resident_memory()
    return {"sampling": 1000 * sampling, "step": 1000 * seconds, "memory": memory}
