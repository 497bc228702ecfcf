"""Processes forked from one that has imported what training and reading of runs take."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

IMPORTED = [
    "deflow_vision.training.loop",
    "deflow_vision.sharing.policy",
    "deflow_vision.analysis.plots",
    "torch._dynamo",  # which the first optimizer imports, in seconds
    "tests.ranks",
    "tests.faults.subjects",
]


def forks() -> ForkServerContext:
    """Starts processes as `multiprocessing` does; all that do so here share one server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context
