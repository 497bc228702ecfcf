"""Cells run as processes, through submitit's local executor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from deflow_vision.benchmark import launch
from deflow_vision.benchmark.launch import Executor, run_cells, train_job
from deflow_vision.benchmark.results import collect
from deflow_vision.benchmark.runs import state_of
from deflow_vision.benchmark.table_file import load_table
from deflow_vision.config import load
from deflow_vision.training.loop import train
from deflow_vision.types import UserError
from scripts import benchmark
from tests.benchmark.conftest import write_run
from tests.training.conftest import write_task_store

TRAIN = Path(benchmark.__file__).parent / "train.py"

NOT_EVALUATED = {"every": 0, "at_start": False, "episodes": 0, "val_batches": 0}
EVALUATED = {
    **{"every": 2, "at_start": False, "episodes": 1, "num_envs": 1, "videos": 0},
    **{"val_batches": 0, "max_episode_steps": 3},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_task_store(tmp_path_factory.mktemp("stores") / "state.zarr", "state")


@pytest.fixture
def tiny(write_table, store):
    """A table of runs of six updates."""

    def make(protocol, evaluation, **methods):
        settings = {
            **{"offline_steps": 6, "batch_size": 6, "num_threads": 1, "eval": evaluation},
            **{"data": {"path": str(store)}, "agent": {"hidden_dims": [8, 12]}},
            **{"checkpoint": {"every": 3, "keep": 9}, "log": {"every": 1}},
        }
        return write_table(
            protocol=protocol,
            tasks=["cube-single-play-task1"],
            seeds=1,
            settings=settings,
            methods=methods,
        )

    return make


def interrupt(cell):
    """The run of a cell as a process that was killed after three updates leaves it."""
    train(load(cell.arguments()))
    shutil.rmtree(cell.run_dir / "checkpoints" / "step_6")


def test_run_skips_finished_cells_resumes_broken_ones_and_reports_failures(
    tiny, tmp_path, monkeypatch, capsys
):
    path = tiny(
        "timing",
        NOT_EVALUATED,
        bc={},
        iql={},
        lost={"algo": "bc", "settings": {"data": {"path": str(tmp_path / "nowhere.zarr")}}},
        other={"algo": "bc", "settings": {"agent": {"hidden_dims": [4]}}},
    )
    table = load_table(str(path))
    finished, broken, lost, other = table.cells(tmp_path)
    write_run(finished, [0, 0, 0, 0, 0, 0], every=1)
    before = (finished.run_dir / "train.csv").stat().st_mtime_ns
    interrupt(broken)
    rows = (broken.run_dir / "train.csv").read_text().splitlines()
    (broken.run_dir / "train.csv").write_text("\n".join(rows[:5]) + "\n")
    other.run_dir.mkdir(parents=True)
    (other.run_dir / "config.yaml").write_text("task: [")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "run", str(path), "--out", str(tmp_path), "--workers", "2"]
    )
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "1 finished, 1 finished before, 2 failed" in out
    assert f"failed: {lost.name}" in err
    assert "no store" in err.lower() or "nowhere.zarr" in err  # the end of its log
    assert f"failed: {other.name}" in err
    assert "not valid YAML" in err
    assert (finished.run_dir / "train.csv").stat().st_mtime_ns == before
    assert state_of(broken, table.protocol) == "finished"
    record = json.loads((broken.run_dir / "environment.json").read_text())
    assert len(record["resumed"]) == 1
    steps = [line.split(",")[0] for line in (broken.run_dir / "train.csv").read_text().split()]
    assert steps == ["step", "1", "2", "3", "4", "5", "6"]


def test_a_cell_runs_from_its_first_update_to_its_score(tiny, tmp_path):
    table = load_table(str(tiny("offline", EVALUATED, bc={})))
    cells = list(table.cells(tmp_path / "out"))
    (outcome,) = run_cells(cells, table, Executor(tmp_path / "logs"), TRAIN)
    assert (outcome.state, outcome.reason) == ("finished", "")
    (row,) = collect(table, tmp_path / "out").rows
    assert row.ours["bc"].figures.tolist() == [[0.0]]  # three steps solve nothing
    assert row.ours["bc"].complete


def test_gpus_are_those_that_this_process_may_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert launch.found_gpus() == (2, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a")
    with pytest.raises(UserError, match="'GPU-1a': name the GPUs"):
        launch.found_gpus()


SLEEPER = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
folder.mkdir(parents=True)
(folder / "part").write_text(str(os.getpid()))
(folder / "part").rename(folder / "pid")
time.sleep(600)
"""


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.fixture(params=["in front", "in the background"])
def place(request):
    """A shell has the commands in its background ignore interrupts."""
    before = signal.getsignal(signal.SIGINT)
    in_front = request.param == "in front"
    signal.signal(signal.SIGINT, signal.default_int_handler if in_front else signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("place")
def test_ctrl_c_leaves_no_trainer_behind_and_a_run_belongs_to_one_process(
    tiny, tmp_path, monkeypatch
):
    table = load_table(str(tiny("timing", NOT_EVALUATED, bc={})))
    (cell,) = table.cells(tmp_path / "out")
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    seen = {}

    def interrupted_sleep(seconds, sleep=time.sleep):
        path = cell.run_dir / "pid"
        if path.exists() and not seen:
            seen["pid"] = int(path.read_text())
            with pytest.raises(RuntimeError, match="another process is training"):
                train_job(cell, script)()
            raise KeyboardInterrupt
        sleep(0.05)

    monkeypatch.setattr(launch.time, "sleep", interrupted_sleep)
    with pytest.raises(KeyboardInterrupt):
        run_cells([cell], table, Executor(tmp_path / "logs"), script)
    assert not alive(seen["pid"])
    assert state_of(cell, table.protocol) == "missing"


def test_a_job_resumes_a_run_that_has_begun(tiny, tmp_path, monkeypatch):
    table = load_table(str(tiny("timing", NOT_EVALUATED, bc={}, iql={})))
    new, begun = table.cells(tmp_path)
    begun.run_dir.mkdir(parents=True)
    (begun.run_dir / "config.yaml").touch()
    called = []
    monkeypatch.setattr(os, "execv", lambda path, words: called.append(words[2:]))
    for cell in (new, begun):
        train_job(cell, TRAIN)()
    assert called == [tuple(new.arguments()), ("--resume", str(begun.run_dir))]


def test_a_machine_without_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    executor = Executor(tmp_path, "slurm")
    with pytest.raises(UserError, match="SLURM took no job"):
        executor.submit(train_job_stub())


def train_job_stub():
    return launch.TrainJob(("true",), ("true",), Path("run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"workers": 0}, "workers is 0"), ({"slurm": {"timeout_min": 9}}, "--cluster slurm")],
)
def test_an_executor_without_a_meaning_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        Executor(tmp_path, **settings)


def test_jobs_share_the_gpus_of_a_machine(tmp_path, monkeypatch):
    import submitit

    shown, numbers = [], iter("abcd")

    class Recorder:
        def __init__(self, folder):
            pass

        def update_parameters(self, **parameters):
            shown.append(parameters["visible_gpus"])

        def submit(self, job):
            return type("Job", (), {"job_id": next(numbers)})()

    monkeypatch.setattr(submitit, "LocalExecutor", Recorder)
    executor = Executor(tmp_path, workers=3, gpus=(4, 6))
    jobs = [executor.submit(train_job_stub()) for _ in range(3)]
    executor.release(jobs[1])
    executor.submit(train_job_stub())
    assert shown == [(4,), (6,), (4,), (6,)]
