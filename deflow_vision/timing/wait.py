"""How much of a pixel training step is waiting for data that are streamed from a store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from deflow_vision.timing.agents import Precision, make_agent, make_updates
from deflow_vision.timing.feeds import pixel_feed
from deflow_vision.timing.figures import Figure, Goal, Sample
from deflow_vision.timing.machine import Machine
from deflow_vision.timing.settings import Settings
from deflow_vision.timing.stores import pixel_store
from deflow_vision.timing.turns import alone
from deflow_vision.timing.update import BATCH, PIXELS


def time_wait(machine: Machine, settings: Settings, folder: Path) -> Iterator[Figure]:
    """The row of updates from pixels in the precision that this machine computes fastest."""
    store = pixel_store(folder / f"frames-{settings.stream_frames}.zarr", settings.stream_frames)
    precision: Precision = "bf16" if machine.bfloat16 else "no"
    waited, step = alone(_time, store, precision, settings)
    words = "bf16" if machine.bfloat16 else "float32"
    yield Figure(
        "wait",
        f"waiting for data, streamed, pixels, batch {BATCH[PIXELS]}, {words}",
        Sample((waited,), "ms"),
        Sample((step,), "ms"),
        "the whole training step",
        waited / step,
        Goal(0.03, at_least=False),
    )


def _time(store: Path, precision: Precision, settings: Settings) -> tuple[float, float]:
    """Milliseconds of waiting and of all, each a step, after three that are not counted."""
    agent = make_agent(PIXELS, network=settings.network)
    update = make_updates(agent, precision)
    feed = pixel_feed(store, BATCH[PIXELS], agent)
    waited = start = 0.0
    for step in range(settings.wait_updates + 3):
        if step == 3:
            waited, start = feed.seconds_waited, time.perf_counter()
        update(*feed(step), step)
    seconds = time.perf_counter() - start
    waited = feed.seconds_waited - waited
    feed.close()
    return 1000 * waited / settings.wait_updates, 1000 * seconds / settings.wait_updates
