"""Run folders in which something is not what a run writes."""

from __future__ import annotations

import json
import shutil

import pytest

from deflow_vision.analysis.plots import learning_curves
from deflow_vision.config import load
from deflow_vision.training.loop import train
from deflow_vision.training.restore import load_policy
from deflow_vision.training.run_folder import held
from deflow_vision.types import UserError
from tests.training.test_loop import copy_of_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished, configure, tmp_path):
    """A copy of a finished run."""
    if not finished.exists():
        train(configure("state", finished))
    return copy_of_run(finished, tmp_path / "run")


def resume(run):
    train(load(["--resume", str(run), "--offline-steps", "7"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,1", "line 8 has no step"),
        ("-3,1", "line 8 has no step"),
        ("9" + ",1" * 99, "more cells than there are columns"),
        ("1," + "9" * 200_000, "field larger than field limit"),
    ],
)
def test_a_table_with_a_line_that_no_run_writes_is_refused_by_its_name(run, line, message):
    table = run / "train.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows[:7], line, *rows[7:]]) + "\n")
    with pytest.raises(UserError, match=rf"train\.csv is damaged: .*{message}.*move it away"):
        resume(run)


@pytest.mark.parametrize("content", [b"step\n\xff\n", b"step,a\n1,x\n", b"a\n1\n", b"step,a\n,1\n"])
def test_a_table_that_cannot_be_drawn_is_refused_by_its_name(run, content):
    (run / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv is damaged"):
        learning_curves(run)


def test_a_table_of_something_else_is_refused_with_its_columns(run):
    (run / "train.csv").write_text("step,cash,debt\n1,2,3\n")
    with pytest.raises(
        UserError, match=r"train\.csv has nothing yet that is drawn; its columns: step, cash"
    ):
        learning_curves(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("dataset"),
        lambda record: record["dataset"].update(path=5),
        lambda record: record["spec"].update(action_dim=True),
        lambda record: record["spec"].update(observation_shape=[1 << 40]),
        lambda record: record.update(versions=None),
    ],
)
def test_a_record_that_no_run_writes_is_refused_by_its_name(run, change):
    path = run / "environment.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"environment\.json"):
        load_policy(run)


@pytest.mark.parametrize("name", ["train.csv", "plots", "checkpoints"])
def test_a_link_in_a_run_is_refused_before_anything_is_written_by_it(run, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    before = elsewhere.stat().st_mtime_ns
    (run / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"{name} is a symbolic link to {elsewhere}"):
        resume(run)
    assert elsewhere.stat().st_mtime_ns == before


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_holds_nothing(run, configure):
    with held(run), pytest.raises(UserError, match="another process is training in"):
        resume(run)
    resume(run)
    fresh = run.with_name("fresh")
    with held(fresh), pytest.raises(UserError, match="another process is training in"):
        train(configure("state", fresh))
    assert not (fresh / "config.yaml").exists()
    shutil.rmtree(fresh)
