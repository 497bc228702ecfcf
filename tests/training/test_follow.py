"""Evaluation of checkpoints as another process writes them."""

from __future__ import annotations

import json
import shutil
import sys
import threading

import pytest

from deflow_vision.training import follow as module
from deflow_vision.training.checkpoint import checkpoints
from deflow_vision.training.follow import follow
from deflow_vision.training.loop import train
from deflow_vision.training.run_folder import held, is_held
from deflow_vision.types import UserError
from scripts import evaluate as script


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture
def run(once, configure, tmp_path, monkeypatch):
    """A run with checkpoints after 3 and 6 updates."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    if not once.exists():
        train(configure("own", once))
    return shutil.copytree(once, tmp_path / "run")


@pytest.fixture
def call(run, monkeypatch, capsys):
    def call(*flags):
        arguments = ["--run", str(run), "--episodes", "1", "--num-envs", "1", *flags]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        script.main()
        return capsys.readouterr().out

    return call


def steps(run):
    """Of the evaluations that are recorded, in the order in which they were made."""
    records = sorted((run / "evaluations").glob("*/evaluation.json"))
    return [json.loads(path.read_text())["arguments"]["step"] for path in records]


def test_the_checkpoints_of_a_run_that_has_ended_are_evaluated_once(call, run):
    said = call("--follow")
    assert said.index("after 3 updates") < said.index("after 6 updates")
    assert "2 checkpoints evaluated" in said
    assert steps(run) == [3, 6]
    assert "0 checkpoints evaluated" in call("--follow")
    shutil.rmtree(sorted((run / "evaluations").iterdir())[0])  # as one that was ended
    assert "1 checkpoints evaluated" in call("--follow")
    assert "2 checkpoints evaluated" in call("--follow", "--seed", "1")
    assert steps(run) == [6, 3, 3, 6]


def test_a_run_that_goes_on_is_waited_for(run):
    late = run / "checkpoints" / "step_6"
    late.rename(run / "late")
    seen, found = [], []
    with held(run):
        assert is_held(run)
        follower = threading.Thread(
            target=lambda: found.append(follow(run, seen.append, episodes=1, seed=0))
        )
        follower.start()
        follower.join(0.5)
        assert follower.is_alive()
        assert seen == [3]
        (run / "late").rename(late)
    follower.join(20)
    assert (seen, found) == ([3, 6], [2])
    assert not is_held(run)


def test_a_checkpoint_that_is_removed_before_its_turn_is_named(run, caplog):
    def evaluate(step):
        if step == 3:
            shutil.rmtree(run / "checkpoints" / "step_3")
            raise FileNotFoundError(step)

    assert follow(run, evaluate, episodes=1, seed=0) == 1
    assert "the checkpoint after 3 updates was removed before its turn" in caplog.text


def test_an_evaluation_that_fails_ends_it(run):
    def evaluate(step):
        raise UserError(f"no luck at {step}")

    with pytest.raises(UserError, match="no luck at 3"):
        follow(run, evaluate, episodes=1, seed=0)
    assert len(checkpoints(run)) == 2


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"arguments": {"seed": 0}}'])
def test_a_record_that_cannot_be_read_does_not_count(run, caplog, text):
    path = run / "evaluations" / "damaged" / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    seen = []
    assert follow(run, seen.append, episodes=1, seed=0) == 2
    assert seen == [3, 6]
    readable = "seed" in text  # of other arguments
    assert ("is no record of an evaluation" in caplog.text) != readable


def test_what_cannot_be_followed_is_refused(call, run, tmp_path, capsys):
    with pytest.raises(UserError, match="start training first"):
        follow(tmp_path / "none", print, episodes=1, seed=0)
    with pytest.raises(SystemExit) as stop:
        call("--follow", "--step", "3")
    assert stop.value.code == 2
    assert "pass one" in capsys.readouterr().err
