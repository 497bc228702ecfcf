"""Checkpoints that are not as they were written, and what killed writers leave."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from deflow_vision.files import sealed_text
from deflow_vision.training import checkpoint
from deflow_vision.training.checkpoint import CheckpointError
from deflow_vision.training.loop import make_optimizer
from tests.faults import tiny


@pytest.fixture
def run(tmp_path):
    """A folder with checkpoints after 3 and 6 updates."""
    tiny.write_checkpoints(tmp_path)
    return tmp_path


def load(run):
    agent = tiny.agent()
    checkpoint.load(checkpoint.latest(run), agent, make_optimizer(agent), tiny.IDENTITY)
    return agent


def edit_state(run, *, seal=True, **changes):
    path = run / "checkpoints" / "step_6" / "state.json"
    state = json.loads(path.read_text()) | changes
    path.write_text(sealed_text(state) if seal else json.dumps(state))


def edit_arrays(run, name, change):
    """Change arrays of a checkpoint, and its digests with them."""
    path = run / "checkpoints" / "step_6" / f"{name}.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    digests = {each: checkpoint.digest(path.with_name(each)) for each in checkpoint.FILES}
    edit_state(run, digests=digests)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seal": False, "identity": tiny.IDENTITY, "step": 7}, "does not match its own digest"),
        ({"seal": False, "digest": None}, "does not match its own digest"),
        ({"step": 3}, "is the checkpoint of step 3: give it that name"),
        ({"identity": {}}, "is of another configuration"),
    ],
)
def test_a_state_that_was_changed_is_refused(run, changes, message):
    edit_state(run, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(run)


@pytest.mark.parametrize("content", [None, "", "[" * 20_000, '{"step": 1e999}', '{"step": 6}'])
def test_a_checkpoint_without_a_state_is_not_passed_over(run, content):
    path = run / "checkpoints" / "step_6" / "state.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=r"step_6/state\.json cannot be read.*remove"):
        load(run)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("optimizer", lambda a: a.update({"exp_avg/x": torch.zeros(1)}), "exp_avg/x"),
        ("optimizer", lambda a: a.update({"exp_avg/log_alpha": torch.zeros(9)}), "log_alpha"),
        ("optimizer", lambda a: a.update({"secret/log_alpha": torch.zeros(())}), "secret"),
        ("agent", lambda a: a.update(log_alpha=torch.tensor(float("inf"))), "not finite"),
        ("agent", lambda a: a.update(log_alpha=torch.tensor(1)), "log_alpha is .*I64 there"),
        ("agent", lambda a: a.pop("log_alpha"), "log_alpha is missing there"),
    ],
)
def test_arrays_that_the_agent_has_not_are_refused(run, name, change, message):
    edit_arrays(run, name, change)
    with pytest.raises(CheckpointError, match=message):
        load(run)


def test_what_a_kill_left_of_a_removed_or_an_unfinished_checkpoint_goes_with_the_next(run):
    folder = run / "checkpoints"
    (folder / "step_3").rename(folder / ".partial-step_3")
    (folder / ".partial-step_3" / "state.json").unlink()
    (folder / ".partial-step_5").mkdir()
    agent = load(run)
    checkpoint.save(run, 9, agent, make_optimizer(agent), tiny.IDENTITY, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step_9"]
