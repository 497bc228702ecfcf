"""Runs whose dataset is at an address: the same run, its place, and an outage in the middle."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from deflow_vision.config import from_yaml, load
from deflow_vision.datasets.store import StoreError
from deflow_vision.training import checkpoint
from deflow_vision.training.loop import train
from deflow_vision.training.run_folder import find_dataset
from tests.training.conftest import write_task_store
from tests.training.test_loop import assert_same_run, weights

ROOT = Path(__file__).resolve().parents[2]
STREAM = (
    *("--data.residency", "stream", "--data.block-length", "4", "--data.window-blocks", "1"),
    *("--data.cache-gib", "0", "--data.retry-minutes", "0.02", "--eval.val-batches", "0"),
)


@pytest.fixture
def place(tmp_path, s3, monkeypatch):
    """The address of a store with many blocks, and the store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = write_task_store(tmp_path / "a.zarr", "state", (40, 33, 27), chunk=4)
    return s3.upload(path, f"{tmp_path.name}.zarr"), path


def test_a_run_from_s3_equals_one_from_the_disk(configure, tmp_path, place):
    address, path = place
    near = train(configure("state", tmp_path / "near", "--data.path", str(path)))
    far = train(configure("state", tmp_path / "far", "--data.path", address))
    assert_same_run(near, far)
    assert from_yaml(far / "config.yaml").data.path == address
    assert json.loads((far / "environment.json").read_text())["dataset"]["path"] == address
    assert find_dataset(far).path == address
    assert any((tmp_path / "home" / "deflow-vision").rglob("train.actions.c.*"))


def test_a_run_ends_in_an_outage_and_goes_on_after_it(
    arguments, tmp_path, place, s3, monkeypatch, capsys
):
    address, path = place
    whole = train(load(arguments("state", tmp_path / "whole", *STREAM, "--data.path", str(path))))
    save = checkpoint.save

    def save_and_cut_off(*args, **kwargs):
        save(*args, **kwargs)
        s3.stop()

    monkeypatch.setattr(checkpoint, "save", save_and_cut_off)
    run = tmp_path / "run"
    command = [
        "train.py",
        *arguments("state", run, *STREAM, "--data.path", address, "--offline-steps", "60"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert ended.value.code == 2
    # Saved before it validates: which of the blocks that both need is missed first is not fixed.
    said = capsys.readouterr().err
    assert re.search(rf"error: {re.escape(address)}/(train|val)/\S+/c/\d", said)
    assert "--resume" in said
    assert [c.step for c in checkpoint.checkpoints(run)] == [3]

    s3.start()
    monkeypatch.setattr(checkpoint, "save", save)
    cache = ("--data.cache", str(tmp_path / "cache"), "--data.cache-gib", "1")
    train(load(["--resume", str(run), "--offline-steps", "6", *cache]))
    assert weights(run).keys() == weights(whole).keys()
    assert_same_run(whole, run)


def test_a_cache_that_cannot_be_written_is_an_error_at_the_start(configure, tmp_path, place):
    (tmp_path / "file").touch()
    flags = ("--data.path", place[0], "--data.cache", str(tmp_path / "file" / "cache"))
    with pytest.raises(StoreError, match=r"cannot be written: Not a directory.*--data\.cache"):
        train(configure("state", tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()
