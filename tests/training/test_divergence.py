"""`target_divergence auto`, from the command line to the run folder."""

import dataclasses
import json

import pytest

from deflow_vision.config import from_yaml
from deflow_vision.datasets.divergence import action_variance
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import open_store
from deflow_vision.tasks import resolve_task
from deflow_vision.training import setup
from deflow_vision.training.loop import train
from deflow_vision.types import UserError

AUTO = ("--agent.target-divergence", "auto")


def expected(path, factor):
    split = open_store(path).train
    (found,) = action_variance(
        read_all(split.observations), read_all(split.actions), split.episode_ends
    )
    return float(f"{factor * found.iav:.2g}")


def test_a_run_records_the_number_that_the_data_suggest_and_how_it_came_about(
    configure, stores, tmp_path
):
    run = train(configure("state", tmp_path / "run", *AUTO, "--offline-steps", "1"))
    delta = expected(stores["state"], 0.1)
    assert from_yaml(run / "config.yaml").agent.target_divergence == delta
    record = json.loads((run / "environment.json").read_text())["target_divergence"]
    assert record["target_divergence"] == delta
    assert (record["domain"], record["factor"], record["sampled_states"]) == (
        *("manipulation", 0.1),
        31,
    )
    assert record["action_variance"] == pytest.approx(delta / 0.1, rel=0.05)
    assert 0 < record["standard_error"] < record["action_variance"]
    assert record["neighbours"].startswith("5 nearest")


def test_the_number_does_not_depend_on_the_seed_of_the_run(configure, tmp_path):
    runs = [
        train(configure("state", tmp_path / seed, *AUTO, "--offline-steps", "0", "--seed", seed))
        for seed in ("0", "1")
    ]
    first, second = (from_yaml(run / "config.yaml").agent.target_divergence for run in runs)
    assert first == second


def test_navigation_takes_the_whole_variance(configure, stores, tmp_path, monkeypatch):
    task = dataclasses.replace(resolve_task("cube-single-play-task1"), domain="navigation")
    monkeypatch.setattr(setup, "resolve_task", lambda name: task)
    run = train(configure("state", tmp_path / "run", *AUTO, "--offline-steps", "0"))
    found = from_yaml(run / "config.yaml").agent.target_divergence
    assert found == expected(stores["state"], 1.0)


def test_a_task_that_is_neither_manipulation_nor_navigation_is_refused(
    configure, tmp_path, monkeypatch
):
    task = dataclasses.replace(resolve_task("cube-single-play-task1"), domain=None)
    monkeypatch.setattr(setup, "resolve_task", lambda name: task)
    with pytest.raises(UserError, match=r"known as neither.*suggest-delta"):
        train(configure("state", tmp_path / "run", *AUTO))
    assert not (tmp_path / "run").exists()


def test_pixels_without_the_simulators_state_are_refused_before_a_run_begins(configure, tmp_path):
    with pytest.raises(UserError, match=r"without qpos.*--agent\.target-divergence a number"):
        train(configure("pixels", tmp_path / "run", *AUTO))
    assert not (tmp_path / "run").exists()


def test_a_run_whose_divergence_was_given_says_nothing_of_the_data(configure, tmp_path):
    run = train(configure("state", tmp_path / "run", "--offline-steps", "0"))
    assert "target_divergence" not in json.loads((run / "environment.json").read_text())
