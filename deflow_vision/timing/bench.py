"""All parts, one after the other."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from deflow_vision.timing.action import time_actions
from deflow_vision.timing.conversion import time_conversion
from deflow_vision.timing.evaluation import time_evaluation
from deflow_vision.timing.figures import Figure
from deflow_vision.timing.growth import time_growth
from deflow_vision.timing.machine import Machine, look
from deflow_vision.timing.mixed import count_mixing
from deflow_vision.timing.reference import Reference
from deflow_vision.timing.render import time_render
from deflow_vision.timing.settings import Part, Settings
from deflow_vision.timing.streaming import time_streaming
from deflow_vision.timing.update import time_methods, time_updates
from deflow_vision.timing.wait import time_wait

log = logging.getLogger(__name__)

BUSY = 0.3
"""A load before from which the machine is said to do something else."""


def bench(
    parts: Sequence[Part],
    settings: Settings,
    reference: Reference,
    say: Callable[[str], None] = log.info,
) -> tuple[Machine, list[Figure]]:
    """Time some parts.

    Args:
        parts: in this order.
        settings: how much of each.
        reference: the official code; without a checkout its recorded times are scaled.
        say: is told of each part as it begins and ends.

    Returns:
        The machine and a row of each figure.

    Raises:
        UserError: the official code cannot be run.
    """
    with ExitStack() as stack:
        folder = settings.folder
        if folder is None:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="deflow-bench-"))
            folder = Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        machine = look()
        if machine.load > BUSY * len(os.sched_getaffinity(0)):
            say(
                f"Other work runs on this machine (load {machine.load:.1f}): times will be too long"
            )
        timed: Mapping[Part, Callable[[], Iterable[Figure]]] = {
            "update": lambda: time_updates(machine, reference, settings),
            "action": lambda: time_actions(machine, reference, settings),
            "evaluation": lambda: time_evaluation(settings),
            "wait": lambda: time_wait(machine, settings, folder),
            "growth": lambda: time_growth(settings, folder),
            "streaming": lambda: time_streaming(settings, folder),
            "conversion": lambda: time_conversion(settings, folder),
            "mixing": count_mixing,
            "render": lambda: time_render(settings),
            "methods": lambda: time_methods(machine, settings),
        }
        figures: list[Figure] = []
        for part in parts:
            start = time.perf_counter()
            figures += timed[part]()
            say(f"{part}: {time.perf_counter() - start:.0f} s")
    return machine, figures
