"""Several processes of one training run, as a launcher starts them, talking over gloo."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from deflow_vision.training.loop import train
from tests.forks import forks

SECONDS = 120.0
"""How long the ranks may take before they are said to hang."""


@dataclass(frozen=True)
class Rank:
    """How one process ended.

    Attributes:
        code: its exit code; minus the number of the signal that ended it.
        said: the error that it raised; empty without one.
    """

    code: int
    said: str


def launch(
    arguments: Sequence[str],
    processes: int,
    before_update: Callable[[int, int], None] | None = None,
) -> list[Rank]:
    """Train in several processes of this machine.

    Args:
        arguments: the command line.
        processes: how many.
        before_update: called in each process with its rank and the updates done; a function of a
            module, since it is sent there.

    Raises:
        TimeoutError: they do not end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forks()
    ends, ranks = [], []
    for rank in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        place = {
            **{"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)},
            **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
        }
        work = context.Process(target=_work, args=(place, list(arguments), before_update, theirs))
        work.start()
        theirs.close()
        ends.append(ours)
        ranks.append(work)
    for work in ranks:
        work.join(SECONDS)
    hanging = [rank for rank, work in enumerate(ranks) if work.is_alive()]
    for work in ranks:
        work.kill()
    if hanging:
        raise TimeoutError(f"ranks {hanging} go on after {SECONDS:.0f} s")
    return [_end(work, end) for work, end in zip(ranks, ends, strict=True)]


def die_before_third_update(rank: int, step: int) -> None:
    """The last of two ranks is gone without a word."""
    if (rank, step) == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)


def _end(work: Any, end: Connection) -> Rank:
    try:
        return Rank(work.exitcode, end.recv())
    except EOFError:
        return Rank(work.exitcode, "")


def _work(
    place: dict[str, str],
    arguments: list[str],
    before_update: Callable[[int, int], None] | None,
    said: Connection,
) -> None:
    os.environ |= place
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of progress bars
    from deflow_vision.config import load
    from deflow_vision.training.update import Update

    if before_update is not None:
        gradients, rank = Update.__call__, int(place["RANK"])

        def update(self: Update, batch: Any, noises: Any, step: int) -> Any:
            before_update(rank, step)
            return gradients(self, batch, noises, step)

        Update.__call__ = update  # type: ignore[method-assign]
    try:
        train(load(arguments))
    except BaseException as error:
        said.send(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        sys.exit(2)
    said.send("")
