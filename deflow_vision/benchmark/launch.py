"""Runs the cells of a table, several at a time, on this machine or on SLURM, through submitit.

What a cell came to is read from its run folder, whatever its job says: a table can be stopped at
any moment and run again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from deflow_vision.benchmark.job import TrainJob
from deflow_vision.benchmark.runs import state_of
from deflow_vision.benchmark.tables import Cell, Table
from deflow_vision.types import UserError

log = logging.getLogger(__name__)

LOG_LINES = 12
"""Lines from the end of a failed cell's log that are shown."""

NO_LIMIT_MINUTES = 60 * 24 * 365
"""submitit ends local jobs after two minutes by default."""

Job = Any  # submitit's are generic in what they return: nothing here


@dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Attributes:
        cell: the cell.
        state: "skipped" where it was finished before.
        reason: why it failed, with the end of its log.
    """

    cell: Cell
    state: Literal["skipped", "finished", "failed"]
    reason: str = ""


@dataclass
class Executor:
    """Where jobs run.

    Attributes:
        folder: takes what submitit writes: logs, and the jobs themselves.
        cluster: "local" or "slurm".
        workers: how many run at a time.
        gpus: of this machine, numbers: each job sees one, of the least busy; none without any.
        slurm: submitit's parameters of a SLURM job, such as `slurm_partition`.
    """

    folder: Path
    cluster: Literal["local", "slurm"] = "local"
    workers: int = 1
    gpus: Sequence[int] = ()
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot run.

        Raises:
            UserError: naming the value.
        """
        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}, must be at least 1")
        if self.slurm and self.cluster != "slurm":
            raise UserError("--slurm sets up jobs of SLURM: pass --cluster slurm as well")
        self._busy: dict[str, int] = {}

    def submit(self, job: TrainJob) -> Job:
        """Start a job, or queue it.

        Raises:
            UserError: SLURM is not there, or does not know a parameter.
        """
        import submitit

        if self.cluster == "slurm":
            try:
                executor: Any = submitit.AutoExecutor(self.folder, cluster="slurm")
                defaults = {"timeout_min": 24 * 60, "gpus_per_node": 1}
                executor.update_parameters(**defaults | dict(self.slurm), stderr_to_stdout=True)
                return executor.submit(job)
            except (RuntimeError, NameError, OSError) as error:
                raise UserError(f"SLURM took no job: {error}") from error
        executor = submitit.LocalExecutor(self.folder)
        gpu = min(self.gpus, key=lambda each: list(self._busy.values()).count(each), default=None)
        executor.update_parameters(
            timeout_min=NO_LIMIT_MINUTES,
            stderr_to_stdout=True,
            gpus_per_node=0 if gpu is None else 1,
            visible_gpus=() if gpu is None else (gpu,),
        )
        submitted = executor.submit(job)
        if gpu is not None:
            self._busy[submitted.job_id] = gpu
        return submitted

    def release(self, job: Job) -> None:
        """A job has ended: its GPU is free."""
        self._busy.pop(job.job_id, None)


def found_gpus() -> tuple[int, ...]:
    """The numbers of this machine's GPUs, of those in CUDA_VISIBLE_DEVICES where it is set.

    Raises:
        UserError: that variable has other names than numbers.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return tuple(range(torch.cuda.device_count()))
    try:
        return tuple(map(int, visible.split(",")))
    except ValueError:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}: name the GPUs by their numbers with --gpus"
        ) from None


def run_cells(
    cells: Sequence[Cell],
    table: Table,
    executor: Executor,
    train_script: Path,
    poll_seconds: float = 1.0,
) -> list[Outcome]:
    """Run what is not finished; one that fails stops no other.

    Args:
        cells: of the table.
        table: their table.
        executor: where they run.
        train_script: `scripts/train.py`.
        poll_seconds: between two looks at the jobs.

    Returns:
        The outcome of every cell, in the order in which they came to it.

    Raises:
        KeyboardInterrupt: after the jobs were told to stop; their runs can be resumed.
    """
    # A command that a shell put into the background ignores interrupts, and its jobs would inherit
    # that: submitit ends them by one.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes, waiting = _sort_out(cells, table)
    running: dict[str, tuple[Job, Cell]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < executor.workers:
                cell = waiting.popleft()
                job = executor.submit(train_job(cell, train_script))
                running[job.job_id] = (job, cell)
                log.info("started   %s (log: %s)", cell.name, job.paths.stdout)
            time.sleep(poll_seconds)
            for job, cell in [entry for entry in running.values() if entry[0].done()]:
                del running[job.job_id]
                executor.release(job)
                outcomes.append(_judge(job, cell, table))
                log.info("%-9s %s, %d to go", outcomes[-1].state, cell.name, len(waiting))
    except BaseException:  # whatever happened: no job may go on without this process
        _stop([job for job, _ in running.values()])
        raise
    return outcomes


def train_job(cell: Cell, train_script: Path) -> TrainJob:
    """The job of a cell."""
    python = (sys.executable, str(train_script))
    return TrainJob(
        command=(*python, *cell.arguments()),
        resume=(*python, "--resume", str(cell.run_dir)),
        run_dir=cell.run_dir,
    )


def _sort_out(cells: Sequence[Cell], table: Table) -> tuple[list[Outcome], deque[Cell]]:
    """What is known without running anything, and what is to be run."""
    outcomes: list[Outcome] = []
    waiting: deque[Cell] = deque()
    for cell in cells:
        try:
            if state_of(cell, table.protocol) == "finished":
                outcomes.append(Outcome(cell, "skipped"))
            else:
                waiting.append(cell)
        except UserError as error:
            outcomes.append(Outcome(cell, "failed", str(error)))
    return outcomes, waiting


def _judge(job: Job, cell: Cell, table: Table) -> Outcome:
    """What a job that has ended left behind."""
    try:
        if state_of(cell, table.protocol) == "finished":
            return Outcome(cell, "finished")
        reason = "its run is not finished"
    except UserError as error:
        reason = str(error)
    end = (job.stdout() or "the log is empty").splitlines()[-LOG_LINES:]
    return Outcome(cell, "failed", "\n".join([f"{reason}; {job.paths.stdout} ends:", *end]))


def _stop(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.cancel(check=False)
    deadline = time.monotonic() + 30
    while not all(job.done() for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.2)
