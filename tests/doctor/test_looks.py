"""What the doctor sees of this machine, and what it leaves behind: nothing."""

from __future__ import annotations

import dataclasses
import os
import pickle
from importlib import metadata
from pathlib import Path

import pytest

from deflow_vision.doctor import compute, data, drawing, examine, packages, storage, tracking
from deflow_vision.doctor.probes import Probe, run_probe
from deflow_vision.doctor.rows import GIB, Row
from deflow_vision.envs.rendering import NoRendererError

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data/samples/visual-cube-double-play-v0.zarr"
KEY = "0123456789abcdef0123456789abcdef01234567"


def sent(facts):
    """As they come out of the process that looked."""
    return pickle.loads(pickle.dumps(facts))


def test_the_ranges_are_those_of_the_installed_package():
    facts = packages.look()
    assert facts.python_range == metadata.metadata("deflow-vision")["Requires-Python"]
    assert facts.installed["torch"] == metadata.version("torch")
    assert "pytest" not in facts.ranges  # of an extra
    assert facts.locked["jinja2"]  # written Jinja2 in the lock
    assert facts.locked["numpy"][0].isdigit()


def test_a_lock_that_is_not_there_is_empty(tmp_path):
    assert packages.read_lock(tmp_path / "requirements.lock") == {}


def test_frames_are_drawn_and_timed():
    facts = drawing.look()
    assert facts.problem == ""
    assert sent(facts) == facts
    assert facts.backend in ("egl", "osmesa", "glfw")
    assert 0 < facts.milliseconds["fast"] < 60_000
    assert drawing.judge(facts)[0].status in ("ok", "warn")


def test_a_machine_that_cannot_draw_is_told_the_packages(monkeypatch):
    def nothing() -> None:
        raise NoRendererError("MuJoCo cannot draw here.\nOn Debian: apt-get install libegl1")

    monkeypatch.setattr(drawing, "probe", nothing)
    assert drawing.judge(drawing.look())[0].remedy == "On Debian: apt-get install libegl1"


def test_an_environment_that_cannot_be_made_is_a_problem(monkeypatch):
    monkeypatch.setattr(drawing, "ENVIRONMENT", "visual-nothing-v0")
    monkeypatch.setattr(drawing, "draw_frames", _refuse)
    assert "visual-nothing-v0: RuntimeError: no assets" in drawing.look().problem


def _refuse(profile: str) -> float:
    raise RuntimeError("no assets")


def test_the_cpu_multiplies_rightly():
    facts = compute.look_cpu()
    assert sent(facts) == facts
    assert facts.exact
    assert facts.cores == len(os.sched_getaffinity(0))
    assert facts.gflops["float32"] > 0
    assert ("bfloat16" in facts.gflops) == facts.bfloat16


@pytest.mark.parametrize(("text", "quota"), [("max 100000", None), ("250000 100000", 2.5)])
def test_a_quota_is_read_from_the_control_group(tmp_path, text, quota):
    (tmp_path / "cpu.max").write_text(text)
    assert compute.cpu_quota(tmp_path / "cpu.max") == quota
    assert compute.cpu_quota(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("visible", "numbers"), [(None, [0, 1]), ("3, 1", [3, 1]), ("GPU-8f,GPU-2c", [0, 1])]
)
def test_egl_knows_gpus_by_the_drivers_numbers(visible, numbers):
    assert compute.physical_numbers(2, visible) == numbers


def test_gpus_are_looked_at_without_harm():
    facts = compute.look_gpus()
    assert sent(facts) == facts
    assert {row.name.split()[0] for row in compute.judge_gpus(facts)} == {"GPU"}
    assert all(gpu.graph_problem == "" for gpu in facts.gpus)


def test_disks_are_measured_and_nothing_stays(tmp_path):
    folders = (str(tmp_path / "data"), str(tmp_path / "runs" / "deep"))
    (disk,) = storage.look_disks(folders)  # one disk, measured once
    assert disk.folders == folders
    assert disk.write > 0
    assert disk.read > 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_where_writing_fails(tmp_path, monkeypatch):
    def full(file: int, piece: bytes) -> int:
        assert list(tmp_path.iterdir()) == []  # it has no name even while it is written
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "write", full)
    disk = storage.measure(tmp_path, ["data"])
    assert disk.problem == f"{tmp_path}: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_nearly_full_is_not_written_to(tmp_path, monkeypatch):
    usage = storage.shutil.disk_usage(tmp_path)._replace(free=GIB - 1)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda place: usage)
    monkeypatch.setattr(storage.tempfile, "TemporaryFile", None)
    assert storage.measure(tmp_path, ["data"]).write == 0


def test_limits_and_memory_are_those_of_this_process():
    assert storage.look_limits().files[0] > 0
    available, total = data.look_memory()
    assert total is None or 0 < available <= total


def test_the_plan_is_that_of_training(monkeypatch, tmp_path):
    monkeypatch.setenv("DEFLOW_DATA", str(SAMPLE.parent))
    plan = data.look_plan("visual-cube-double-play")
    assert plan.problem == ""
    assert "4,004 of 64x64x3" in plan.description
    monkeypatch.setenv("DEFLOW_DATA", str(tmp_path))
    (row,) = data.judge_plan(data.look_plan("visual-cube-double-play"))
    assert row.status == "fail"
    assert "scripts/data.py collect visual-cube-double-play" in row.remedy
    assert "unknown" in data.look_plan("visual-cube-dubble-play").problem


def test_a_whole_store_and_a_missing_one_are_told_apart(tmp_path):
    assert data.judge_store(data.look_store(str(SAMPLE)))[0].found.startswith("visual-cube-double")
    assert data.judge_store(data.look_store(str(tmp_path / "none.zarr")))[0].status == "fail"


@pytest.mark.parametrize("way", ["variable", "file", "broken file", "none"])
def test_a_key_of_wandb_is_found_and_never_kept(tmp_path, way):
    netrc = tmp_path / "netrc"
    lines = {"file": f"machine api.wandb.ai login user password {KEY}\n", "broken file": KEY}
    if way in lines:
        netrc.write_text(lines[way])
        netrc.chmod(0o600)
    variables = {"NETRC": str(netrc)} | ({"WANDB_API_KEY": KEY} if way == "variable" else {})
    facts = tracking.look_at(variables)
    assert facts.login == {"variable": "WANDB_API_KEY", "file": str(netrc)}.get(way, "")
    assert bool(facts.problem) == (way == "broken file")
    assert KEY.encode() not in pickle.dumps(facts)
    assert KEY not in str(tracking.judge(facts))


def test_another_server_needs_a_key_of_its_own(tmp_path):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    variables = {"NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": "https://wandb.lab.org"}
    assert tracking.look_at(variables).login == ""


@pytest.mark.parametrize("name", ["libraries", "memory", "disk", "limits", "wandb"])
def test_a_probe_comes_to_rows_in_its_own_process(name, monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (probe,) = [each for each in examine.probes() if each.name == name]
    rows = run_probe(dataclasses.replace(probe, seconds=600))  # whatever else this machine does
    assert rows
    assert not any("broke down" in row.found for row in rows)


def test_every_probe_is_run_and_in_order(monkeypatch):
    probes = [Probe(name, storage.look_limits, _named(name), seconds=600) for name in "ab"]
    monkeypatch.setattr(examine, "probes", lambda task, stores: probes)
    assert [row.name for row in examine.examine()] == ["a", "b"]


def _named(name: str):
    return lambda facts: [Row(name, "ok", str(facts))]
