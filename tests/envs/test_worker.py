"""Worker processes, with objects that need no simulator."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deflow_vision.envs.worker import Worker, WorkerError, close_all, run_in_worker


class Counter:
    def __init__(self, start: int) -> None:
        self.count = start

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def fail(self) -> None:
        raise KeyError("what went wrong")

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Refusing:
    def __init__(self) -> None:
        raise RuntimeError("cannot be made")


def environment_and_modules(name: str) -> tuple[str | None, list[str]]:
    print("a library that prints")
    return os.environ.get(name), list(sys.modules)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie is dead, only not yet collected


@pytest.fixture
def worker():
    with Worker(Counter, 3) as counter:
        yield counter


def test_a_worker_keeps_its_object_between_calls(worker: Worker) -> None:
    assert worker.call("add", 2) == 5
    assert worker.call("add", 4) == 9


def test_an_exception_comes_back_with_its_traceback_and_the_worker_lives_on(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"(?s)in fail.*what went wrong"):
        worker.call("fail")
    assert worker.call("add", 1) == 4


def test_a_worker_that_dies_is_an_error_that_names_the_signal(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"died \(signal SIGSEGV\)"):
        worker.call("die")


def test_an_object_that_cannot_be_made_is_an_error_of_the_first_call() -> None:
    with Worker(Refusing) as worker, pytest.raises(WorkerError, match="cannot be made"):
        worker.call("add", 1)


def test_closing_ends_the_process_and_may_be_repeated() -> None:
    worker = Worker(Counter, 0)
    worker.close()
    worker.close()
    assert not is_alive(worker.pid)


def test_closing_does_not_wait_for_a_long_call() -> None:
    worker = Worker(Counter, 0)
    worker.send("wait", 60)
    start = time.monotonic()
    worker.close()
    assert time.monotonic() - start < 9
    assert not is_alive(worker.pid)


def test_several_workers_in_long_calls_end_together() -> None:
    workers = [Worker(Counter, 0) for _ in range(3)]
    for worker in workers:
        worker.send("wait", 60)
    start = time.monotonic()
    close_all(workers)
    assert time.monotonic() - start < 4  # one takes 2 s
    assert not any(is_alive(worker.pid) for worker in workers)


def test_a_forgotten_worker_is_ended() -> None:
    worker = Worker(Counter, 0)
    pid = worker.pid
    del worker
    gc.collect()
    assert not is_alive(pid)


def test_a_worker_whose_parent_is_killed_ends_in_the_middle_of_a_call() -> None:
    code = (
        "import sys, time; from deflow_vision.envs.worker import Worker\n"
        "from tests.envs.test_worker import Counter\n"
        "worker = Worker(Counter, 0); worker.send('wait', 60); print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_worker_has_its_own_variables_and_starts_without_the_parents_modules(
    capfd: pytest.CaptureFixture[str],
) -> None:
    value, modules = run_in_worker(
        environment_and_modules, "DEFLOW_TEST", variables={"DEFLOW_TEST": "theirs"}
    )
    assert value == "theirs"
    assert "DEFLOW_TEST" not in os.environ
    assert "numpy" not in modules
    assert "torch" not in modules
    assert "a library that prints" in capfd.readouterr().err
