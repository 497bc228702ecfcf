"""The job that trains one cell, as submitit pickles it. Imports neither torch nor the package."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path


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
        """Become the trainer: what ends the job then ends the training, and nothing outlives it.

        Raises:
            RuntimeError: another process trains this run, which both would spoil.
        """
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.run_dir.parent / f".{self.run_dir.name}.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is training {self.run_dir}") from None
        os.set_inheritable(lock, True)  # the trainer holds it until it ends, however it ends
        command = self.resume if (self.run_dir / "config.yaml").exists() else self.command
        print(*command, flush=True)
        os.execv(command[0], command)
