"""Agents for analysis, out of run folders and exports."""

from __future__ import annotations

import shutil

import pytest
import torch

from deflow_vision.datasets.store import open_store
from deflow_vision.sharing import Policy
from deflow_vision.sharing.subjects import load_subjects, open_data
from deflow_vision.types import UserError


def test_the_newest_checkpoint_of_a_run_or_all_of_them(run):
    (newest,), stack = load_subjects([run])
    assert (newest.policy, newest.updates, stack) == ("deflow, seed 4", 6, 3)
    subjects, _ = load_subjects([run], "all")
    assert [subject.updates for subject in subjects] == [3, 6]
    assert not torch.equal(*(subject.agent.critic.mlp.weights[0] for subject in subjects))


def test_an_export_is_its_run_under_a_name_of_its_own(run, folder):
    (one, other), _ = load_subjects([run, folder])
    assert [one.policy, other.policy] == ["deflow, seed 4 (run)", "deflow, seed 4 (reach)"]
    assert torch.equal(one.agent.critic.mlp.weights[0], other.agent.critic.mlp.weights[0])


def test_policies_of_different_frame_stacks_are_refused(policy, folder, run, monkeypatch):
    original = Policy.from_run

    def with_one_frame(*arguments):
        found = original(*arguments)
        object.__setattr__(found.record, "frame_stack", 1)
        return found

    monkeypatch.setattr(Policy, "from_run", with_one_frame)
    with pytest.raises(UserError, match=r"stack \[1, 3\] frames"):
        load_subjects([run, folder])


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("step_*"))
    for which in ("newest", "all"):
        with pytest.raises(UserError, match="checkpoint"):
            load_subjects([tmp_path / "run"], which)


def test_the_data_are_those_that_are_named_or_the_runs_own(run, folder, tmp_path):
    own = open_data(None, run)
    assert own.attributes["env_id"] == "reach"
    assert open_data(str(own.path), folder).attributes == own.attributes
    assert open_store(own.path).attributes == own.attributes
    with pytest.raises(UserError, match="--data"):
        open_data(None, folder)
