"""The job that trains one cell, as submitit pickles it. Imports neither torch nor the package."""

from __future__ import annotations

import fcntl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainJob:
    """Trains a run to its end, from its last checkpoint if it has begun.

    Attributes:
        command: begins the run.
        resume: goes on with it.
        run_dir: its folder, which tells the two apart when the job starts.
    """

    command: tuple[str, ...]
    resume: tuple[str, ...]
    run_dir: Path

    def __call__(self) -> None:
        """Run the command in a process of its own, its output in this one's.

        Raises:
            RuntimeError: another process trains this run, which both would spoil.
        """
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        with (self.run_dir.parent / f".{self.run_dir.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(f"another process is training {self.run_dir}") from None
            begun = (self.run_dir / "config.yaml").exists()
            command = self.resume if begun else self.command
            # The trainer holds the lock too: it counts for as long as that process lives.
            subprocess.run(command, check=True, pass_fds=[lock.fileno()])

    def checkpoint(self) -> Any:
        """What submitit queues again when SLURM preempts the job or its time is up: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
