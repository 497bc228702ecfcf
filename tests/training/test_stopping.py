"""Requests to end, in the middle of training, of an evaluation and of an online episode."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from deflow_vision.config import load
from deflow_vision.training import checkpoint, online, stopping
from deflow_vision.training.evaluation import Evaluator
from deflow_vision.training.loop import train
from deflow_vision.training.stopping import SIGNALS, Stop, Stopped
from deflow_vision.training.update import Update
from deflow_vision.types import UserError
from scripts import train as script
from tests.training.test_loop import assert_same_run
from tests.training.test_online import arguments as online_arguments
from tests.training.test_online import replay_files, walks  # noqa: F401

NO_CHECKPOINTS = ("--checkpoint.every", "0")


@pytest.fixture(autouse=True)
def heeded():
    """An interrupt is heeded, even where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def send(monkeypatch):
    """Send this process a signal before some call of a function."""

    def at(owner, name, number, calls):
        called, original = iter(range(1000)), getattr(owner, name)

        def sending(*args, **kwargs):
            if next(called) in calls:
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, sending)

    return at


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_told_to_end_saves_a_checkpoint_and_goes_on_bit_for_bit(
    number, configure, send, monkeypatch, tmp_path
):
    whole = train(configure("state", tmp_path / "whole", *NO_CHECKPOINTS))
    with monkeypatch.context():
        send(Update, "__call__", number, [3])
        with pytest.raises(Stopped) as stopped:
            train(configure("state", tmp_path / "run", *NO_CHECKPOINTS))
    monkeypatch.undo()
    assert stopped.value.signal == number
    assert [c.step for c in checkpoint.checkpoints(tmp_path / "run")] == [4]
    train(load(["--resume", str(tmp_path / "run")]))
    assert_same_run(whole, tmp_path / "run")


def test_the_command_line_says_so_and_ends_with_the_signals_code(
    arguments, send, monkeypatch, tmp_path, capsys
):
    send(Update, "__call__", signal.SIGTERM, [2])
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments("state", tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; go on with --resume" in capsys.readouterr().err


def test_an_evaluation_is_left_at_once_and_comes_again(configure, monkeypatch, tmp_path):
    whole = train(configure("own", tmp_path / "whole", *NO_CHECKPOINTS))
    evaluate = Evaluator.__call__

    def interrupted(self, agent, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return evaluate(self, agent, step)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", interrupted)
        with pytest.raises(Stopped):
            train(configure("own", tmp_path / "run", *NO_CHECKPOINTS))
    assert checkpoint.latest(tmp_path / "run").step == 3
    train(load(["--resume", str(tmp_path / "run")]))
    assert_same_run(whole, tmp_path / "run")


def test_an_online_run_ends_with_its_episode_and_goes_on_bit_for_bit(
    walks,  # noqa: F811
    send,
    monkeypatch,
    tmp_path,
):
    argv = [*online_arguments("state", walks, tmp_path / "whole"), *NO_CHECKPOINTS]
    whole = train(load(argv))
    run = tmp_path / "run"
    with monkeypatch.context():
        send(Update, "__call__", signal.SIGTERM, [6])
        with pytest.raises(Stopped):
            train(load([*argv, "--run-dir", str(run)]))
    monkeypatch.undo()
    assert 7 < checkpoint.latest(run).step < 18
    train(load(["--resume", str(run)]))
    assert_same_run(whole, run, 18)
    assert replay_files(run) == replay_files(whole)


def test_an_episode_that_does_not_end_is_left_when_the_patience_does(
    walks,  # noqa: F811
    send,
    monkeypatch,
    tmp_path,
):
    collect = online.Collector.__call__

    def endless(self, agent, step, *, hold=False):
        time.sleep(60 * (step == 7))
        return collect(self, agent, step, hold=hold)

    monkeypatch.setattr(stopping, "PATIENCE", 0.05)
    monkeypatch.setattr(online.Collector, "__call__", endless)
    send(Update, "__call__", signal.SIGUSR1, [6])
    start = time.monotonic()
    with pytest.raises(Stopped):
        train(load(online_arguments("state", walks, tmp_path / "run")))
    assert time.monotonic() - start < 60
    assert checkpoint.latest(tmp_path / "run").step == 4


def test_the_end_of_the_patience_does_not_disturb_what_cleans_up():
    with Stop(SimpleNamespace(num_processes=1)) as stop:
        assert not stop.asked(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked(1)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        with pytest.raises(Stopped):
            stop.leave()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_second_request_ends_the_run_at_once(configure, send, tmp_path):
    send(Update, "__call__", signal.SIGINT, [2])
    send(Update, "gradients", signal.SIGINT, [2])
    with pytest.raises(Stopped):
        train(configure("state", tmp_path / "run", *NO_CHECKPOINTS))
    assert checkpoint.latest(tmp_path / "run") is None


def test_what_the_shell_ignores_stays_ignored_and_handlers_come_back():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop(None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_an_evaluation_that_runs_out_of_memory_ends_with_a_message_and_a_checkpoint(
    error, configure, monkeypatch, tmp_path
):
    def full(self, agent, step):
        raise error

    monkeypatch.setattr(Evaluator, "__call__", full)
    with pytest.raises(UserError, match=r"out of memory: .*--eval\.num-envs.*step_3"):
        train(configure("own", tmp_path / "run", "--eval.no-at-start"))
    assert checkpoint.latest(tmp_path / "run").step == 3
