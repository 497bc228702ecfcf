"""Requests to end: a run that is told to stop saves a checkpoint and goes, within ten seconds.

SIGINT is Ctrl-C. SIGTERM is what systems send before they end a process, SLURM's preemption and
`scancel` among them; SIGUSR1 and SIGUSR2 are what jobs have SLURM send before their time is over
(`--signal=USR1@90`; submitit has USR2).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE = 7.0
"""Seconds that an update and the end of an online episode may take; then it is left as it is."""
AGREE_EVERY = 10
"""Updates between two questions of several processes whether one of them was told to stop."""


class Stopped(KeyboardInterrupt):
    """The run was told to stop.

    Attributes:
        signal: by which signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = signal.Signals(number)


class Stop:
    """Takes requests to end while it is entered; the loop asks for them between its updates.

    A second request, and the end of the patience, end the run at once.

    Args:
        accelerator: all its processes stop after the same update.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._asked: int | None = None
        self._at_once = True
        self._before: dict[int, Any] = {}

    def asked(self, step: int) -> bool:
        """Whether to stop, the same on all processes.

        Args:
            step: updates done.
        """
        self._at_once = False
        if self._accelerator.num_processes == 1:
            return self._asked is not None
        if step % AGREE_EVERY:
            return False
        if self._asked is not None:
            self._accelerator.set_trigger()
        return bool(self._accelerator.check_trigger())

    def leave(self) -> None:
        """End the run.

        Raises:
            Stopped: always.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)  # what cleans up is not disturbed
        raise Stopped(self._asked or signal.SIGTERM)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Requests need not wait for the end of the block: they raise `Stopped` in it."""
        self._at_once = True
        if self._asked is not None:
            self.leave()
        yield
        self._at_once = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot take signals
            for number in (*SIGNALS, signal.SIGALRM):
                # What the shell has told to ignore (a command in the background) stays ignored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self._asked is not None
        if number != signal.SIGALRM:
            self._asked = number
        if again or self._at_once:
            self._at_once = False
            self.leave()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
