"""Real work that is killed at any moment and started again, until it ends as if nothing had been.

Each job runs in a process of its own, forked from one that has imported everything. It ends by
SIGKILL, either before its n-th operation on a file, which says where it was and comes again, or
after so many seconds, which may be in the middle of anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import yaml
from safetensors.torch import load_file

from tests.faults import tiny
from tests.faults.subjects import NPZ
from tests.forks import forks

OPERATIONS = (
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"),
    *("shutil.rmtree", "os.listdir"),
)
"""Audit events of which those below the job's folder are counted."""
MARK = "FAULTS_JOB"
"""A variable by which processes of a job are known."""
ENDING = 60.0
"""Seconds after which what a killed process leaves running must have ended by itself."""


@dataclass(frozen=True)
class Job:
    """Something that is started, killed and started again.

    Attributes:
        name: its own.
        prepare: makes what it reads, in a folder.
        go: begins it, or goes on with it: what it reads, and the folder that it writes in.
        found: what the result must have in common with that of a job that was never killed.
    """

    name: str
    prepare: Callable[[Path], None]
    go: Callable[[Path, Path], None]
    found: Callable[[Path], Any]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): _digest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _run_of(out: Path) -> Any:
    """All that decides a run: names of its files, arrays, buffers, and tables without times."""
    run = out / "run"
    arrays = {
        f"{path.parent.name}/{path.name}:{name}": hashlib.sha256(
            value.numpy().tobytes()
        ).hexdigest()
        for path in sorted(run.glob("checkpoints/*/*.safetensors"))
        for name, value in load_file(path).items()
    }
    tables = {}
    for path in run.glob("*.csv"):
        table = pd.read_csv(path)
        kept = sorted(name for name in table if not name.startswith("time/"))
        tables[path.name] = table[kept].to_csv()
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))]
    return names, arrays, tables, _files(run / "replay")


def _train(run: Path, argv: list[str]) -> None:
    from deflow_vision.config import load
    from deflow_vision.training.loop import train

    begun = (run / "config.yaml").exists()
    train(load(["--resume", str(run)] if begun else argv))


LONGER = ("--offline-steps", "12", "--checkpoint.keep", "2")


def _train_state(base: Path, out: Path) -> None:
    _train(out / "run", tiny.flags(base / "state.zarr", out / "run", *LONGER))


def _train_pixels(base: Path, out: Path) -> None:
    run = out / "run"
    pixels = ("--encoder.name", "impala_debug", "--data.residency", "stream")
    _train(run, tiny.flags(base / "pixels.zarr", run, *LONGER, *pixels, kind="pixels"))


def _train_online(base: Path, out: Path) -> None:
    from tests.training.test_online import arguments

    stores = {"state": base / "state.zarr"}
    _train(out / "run", [*arguments("state", stores, out / "run"), "--checkpoint.keep", "2"])


def _prepare_walks(base: Path) -> None:
    from tests.training.test_online import write_walks

    write_walks(base)


def _prepare_stores(base: Path) -> None:
    from tests.training.conftest import write_task_store

    for kind in ("state", "pixels"):
        write_task_store(base / f"{kind}.zarr", kind)


@contextlib.contextmanager
def _recording_each_episode() -> Iterator[None]:
    with mock.patch("deflow_vision.datasets.writer._SECONDS", 0.0):
        yield


def _convert(base: Path, out: Path) -> None:
    from deflow_vision.datasets.convert import convert

    if not (out / "a.zarr").exists():  # as the command says where it is complete
        with tiny.goals_of_two_cubes(), _recording_each_episode():
            convert(base / NPZ, out / "a.zarr")


def _collect(base: Path, out: Path) -> None:
    from deflow_vision.datasets.collect import collect

    if not (out / "a.zarr").exists():
        with _recording_each_episode():
            counts = {"episodes": 6, "val_episodes": 2, "episode_states": 20}
            collect("cube-single-play", out / "a.zarr", num_processes=1, **counts)


def _prepare_rendering(base: Path) -> None:
    from deflow_vision.datasets.collect import collect

    counts = {"episodes": 4, "val_episodes": 1, "episode_states": 4}
    collect("cube-single-play", base / "states.zarr", num_processes=1, **counts)


def _render(base: Path, out: Path) -> None:
    from deflow_vision.datasets.render import render

    if not (out / "a.zarr").exists():
        with _recording_each_episode():
            drawn = {"resolution": 32, "render_profile": "draft"}
            render(base / "states.zarr", out / "a.zarr", num_processes=1, **drawn)


def _download(base: Path, out: Path) -> None:
    """In pieces of a kilobyte, so that there is a middle."""
    from deflow_vision.datasets.download import fetch
    from tests.datasets.test_download import Host, serving

    block = "deflow_vision.datasets.transfer._BLOCK_BYTES"
    with serving(Host((base / NPZ).read_bytes())) as host, mock.patch(block, 1 << 10):
        fetch(out / "a.npz", [host.url], pause=0.0)


def _prepare_export(base: Path) -> None:
    tiny.write_run(base / "sound")


def _export(base: Path, out: Path) -> None:
    from deflow_vision.sharing.policy import Policy

    policy = Policy.from_run(base / "sound" / "run")
    policy.save_pretrained(out / "policy")
    policy.save_pretrained(out / "policy", overwrite=True)


def _prepare_benchmark(base: Path) -> None:
    from tests.benchmark.test_launch import NOT_EVALUATED
    from tests.training.conftest import write_task_store

    store = write_task_store(base / "state.zarr", "state")
    settings = {
        **{"offline_steps": 6, "batch_size": 6, "num_threads": 1, "eval": NOT_EVALUATED},
        **{"data": {"path": str(store)}, "agent": {"hidden_dims": [8]}},
        **{"checkpoint": {"every": 3, "keep": 9}, "log": {"every": 1}},
    }
    tasks, methods = ["cube-single-play-task1"], {"bc": {}, "iql": {}}
    table = {"protocol": "timing", "tasks": tasks, "seeds": 1, "settings": settings}
    (base / "tiny.yaml").write_text(yaml.safe_dump(table | {"methods": methods}))


def _benchmark(base: Path, out: Path) -> None:
    from deflow_vision.benchmark.launch import Executor, run_cells
    from deflow_vision.benchmark.table_file import load_table

    table = load_table(str(base / "tiny.yaml"))
    cells = list(table.cells(out))
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    deadline = time.monotonic() + ENDING
    while True:  # a trainer that its killed launcher has left ends its run before another begins
        outcomes = run_cells(cells, table, Executor(base / "logs", workers=2), script)
        failed = [outcome for outcome in outcomes if outcome.state == "failed"]
        if not failed:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(failed[0].reason)
        time.sleep(1.0)


def _benchmark_found(out: Path) -> Any:
    return [
        _run_of(run.parent)[1]
        for run in sorted(config.parent for config in out.rglob("config.yaml"))
    ]


JOBS = (
    Job("offline, state", _prepare_stores, _train_state, _run_of),
    Job("offline, streamed pixels", _prepare_stores, _train_pixels, _run_of),
    Job("offline to online", _prepare_walks, _train_online, _run_of),
    Job("conversion", tiny.write_npz, _convert, _files),
    Job("download", tiny.write_npz, _download, _files),
    Job("export", _prepare_export, _export, _files),
    Job("collection", lambda base: None, _collect, _files),
    Job("rendering", _prepare_rendering, _render, _files),
    Job("benchmark", _prepare_benchmark, _benchmark, _benchmark_found),
)
"""All that is killed; the last three need a simulator, or processes of their own."""


@dataclass(frozen=True)
class Whole:
    """A job that was never killed.

    Attributes:
        found: its result.
        operations: on files, of which each is a moment to be killed at.
        seconds: how long it took.
    """

    found: Any
    operations: int
    seconds: float


class Killer:
    """Runs one job again and again in a folder.

    Args:
        job: of `JOBS`.
        folder: an empty one.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._base, self._out = job, folder / "base", folder / "out"
        self._context = forks()
        self._base.mkdir(parents=True)

    def whole(self) -> Whole:
        """Let the job run to its end."""
        code, _, _ = self._start(prepare=True)
        start = time.monotonic()
        self._out.mkdir()
        code, operations, text = self._start()
        if code:
            raise RuntimeError(f"{self._job.name} fails by itself ({code}): {text}")
        seconds = time.monotonic() - start
        found = self._job.found(self._out)
        shutil.rmtree(self._out)
        return Whole(found, operations, seconds)

    def kill(self, whole: Whole, moments: list[int | float]) -> str:
        """Kill the job at some moments, one after another, and let it come to its end.

        Args:
            whole: what it must come to.
            moments: a count of operations, or seconds.

        Returns:
            What is wrong; empty if all is well.
        """
        self._out.mkdir()
        try:
            for moment in moments:
                code, _, text = self._start(moment)
                if code not in (0, -signal.SIGKILL):
                    return f"killed at {moment}, going on failed ({code}): {text}"
            code, _, text = self._start()
            if code:
                return f"after {moments}: exit code {code}: {text}"
            if running := _still_running(self._out):
                return f"after {moments}: processes {running} go on"
            found = self._job.found(self._out)
            if found != whole.found:
                return f"after {moments}: another result: {_difference(whole.found, found)}"
            return ""
        finally:
            shutil.rmtree(self._out)

    def _start(
        self, moment: int | float | None = None, *, prepare: bool = False
    ) -> tuple[int, int, str]:
        """Exit code, operations on files, and what it had to say."""
        ours, theirs = self._context.Pipe(duplex=False)
        at = moment if isinstance(moment, int) else None
        arguments = (JOBS.index(self._job), self._base, self._out, at, prepare, theirs)
        process = self._context.Process(target=_work, args=arguments)
        process.start()
        theirs.close()
        if isinstance(moment, float):
            process.join(moment)
            process.kill()
        operations, text = 0, ""
        with contextlib.suppress(EOFError):
            operations, text = ours.recv()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, operations, text


def _still_running(out: Path) -> list[int]:
    """Processes of a job that do not end by themselves, though its own process has."""
    mark, deadline = f"{MARK}={out}\0".encode(), time.monotonic() + ENDING
    while True:
        left = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # of others, or gone
                if mark in (path / "environ").read_bytes() + b"\0":
                    left.append(int(path.name))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _difference(ours: Any, theirs: Any) -> str:
    """Where two results first differ, in short."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        return f"{keys[0]}: {_difference(ours.get(keys[0]), theirs.get(keys[0]))}"
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        if len(ours) != len(theirs):
            return f"{sorted(set(map(str, ours)) ^ set(map(str, theirs)))}"[:500]
        return next(_difference(a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
    return f"{str(ours)[:200]} became {str(theirs)[:200]}"


def _work(
    index: int, base: Path, out: Path, at: int | None, prepare: bool, results: Connection
) -> None:
    """The life of a job's process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of progress bars
    os.environ[MARK] = str(out)
    job, count, within = JOBS[index], 0, str(out)

    def count_operation(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in OPERATIONS and str(arguments[0]).startswith(within):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_operation)
    try:
        if prepare:
            job.prepare(base)
        else:
            job.go(base, out)
    except BaseException:
        results.send((count, traceback.format_exc()[-1500:]))
        os._exit(1)
    results.send((count, ""))
