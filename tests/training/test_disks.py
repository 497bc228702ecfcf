"""Disks that are full, or that nobody may write on: real ones, where this user may mount them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from deflow_vision.config import load
from deflow_vision.datasets.replay import ReplayError, _Column
from deflow_vision.datasets.sampler import UniformSampler
from deflow_vision.training import checkpoint, run_folder
from deflow_vision.training.logger import CsvTable
from deflow_vision.training.loop import train
from deflow_vision.types import UserError
from scripts import train as script
from tests.training.test_loop import assert_same_run


def mount(place, *options):
    done = subprocess.run(["mount", *options, place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.decode().strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk of 448 KiB, and a function that makes it a larger one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount(place, "-t", "tmpfs", "-o", "size=448k", "none")
    try:
        yield place, lambda: mount(place, "-o", "remount,size=64m")
    finally:
        subprocess.run(["umount", place], check=False)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run scripts/train.py; its exit code and what it says."""

    def run(argv):
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        try:
            script.main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().err

    return run


def test_a_disk_that_fills_up_ends_the_run_with_a_message_and_it_goes_on_when_there_is_room(
    small_disk, arguments, command, configure, tmp_path
):
    disk, enlarge = small_disk
    flags = ("--offline-steps", "12", "--checkpoint.every", "1")
    whole = train(configure("state", tmp_path / "whole", *flags))
    code, said = command(arguments("state", disk / "run", *flags))
    assert code == 2
    assert "No space left on device" in said
    last = checkpoint.latest(disk / "run")
    assert 0 < last.step < 12
    enlarge()
    train(load(["--resume", str(disk / "run")]))
    assert_same_run(whole, disk / "run", 12)


@pytest.mark.parametrize(("owner", "name"), [(CsvTable, "append"), (run_folder, "_write_record")])
def test_a_full_disk_is_a_message_whatever_is_written(
    owner, name, arguments, command, monkeypatch, tmp_path
):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(owner, name, full)
    code, said = command(arguments("state", tmp_path / "run"))
    assert code == 2
    assert "No space left on device: 'somewhere'" in said


def test_a_buffer_that_the_disk_takes_in_part_is_an_error(monkeypatch, tmp_path):
    column = _Column(tmp_path / "frames.bin", "float32", (3,))
    monkeypatch.setattr("os.pwrite", lambda *_: 4)
    with pytest.raises(OSError, match=r"frames\.bin: no space is left"):
        column.append(np.zeros(3, np.float32))
    column.close()
    with pytest.raises(ReplayError, match="not as the checkpoint left it"):
        _Column(tmp_path / "frames.bin", "float32", (3,)).restore(1, None)


def test_data_that_can_only_be_read_are_trained_on(stores, configure, tmp_path):
    place = tmp_path / "data"
    shutil.copytree(stores["state"], place / "state.zarr")
    mount(place, "--bind", place)
    try:
        mount(place, "-o", "remount,ro,bind")
        with pytest.raises(OSError, match="Read-only"):
            (place / "x").touch()
        train(configure("state", tmp_path / "run", "--data.path", str(place / "state.zarr")))
    finally:
        subprocess.run(["umount", place], check=False)


def test_a_run_folder_that_nobody_may_write_is_a_message(arguments, command, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    mount(place, "-t", "tmpfs", "-o", "ro", "none")
    try:
        code, said = command(arguments("state", place / "run"))
    finally:
        subprocess.run(["umount", place], check=False)
    assert code == 2
    assert "Read-only file system" in said
    assert str(place) in said


def test_a_dead_data_thread_ends_the_run_and_it_goes_on(configure, monkeypatch, tmp_path):
    batch, whole = UniformSampler.batch, train(configure("state", tmp_path / "whole"))

    def dies(self, step):
        if step == 4:
            raise RuntimeError("the thread is gone")
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(UniformSampler, "batch", dies)
        with pytest.raises(RuntimeError, match="the thread is gone"):
            train(configure("state", tmp_path / "run"))
    assert checkpoint.latest(tmp_path / "run").step == 3
    train(load(["--resume", str(tmp_path / "run")]))
    assert_same_run(whole, tmp_path / "run")


def test_a_clock_that_jumps_changes_nothing(configure, monkeypatch, tmp_path):
    whole = train(configure("state", tmp_path / "whole"))
    times = iter(range(10**9, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    assert_same_run(whole, train(configure("state", tmp_path / "run")))


def test_a_store_that_vanished_is_a_message(configure, tmp_path, stores):
    gone = tmp_path / "gone.zarr"
    shutil.copytree(stores["state"], gone)
    flags = ("--data.path", str(gone), "--offline-steps", "3")
    run = train(configure("state", tmp_path / "run", *flags))
    shutil.rmtree(gone)
    with pytest.raises(UserError, match="there is no dataset at"):
        train(load(["--resume", str(run), "--offline-steps", "6"]))
