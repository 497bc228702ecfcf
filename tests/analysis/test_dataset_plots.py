"""Figures of a dataset's sample."""

from __future__ import annotations

import dataclasses

import numpy as np

from deflow_vision.analysis import dataset_plots
from deflow_vision.analysis.dataset_plots import plot_actions, plot_places


def test_actions_and_places_are_drawn(pixels, tmp_path):
    assert plot_actions(pixels, tmp_path / "a.png").stat().st_size > 10_000
    assert plot_actions(pixels, tmp_path / "b.png", ("x", "y", "z")).stat().st_size > 10_000
    assert plot_places(pixels, tmp_path / "c.png").stat().st_size > 10_000


def test_a_constant_action_and_a_single_one_are_drawn(pixels, tmp_path):
    actions = np.full((60, 2), 0.5, np.float32)
    assert plot_actions(dataclasses.replace(pixels, actions=actions), tmp_path / "a.png").exists()
    single = dataclasses.replace(pixels, actions=pixels.actions[:, :1])
    assert plot_actions(single, tmp_path / "b.png").exists()


def test_each_thing_has_a_panel_of_its_own(pixels, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(dataset_plots, "save_figure", lambda figure, path: figures.append(figure))
    targets = {
        **pixels.targets,
        "cube 0": pixels.targets["effector"],
        "buttons": np.ones((60, 4), np.float32),
    }
    plot_places(dataclasses.replace(pixels, targets=targets), tmp_path)
    titles = [axis.get_title(loc="left") for axis in figures[0].axes]
    assert [title for title in titles if title] == ["effector", "cube 0", "gripper", "buttons"]
