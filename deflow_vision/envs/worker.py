"""A fresh Python process that holds one object and answers calls on it.

Not `multiprocessing`: its spawned children run the parent's main script again, with whatever that
imports (torch, in a training script), and take their environment variables from the parent. Here a
child starts empty, gets its own `MUJOCO_GL` before anything is imported, inherits no OpenGL context
and no file but its end of the pipe, and ends when that closes, however the parent died.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, Self

_SECONDS_TO_CLOSE = 10.0
_SECONDS_TO_END = 2.0


class WorkerError(RuntimeError):
    """A call in a worker raised, or the worker died."""


class Worker:
    """A process with an object in it. Closed by `close`, by a `with` block, or when forgotten.

    Args:
        factory: a function or class of an importable module that makes the object, in the worker.
        args: its arguments, picklable.
        variables: environment variables of the process, besides this process's own.
    """

    def __init__(
        self, factory: Callable[..., Any], *args: Any, variables: Mapping[str, str] | None = None
    ) -> None:
        ours, theirs = Pipe()
        search_path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
            env={**os.environ, **(variables or {}), "PYTHONPATH": search_path},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._connection = ours
        self._finalizer = weakref.finalize(self, _end, self._process, ours)
        self._send((factory, args))
        self._started = False

    def start(self, timeout: float | None = None) -> None:
        """Wait until the object is made; the first call does that, too.

        Args:
            timeout: seconds to wait for it; for ever by default.

        Raises:
            WorkerError: it could not be made, or not in time; close the worker then.
        """
        if not self._started:
            self.receive(timeout)
            self._started = True

    def send(self, method: str, *args: Any) -> None:
        """Start a call; fetch its result with `receive` before the next one."""
        self.start()
        self._send((method, args))

    def receive(self, timeout: float | None = None) -> Any:
        """The result of the call that `send` started.

        Args:
            timeout: seconds to wait for it; for ever by default.

        Raises:
            WorkerError: the call raised (its traceback is in the message), the process died, or
                there is no answer in time; close the worker then.
        """
        if timeout is not None and not self._connection.poll(timeout):
            raise WorkerError(f"the worker process {self.pid} gave no answer in {timeout:g} s")
        try:
            succeeded, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._death() from None
        if not succeeded:
            raise WorkerError(value)
        return value

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the object; raises like `receive`."""
        self.send(method, *args)
        return self.receive()

    def close(self) -> None:
        """End the process, by force if it does not end by itself. May be called again."""
        self._finalizer()

    def hang_up(self) -> None:
        """Let the process end by itself, within seconds, without waiting for it."""
        self._connection.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death() from None

    def _death(self) -> WorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_SECONDS_TO_CLOSE)
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return WorkerError(f"the worker process {self.pid} died ({how})")


def close_all(workers: Sequence[Worker]) -> None:
    """End several processes together: one in the middle of a call takes seconds to end.

    Args:
        workers: any of them may be closed already.
    """
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.close()


def run_in_worker(
    function: Callable[..., Any], *args: Any, variables: Mapping[str, str] | None = None
) -> Any:
    """Run a function of an importable module in a process of its own, and return its result.

    Args:
        function: what to run.
        args: its arguments, picklable.
        variables: environment variables of the process.
    """
    with Worker(_Caller, variables=variables) as worker:
        return worker.call("call", function, *args)


class _Caller:
    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def serve(descriptor: int) -> None:
    """The life of a worker: make the object, answer calls until the pipe closes.

    Args:
        descriptor: the file descriptor of its end of the pipe.
    """
    # Ctrl-C reaches the whole process group, SLURM's signals all of a step; the parent decides what
    # they mean, and may have an episode to end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # the libraries' prints would tear the parent's progress bar out of a pipe
    connection = Connection(descriptor)
    threading.Thread(target=_end_with_pipe, args=(descriptor,), daemon=True).start()
    target: Any = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        factory, args = connection.recv()
        target = _answer(connection, factory, args)
        while target is not None:
            method, args = connection.recv()
            _answer(connection, getattr(target, method), args, reply=True)
    if hasattr(target, "close"):
        target.close()


def _end_with_pipe(descriptor: int) -> None:
    """End the process soon after the pipe's other end closes, even in the middle of a call.

    A call may take minutes (an episode of drawn frames), too long to go on for nobody.
    """
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is reported whatever is asked for
    poll.poll()
    time.sleep(_SECONDS_TO_END)
    os._exit(1)


def _answer(
    connection: Any, function: Callable[..., Any], args: tuple[Any, ...], reply: bool = False
) -> Any:
    """Call, and send (True, result if `reply`) or (False, traceback)."""
    try:
        result = function(*args)
        connection.send((True, result if reply else None))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception:
        connection.send((False, traceback.format_exc()))
        return None
    return result


def _end(process: subprocess.Popen[bytes], connection: Any) -> None:
    connection.close()  # the worker's next read ends it
    try:
        process.wait(timeout=_SECONDS_TO_CLOSE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
