"""A long run that must not grow: memory, file handles, threads and processes, and its tables.

The run streams the pixels of the sample store, evaluates in spawned environments, and saves, in a
process of its own. What it holds is looked at from outside every few seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from deflow_vision.analysis.tables import read_table

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "data/samples/visual-cube-double-play-v0.zarr"
EVERY = 2.0
"""Seconds between two looks."""
SLACK = 8 << 20
"""Bytes that memory may grow by from the second quarter of a run to its last."""


class Holding(NamedTuple):
    """What a run holds at one moment, the processes that it started included.

    Attributes:
        memory: bytes that belong to its processes alone.
        handles: open files and sockets.
        threads: of all of them.
        processes: itself and those that it started.
        rows: of its `train.csv`, read as users read it.
    """

    memory: int
    handles: int
    threads: int
    processes: int
    rows: int


def watch(run: Path, seconds: float, *flags: str) -> list[Holding]:
    """Start a run and look at it for so long; then end it as Ctrl-C does.

    Args:
        run: its folder, new.
        seconds: from its first row on.
        flags: of the run, behind its own.

    Raises:
        RuntimeError: it ended by itself.
        UserError: one of its tables could not be read at some moment.
    """
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *_flags(run), *flags]
    place = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(command, env=place, stderr=subprocess.PIPE, text=True) as trainer:
        try:
            while not (run / "train.csv").exists():
                _still_running(trainer)
            end, seen = time.monotonic() + seconds, []
            while time.monotonic() < end:
                _still_running(trainer)
                seen.append(_look(trainer.pid, run))
            return seen
        finally:
            trainer.terminate()


def _flags(run: Path) -> tuple[str, ...]:
    return (
        *("--task", "visual-cube-double-play", "--data.path", str(STORE), "--run-dir", str(run)),
        *("--data.residency", "stream", "--data.block-length", "16", "--data.window-blocks", "8"),
        *("--encoder.name", "impala_debug", "--agent.hidden-dims", "32", "32"),
        *("--batch-size", "16", "--offline-steps", "10000000", "--num-threads", "1"),
        *("--log.every", "50", "--checkpoint.every", "1000", "--checkpoint.keep", "2"),
        *("--eval.every", "1000", "--eval.episodes", "2", "--eval.num-envs", "2"),
        *("--eval.videos", "0", "--eval.max-episode-steps", "5", "--eval.val-batches", "2"),
    )


def _still_running(trainer: subprocess.Popen[str]) -> None:
    try:
        _, said = trainer.communicate(timeout=EVERY)
    except subprocess.TimeoutExpired:
        return
    raise RuntimeError(f"the run has ended by itself ({trainer.returncode}): {said[-1500:]}")


def _look(pid: int, run: Path) -> Holding:
    trainer = psutil.Process(pid)
    family = [trainer, *trainer.children(recursive=True)]
    read_table(run / "episodes.csv")
    return Holding(
        memory=sum(process.memory_full_info().uss for process in family),
        handles=sum(process.num_fds() for process in family),
        threads=sum(process.num_threads() for process in family),
        processes=len(family),
        rows=len(read_table(run / "train.csv")),
    )


def growth(seen: Sequence[Holding]) -> list[str]:
    """What a run holds more of in the last quarter of its time than in the second, if anything.

    The first quarter is left to what libraries set up.

    Args:
        seen: at equal distances; at least eight.
    """
    if len(seen) < 8:
        raise ValueError(f"{len(seen)} looks tell nothing of growth: at least 8 are needed")
    quarter = len(seen) // 4
    early, late = seen[quarter : 2 * quarter], seen[-quarter:]
    grown = []
    for name in ("memory", "handles", "threads", "processes"):
        before, after = (median(getattr(x, name) for x in part) for part in (early, late))
        if after > before + (SLACK if name == "memory" else 0):
            grown.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
    if late[-1].rows <= early[-1].rows:
        grown.append(f"train.csv stayed at {late[-1].rows:,} rows")
    return grown
