"""All numbers and figures of some agents on one sample."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from deflow_vision.analysis import embedding_pictures, embedding_plots
from deflow_vision.analysis.embedding_pictures import plot_neighbours, plot_saliency
from deflow_vision.analysis.embedding_plots import colours_of
from deflow_vision.analysis.embedding_report import compare
from deflow_vision.analysis.embedding_study import (
    draw,
    draw_neighbours,
    draw_numbers,
    newest,
    saliency_maps,
    spread,
    study,
)
from deflow_vision.analysis.encoders import Features


@pytest.fixture
def found(pixels, subject):
    subjects = [
        subject("deflow", updates=3),
        subject("deflow", updates=7),
        subject("bc", "separate", updates=7),
    ]
    return study(subjects, pixels, k=2)


def test_baselines_stand_below_the_agents(found):
    assert found.report.names == (
        "deflow, 3 updates: critic, flow, refinement",
        "deflow, 7 updates: critic, flow, refinement",
        "bc, 7 updates: actor",
        "random (impala_debug)",
        "pixels (PCA 39)",
    )
    assert found.report.cka.shape == (5, 5)
    assert found.report.targets == ["effector", "gripper"]
    assert found.report.sample == "40 states of 10 training episodes, 20 of 5 held-out episodes"


def test_layers_and_refinement_are_those_of_the_newest_checkpoint(found):
    assert [subject.updates for subject in newest(found.subjects)] == [7, 7]
    assert found.layer_names[:3] == ("deflow: stack 0", "deflow: stack 1", "deflow: features")
    assert len(found.layer_names) == 6
    assert set(found.refinement) == {"deflow"}
    assert found.refinement["deflow"].summary()["divergence"] > 0


def test_a_report_knows_what_features_tell(pixels):
    """Features that are the truth about one target and tell nothing of the other."""
    truth = Features("a", "x", ("h",), 1, pixels.targets["effector"])
    noise = np.random.default_rng(0).normal(size=(60, 4))
    report = compare([truth, Features("b", "x", ("h",), 1, noise)], pixels, k=2)
    assert report.rows[0].r2["effector"] > 0.99
    assert report.rows[0].r2["gripper"] < 0.3
    assert report.rows[1].r2["effector"] < 0.3
    assert report.rows[0].effective_rank == pytest.approx(2, abs=0.05)
    assert report.rows[0].dim == 3


def test_the_table_the_csv_and_the_json_say_the_same(found):
    table = found.report.markdown()
    (row, *_) = csv.DictReader(io.StringIO(found.report.csv()))
    facts = json.loads(found.json(seed=4))
    assert float(row["effective_rank"]) == facts["rows"][0]["effective_rank"]
    assert float(row["r2 effector"]) == facts["rows"][0]["r2"]["effector"]
    assert float(row["r2 knn action"]) == facts["rows"][0]["consistency"]
    assert float(row["error gripper"]) == facts["rows"][0]["r2_errors"]["gripper"]
    assert row["heads"] == "critic flow refinement"
    assert row["updates"] == "3"
    cells = [cell.strip() for cell in table.splitlines()[4].split("|")[1:-1]]
    assert cells[:5] == ["deflow", "3", "impala_debug", "critic, flow, refinement", "512"]
    assert cells[5] == f"{facts['rows'][0]['effective_rank']:.1f}"
    r2, error = (facts["rows"][0][key]["effector"] for key in ("r2", "r2_errors"))
    assert cells[6] == f"{r2:.2f} ± {error:.2f}"
    assert "| random | - | impala_debug | - | 512 |" in table
    assert facts["seed"] == 4
    assert len(facts["layers"]["cka"]) == 6


def test_numbers_that_are_unknown_are_null_in_json_and_a_dash_in_the_table(pixels):
    still = dataclasses.replace(pixels, targets={"gripper": np.ones((60, 1), np.float32)})
    noise = np.random.default_rng(0).normal(size=(60, 4))
    report = compare([Features("a", "x", ("h",), 1, noise)], still, k=2)
    assert json.loads(report.json())["rows"][0]["r2"] == {"gripper": None}
    assert report.markdown().splitlines()[4].split("|")[7].strip() == "-"


def test_a_collapsed_encoder_is_reported_and_not_drawn(found, pixels, tmp_path):
    collapsed = dataclasses.replace(found.features[2], values=np.ones((60, 8), np.float32))
    features = (*found.features[:2], collapsed, *found.features[3:])
    report = compare(features, pixels, k=2)
    assert report.rows[2].effective_rank == 0
    cells = [cell.strip() for cell in report.markdown().splitlines()[6].split("|")[1:-1]]
    assert cells == ["bc", "7", "impala_debug", "actor", "8", "0.0", "-", "-", "-"]
    study = dataclasses.replace(found, features=features, report=report)
    drawn = [
        path.stem for path in (*draw_neighbours(study, tmp_path), *draw_numbers(study, tmp_path))
    ]
    assert "numbers" in drawn
    assert not any("bc" in name for name in drawn)


def test_without_targets_the_report_says_why(pixels):
    blind = dataclasses.replace(pixels, targets={}, why_no_targets="no arm here")
    noise = np.random.default_rng(0).normal(size=(60, 4))
    report = compare([Features("a", "x", ("h",), 1, noise)], blind, k=2)
    assert "No probes: no arm here." in report.markdown()
    assert report.rows[0].r2 == {}


def test_every_figure_is_drawn(found, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_plots, "MAP_POINTS", 30)
    names = [path.name for path in draw(found, tmp_path, ("pca",))]
    policy = "deflow_7_updates_critic_flow_refinement"
    whose = (policy, "bc_7_updates_actor", "random_impala_debug", "pixels_PCA_39")
    assert names == [
        *("numbers.png", "cka.png", "cka_layers.png", "progress.png"),
        *(f"{kind}_{name}.png" for kind in ("map", "near") for name in whose),
        *("saliency_deflow.png", "flow_deflow.png", "refinement_deflow.png"),
    ]
    for name in names:
        assert iio.imread(tmp_path / name).std() > 5, name


def figures(monkeypatch, module):
    """What would be written, instead of files."""
    kept = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: kept.append(figure) or path)
    return kept


def test_the_numbers_stand_at_their_places(found, tmp_path, monkeypatch):
    (kept) = figures(monkeypatch, embedding_plots)
    embedding_plots.plot_numbers(found.report, found.features, tmp_path)
    left, right = kept[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        *("probe: effector", "probe: gripper", "kNN: action")
    ]
    row = found.report.rows[1]
    values = [row.r2["effector"], row.r2["gripper"], row.consistency]
    (dots, bars) = (
        [each for each in left.collections if isinstance(each, kind)]
        for kind in (PathCollection, LineCollection)
    )
    np.testing.assert_allclose(dots[1].get_offsets()[:, 0], np.clip(values, -1, 1))
    (low, _), (high, _) = bars[1].get_segments()[2]
    np.testing.assert_allclose((high - low) / 2, row.consistency_error)
    marks = [line for line in right.lines if len(line.get_xdata()) == 1]
    assert marks[1].get_xdata()[0] == row.effective_rank


def test_progress_is_drawn_over_updates_beside_the_baselines(found, tmp_path, monkeypatch):
    kept = figures(monkeypatch, embedding_plots)
    embedding_plots.plot_progress(found.report, tmp_path)
    axis = kept[0].axes[0]
    assert axis.get_title(loc="left") == "Probe R²: effector"
    assert axis.lines[0].get_xdata().tolist() == [3, 7]
    assert axis.lines[0].get_ydata().tolist() == [
        row.r2["effector"] for row in found.report.rows[:2]
    ]
    assert axis.lines[2].get_ydata()[0] == found.report.rows[3].r2["effector"]


def test_held_out_frames_stand_beside_training_frames(found, pixels, tmp_path, monkeypatch):
    kept = figures(monkeypatch, embedding_pictures)
    truth = Features("a", "x", ("h",), 1, pixels.targets["effector"])
    plot_neighbours(truth, pixels, tmp_path, queries=3, k=2)
    shown = [axis.images[0].get_array() for axis in kept[0].axes]
    assert len(shown) == 9
    held, train = pixels.pictures[pixels.held_out], pixels.pictures[~pixels.held_out]
    for i in range(0, 9, 3):
        assert (held == shown[i]).all((1, 2, 3)).any()
        assert (train == shown[i + 1]).all((1, 2, 3)).any()


def test_saliency_is_of_the_chosen_states(pixels, subject, tmp_path):
    chosen = spread(pixels, 3)
    assert chosen.tolist() == [40, 50, 59]
    maps = saliency_maps(subject(), pixels, chosen)
    assert [values.shape for values in maps.values()] == [(3, 16, 18)] * 2
    assert all(values.max() > 0 for values in maps.values())
    assert plot_saliency(pixels.pictures[chosen], maps, tmp_path / "s.png", "title").exists()


def test_colours_name_what_is_true_with_its_unit(pixels):
    targets = {
        "effector": np.arange(180.0).reshape(60, 3),
        "gripper": np.full((60, 1), 0.5),
        "cube 0": np.arange(180.0).reshape(60, 3),
        "drawer": np.ones((60, 1)),
        "buttons": np.ones((60, 4)),
    }
    found = colours_of(dataclasses.replace(pixels, targets=targets))
    assert list(found) == [
        "effector's height [m]",
        "gripper closed [0: open, 1: shut]",
        "cube 0, sideways [m]",
        "drawer slid [m]",
        "buttons switched [count]",
    ]
    assert found["effector's height [m]"][0] == 2
    assert found["cube 0, sideways [m]"][0] == 1
    assert found["buttons switched [count]"][0] == 4
    assert list(colours_of(dataclasses.replace(pixels, targets={}))) == [
        "step in the episode [steps]"
    ]
